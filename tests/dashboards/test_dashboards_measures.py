"""What is computed while looking: φ, AUROC draws, group accuracy, flips, patch maps."""

from __future__ import annotations

import numpy as np
import pytest
from toy_run import PATCHES, POOLED

from dermaudit.dashboards.exhibits import figures, latents, measures, overview, pictures
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.errors import EvidenceError


def test_phi_by_hand() -> None:
    # 2 x 2 table 30, 10 / 20, 40: (30*40 - 10*20) / sqrt(40*60*50*50)
    found = measures.phi(np.array(30.0), np.array(40.0), np.array(50.0), np.array(100.0))
    assert found == pytest.approx(1000 / np.sqrt(40 * 60 * 50 * 50))
    assert np.isnan(measures.phi(np.array(0.0), np.array(0.0), np.array(5.0), np.array(9.0)))


def test_prevalence_counts_are_those_of_the_manifest(whole_run) -> None:
    view = RunView.open(whole_run)
    cells = {(c.artifact, c.label): c for c in measures.prevalence(view)}
    assert set(a for a, _ in cells) == {"ruler", "ink"}
    ink = view.images["artifact:ink"].to_pylist()
    mel = [
        value
        for value, label in zip(ink, view.labels, strict=True)
        if label == "mel" and value is not None
    ]
    cell = cells["ink", "mel"]
    assert (cell.n, cell.n_pos) == (len(mel), int(sum(mel)))
    ruler = cells["ruler", "mel"]
    a, y = view.truth["ruler"].values, (view.labels == "mel").astype(float)
    assert ruler.phi == pytest.approx(np.corrcoef(a, y)[0, 1])
    assert ruler.lo < ruler.phi < ruler.hi


def test_colours_of_phi_are_fixed_and_tell_small_values_apart() -> None:
    def shades(phi: list[float]) -> list[float]:
        text = [[f"{v:+.2f}" for v in phi]]
        return figures.phi_grid(["ruler"], ["a", "b", "c"], [phi], text)["data"][0]["z"][0]

    weak, strong = shades([0.02, -0.05, 0.1]), shades([0.02, -0.05, 0.9])
    assert weak[:2] == strong[:2]  # the same colour in every run, whatever the largest value
    assert weak[0] == pytest.approx(0.02**0.5) and weak[1] == pytest.approx(-(0.05**0.5))
    assert weak[0] > 0.1 and abs(weak[1]) > 0.2  # of a scale from -1 to 1


def test_the_grid_of_phi_shows_n(whole_run) -> None:
    grid = overview.artifact_prevalence(RunView.open(whole_run)).figure["data"][0]
    view = RunView.open(whole_run)
    ruler = int((view.truth["ruler"].values == 1).sum())
    assert f"ruler (n {ruler})" in grid["y"]
    assert f"mel<br>n {(view.labels == 'mel').sum()}" in grid["x"]


def test_latent_evidence_shows_labels_with_n_and_interval(whole_run) -> None:
    rows = measures.latent_evidence(RunView.open(whole_run), POOLED, 0)
    measured = [row for row in rows if row["auroc"] is not None]
    assert measured and all(
        row["lo"] <= row["auroc"] <= row["hi"] and row["n"] >= 30 for row in measured
    )
    assert all(row["reason"] for row in rows if row["auroc"] is None)


def test_latent_evidence_without_labels_is_refused(unlabelled_run) -> None:
    with pytest.raises(EvidenceError, match="no labels: not measured"):
        measures.latent_evidence(RunView.open(unlabelled_run), POOLED, 0)


def scored(i: int, group: str, before: bool, fixed: bool, matched: bool) -> dict:
    return {
        "row": i,
        "group4": group,
        "p_before": 0.5,
        "p_after": 0.1 * i,
        "positive_before": before,
        "positive_fixed": fixed,
        "positive_matched": matched,
        "flipped": before != matched,
        "fired": before != fixed,
    }


def test_group_rates_by_hand() -> None:
    rows = [scored(i, "y=1 a=0", i < 10, i < 5, i < 25) for i in range(40)]
    rows.append(scored(40, "y=0 a=1", False, False, True))
    small, large = measures.group_rates(rows, np.arange(41).astype(str))
    assert (large["group"], large["measure"], large["n"]) == ("y=1 a=0", "sensitivity", 40)
    assert (large["before"], large["fixed"], large["matched"]) == (0.25, 0.125, 0.625)
    assert large["flipped"] == 15 and large["fired"] == 5
    assert large["change_ci"][0] < 0.375 < large["change_ci"][1]
    assert small["reason"] == "n too small: 1 images" and small["before_ci"] is None
    assert (small["measure"], small["before"], small["matched"]) == ("specificity", 1.0, 0.0)


def test_flipped_cases_put_missed_melanoma_first() -> None:
    rows = [
        scored(1, "y=0 a=0", False, False, True),
        scored(2, "y=1 a=0", False, True, True),
        scored(3, "y=0 a=1", True, False, False),
        scored(4, "y=1 a=1", True, True, False),
        scored(5, "y=1 a=1", True, True, True),
    ]
    found = measures.flipped_cases(rows, "mel")
    assert [r["row"] for r in found] == [4, 3, 2, 1]
    assert found[0]["kind"] == "mel missed after suppression"


def test_sensitivity_and_specificity_have_intervals_over_groups() -> None:
    rows = [scored(i, "y=1 a=0", i < 30, True, True) for i in range(40)]
    alone = measures.group_rates(rows, np.arange(40).astype(str))[0]
    assert alone["before"] == 0.75 and alone["matched"] == 1.0
    assert alone["before_ci"][0] < 0.75 < alone["before_ci"][1]
    assert alone["matched_ci"] == (1.0, 1.0)
    # Ten images of each patient, all right or all wrong: the interval is wider.
    patients = measures.group_rates(rows, (np.arange(40) // 10).astype(str))[0]
    assert patients["before_ci"][0] < alone["before_ci"][0]


def test_sensitivity_and_specificity_of_the_classifier_by_hand(whole_run) -> None:
    view = RunView.open(whole_run)
    predicted = np.where(np.arange(view.n) % 2 == 0, "mel", "bkl").astype(object)
    found = {s["label"]: s for s in measures.decision_shares(view, predicted)}["mel"]
    test = view.splits == "test"
    is_mel, said_mel = (view.labels == "mel")[test], (predicted == "mel")[test]
    assert found["sensitivity"] == pytest.approx(said_mel[is_mel].mean())
    assert found["specificity"] == pytest.approx((~said_mel)[~is_mel].mean())
    assert (found["sensitivity_n"], found["specificity_n"]) == (is_mel.sum(), (~is_mel).sum())
    low, high = found["specificity_ci"]
    assert low < found["specificity"] < high
    assert found["sensitivity_ci"] is None  # fewer than 30 test images


@pytest.mark.parametrize("kind", ["whole_run", "topk_run"])
def test_patch_maps_agree_with_the_codes(kind, request) -> None:
    """The largest patch of a map is the image's stored code, for a TopK too."""
    run = RunView.open(request.getfixturevalue(kind))
    for row, latent in ((3, 0), (70, 2), (71, 5), (119, 11)):
        values = pictures.patch_values(run, row, PATCHES, latent)
        stored = run.codes(PATCHES).column(latent)[row]
        assert values.max() == pytest.approx(stored, abs=1e-5)
        text = latents.firing_condition(run, PATCHES, latent)
        assert ("4 largest" if kind == "topk_run" else "threshold of 1.50") in text


def test_nearest_leaves_the_image_itself_out(whole_run) -> None:
    view = RunView.open(whole_run)
    found = measures.nearest(view, 4)
    cosine = view.pooled @ view.pooled[4]
    cosine[4] = -2
    assert found[0][0] == int(cosine.argmax()) and found[0][1] == pytest.approx(
        cosine.max(), abs=1e-6
    )
    assert 4 not in [row for row, _ in found]
