"""Names with a probability: calibration, thresholds, verdicts, judging, and the published methods."""

from __future__ import annotations

import json

import numpy as np
import pytest
from concept_world import RULER, basis, world, write_run
from test_concepts_naming import planted, vectors, words
from test_concepts_stages import TOWER, WORDS

from dermaudit.concepts.naming import scores
from dermaudit.concepts.naming.calibration import Calibration, calibrations, figures_of
from dermaudit.concepts.naming.judging import Judge
from dermaudit.concepts.naming.methods import fused
from dermaudit.concepts.naming.methods import words as by_words
from dermaudit.concepts.naming.methods.registry import (
    DIAGNOSIS,
    NAMED,
    ONE_OF,
    OTHER,
    NamingEvidence,
    naming_methods,
)
from dermaudit.concepts.naming.risk import Answers, calibration_error, risk_figures
from dermaudit.concepts.naming.scores import p_values
from dermaudit.concepts.naming.stage import NameOptions, name_run
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary

RNG = np.random.default_rng(0)


# ---- calibration


def test_figures_by_hand():
    found = figures_of(np.array([[2.0, -1.0, 1.5, 0.5]]))
    size = np.sqrt((4 + 1 + 2.25 + 0.25) / 4)
    assert found[0] == pytest.approx([0.5, 0.75, 2 / size])


def known(n: int = 400, seed: int = 1) -> Calibration:
    """Ten concepts; a name is right with a probability that rises with its first figure."""
    rng = np.random.default_rng(seed)
    figures = rng.normal(size=(n, 3))
    right = rng.random(n) < 1 / (1 + np.exp(-2 - 3 * figures[:, 0]))
    return Calibration(tuple(f"c{i % 10}" for i in range(n)), figures, right)


def test_p_is_calibrated_for_concepts_that_the_calibration_does_not_know():
    new = known(4000, seed=2)
    p = known().p_correct(["new"] * 4000, new.figures)
    assert calibration_error(p, new.right) < 0.08
    assert np.corrcoef(p, new.right)[0, 1] > 0.4


def test_rows_of_the_own_concept_do_not_speak_for_it():
    base = known()
    liar = Calibration(
        base.concepts + ("own",) * 400,
        np.concatenate([base.figures, base.figures]),
        np.concatenate([base.right, ~base.right]),
    )
    figures = RNG.normal(size=(5, 3))
    np.testing.assert_allclose(
        liar.p_correct(["own"] * 5, figures), base.p_correct(["new"] * 5, figures)
    )
    assert not np.allclose(
        liar.p_correct(["other"] * 5, figures), base.p_correct(["other"] * 5, figures)
    )


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_threshold_keeps_the_risk_on_new_names(risk):
    new = known(20_000, seed=3)
    calibrated = known(2000)
    named = calibrated.p_correct(["new"] * 20_000, new.figures) >= calibrated.threshold(risk)
    assert named.mean() > 0.3
    assert (~new.right[named]).mean() == pytest.approx(risk, abs=0.03)


def test_no_threshold_where_names_are_never_right():
    base = known()
    hopeless = Calibration(base.concepts, base.figures, RNG.random(400) < 0.5)
    assert hopeless.threshold(0.01) > 1
    assert known().threshold(1.0) <= known().own_p.min() + 1e-12


def test_the_bundled_calibration():
    found = calibrations()
    for kind, least in (("name", 400), ("set", 400), ("label", 200)):
        assert len(found[kind].right) > least and len(set(found[kind].concepts)) > 15
        assert 0 < found[kind].threshold(0.1) < 1
    assert found["set"].right.mean() >= found["name"].right.mean()


# ---- the method


def evidence(**given) -> NamingEvidence:
    codes, pooled = planted()
    return NamingEvidence(codes, pooled, *vectors(), words(), **given)


def test_planted_latents_are_named_and_no_other_is():
    names = by_words.name_latents(evidence())
    assert names.word[:6].tolist() == list(range(6)) and names.verdict[:6] == [NAMED] * 6
    assert (names.word[6:] == -1).all() and NAMED not in names.verdict[6:]
    assert names.p_correct is not None and (names.p_correct[:6] > 0.8).all()
    assert np.isnan(names.p_correct[10]) and names.reason[10] == "dead"


def test_a_diagnosis_and_a_distractor_do_not_name_a_latent():
    codes, pooled = planted()
    concepts, distractors = vectors()
    distractors[4] = basis()[2]
    kinds = ["artifact", "diagnosis", *["artifact"] * 4]
    vocabulary = Vocabulary(
        "toy",
        tuple(Concept(f"w{i}", kind, (f"w{i}",)) for i, kind in enumerate(kinds)),
        ("{}",),
        tuple(f"d{i}" for i in range(20)),
    )
    names = by_words.name_latents(NamingEvidence(codes, pooled, concepts, distractors, vocabulary))
    assert names.verdict[:3] == [NAMED, DIAGNOSIS, OTHER]
    assert names.word[1] == names.word[2] == -1 and "the diagnosis w1" in names.reason[1]


def test_two_words_that_cannot_be_told_apart_are_a_set(monkeypatch):
    concepts, distractors = vectors()
    concepts[1] = basis()[0] + 0.2 * basis()[1]
    concepts[1] /= np.linalg.norm(concepts[1])
    codes, pooled = planted()
    sure = {"name": 0.99999, "set": 0.0}

    class Known(Calibration):
        def threshold(self, risk):
            return sure["set" if self is bundled["set"] else "name"]

    bundled = {
        kind: Known(one.concepts, one.figures, one.right) for kind, one in calibrations().items()
    }
    monkeypatch.setattr(by_words, "calibrations", lambda: bundled)
    names = by_words.name_latents(NamingEvidence(codes, pooled, concepts, distractors, words()))
    assert names.verdict[0] == ONE_OF and set(names.sets[0]) == {0, 1}
    assert names.word[0] == -1 and names.reason[0].startswith("one of: ")
    assert names.p_correct[0] > 0.5


def test_permuted_activations_are_not_named():
    rng = np.random.default_rng(3)
    given = evidence()
    codes = np.concatenate([given.codes[:, :6]] * 6, axis=1)
    for column in range(36):
        codes[:, column] = codes[rng.permutation(len(codes)), column]
    names = by_words.name_latents(NamingEvidence(codes, given.pooled, *vectors(), words()))
    assert names.verdict.count(NAMED) + names.verdict.count(ONE_OF) == 0


def test_candidates_are_near_the_best_and_neither_diagnoses_nor_distractors():
    types = np.array(["artifact", "diagnosis", "colour", "distractor", "clinical"])
    scores = np.array([1.0, 0.95, 0.9, 0.99, 0.7])
    assert by_words.candidates(scores, types) == (0, 2)


# ---- the null


def test_p_values_by_hand():
    null = np.array([[1.0, 4.0, 3.0], [2.0, 8.0, 1.0]])
    best, spread = np.array([2.0, 8.1, 0.5]), np.array([1.0, 4.0, 1.0])
    assert p_values(best, null, spread, 0) == pytest.approx([2 / 3, 1 / 3, 3 / 3])
    # In units of the spread: nulls 1 2, 1 2 and 3 1; data 2, 2.025, .5; every latent sees all three.
    assert p_values(best, null, spread, 1) == pytest.approx([4 / 7, 2 / 7, 7 / 7])


def test_neighbours_give_the_p_values_of_more_permutations():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 3, 4000)
    null = np.abs(rng.normal(size=(40, 4000))) * spread
    best = np.abs(rng.normal(size=4000)) * spread  # nothing is in it
    p = p_values(best, null, spread, 2)
    assert p.min() >= 1 / 201 and np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.012)
    assert p_values(best + 9 * spread, null, spread, 2).max() == pytest.approx(1 / 201)


def test_many_latents_are_named_as_few_are(monkeypatch):
    few = by_words.name_latents(evidence())
    monkeypatch.setattr(scores, "MANY", 4)
    many = by_words.name_latents(evidence())
    assert many.verdict == few.verdict and many.word.tolist() == few.word.tolist()


# ---- labels


def with_labels(**labels) -> NamingEvidence:
    given = evidence()
    known = {word: (given.codes[:, i] > 0).astype(float) for i, word in enumerate(WORD_IDS)}
    return NamingEvidence(
        given.codes, given.pooled, given.vectors, given.distractors, given.vocabulary,
        labels=known | labels,
    )  # fmt: skip


WORD_IDS = [concept.id for concept in words().concepts]


def test_labels_name_latents_first_and_words_the_others():
    given = with_labels()
    del given.labels["veil"]
    names = fused.name_latents(given)
    assert names.word[:6].tolist() == list(range(6))
    by = dict(zip(WORD_IDS, names.named_by, strict=False))
    assert by.pop("veil") == "words" and set(by.values()) == {"labels"}
    assert (names.p_correct[:6] > 0.8).all() and names.named_by[6] is None


def test_permuted_activations_are_not_named_by_labels_either():
    rng = np.random.default_rng(4)
    given = with_labels()
    codes = given.codes[rng.permutation(len(given.codes))]
    names = fused.name_latents(
        NamingEvidence(
            codes, given.pooled, given.vectors, given.distractors, given.vocabulary, labels=given.labels
        )
    )  # fmt: skip
    assert set(names.named_by) == {None} and ONE_OF not in names.verdict


def test_a_word_that_labels_contradict_is_taken_back():
    given = evidence()
    codes = given.codes
    # By its words latent 0 is a ruler; by its labels it is ink, and not clearly so.
    rng = np.random.default_rng(2)
    labels = {
        "ruler": (rng.random(len(codes)) < 0.3).astype(float),
        "ink": np.where(rng.random(len(codes)) < 0.6, codes[:, 0] > 0, rng.random(len(codes)) < 0.15).astype(float),
    }  # fmt: skip
    known = NamingEvidence(
        codes, given.pooled, given.vectors, given.distractors, given.vocabulary, labels=labels, risk=0.001
    )  # fmt: skip
    unsure = {kind: one for kind, one in calibrations().items()}
    assert by_words.name_latents(evidence()).word[0] == 0
    names = names_without_sure_labels(known, unsure)
    assert names.word[0] == -1 and "labels say that ink explains it better" in names.reason[0]


def names_without_sure_labels(known: NamingEvidence, bundled) -> object:
    """Names where no label is sure enough, and every word is."""

    class Sure(Calibration):
        def threshold(self, risk):
            return 2.0 if self is sure["label"] else 0.0

    sure = {kind: Sure(one.concepts, one.figures, one.right) for kind, one in bundled.items()}
    with pytest.MonkeyPatch.context() as patch:
        for module in (fused, by_words):
            patch.setattr(module, "calibrations", lambda: sure)
        return fused.name_latents(known)


def test_a_latent_that_a_labelled_diagnosis_explains_is_diagnosis_like():
    given = with_labels()
    kinds = ["diagnosis", *["artifact"] * 5]
    vocabulary = Vocabulary(
        "toy",
        tuple(Concept(w, kind, (w,)) for w, kind in zip(WORD_IDS, kinds, strict=True)),
        ("{}",),
        tuple(f"d{i}" for i in range(20)),
    )
    names = fused.name_latents(
        NamingEvidence(
            given.codes, given.pooled, given.vectors, given.distractors, vocabulary, labels=given.labels
        )
    )  # fmt: skip
    assert names.verdict[:2] == [DIAGNOSIS, NAMED] and names.word[0] == -1


# ---- published methods


@pytest.mark.parametrize("method", ["decoder", "legacy", "semanticlens", "wpmi", "supervised"])
def test_published_methods_find_planted_latents_and_abstain_from_nothing(method):
    codes, pooled = planted()
    decoder = np.concatenate([basis()[:6], basis()[20:26]])
    labels = {word: (codes[:, i] > 0).astype(float) for i, word in enumerate(words_of())}
    names = naming_methods()[method].run(
        NamingEvidence(codes, pooled, *vectors(), words(), decoder=decoder, labels=labels)
    )
    assert (names.word[:6] == np.arange(6)).mean() >= 0.8
    assert names.word[10] == -1 and names.reason[10] == "dead"
    named = (names.word >= 0).sum()
    assert named == (6 if method == "legacy" else 11)
    assert names.named_under_permutation == named


def words_of() -> list[str]:
    return [concept.id for concept in words().concepts]


def test_without_a_decoder_in_the_space_of_words_nothing_is_named():
    for method in ("decoder", "legacy"):
        names = naming_methods()[method].run(evidence())
        assert (names.word == -1).all() and "space of the words" in names.reason[0]


def test_soft_wpmi_by_hand():
    from dermaudit.concepts.naming.methods.wpmi import soft_wpmi

    codes = np.array([[3.0, 0.0], [1.0, 2.0]])
    pooled, concepts = np.eye(2), np.eye(2)
    vocabulary = Vocabulary("v", tuple(Concept(w, "artifact", (w,)) for w in "ab"), ("{}",), ())
    found = soft_wpmi(NamingEvidence(codes, pooled, concepts, np.zeros((0, 2)), vocabulary))
    z = 1 / (1 + np.exp(-10.0))  # softmax of (10, 0)
    table = np.array([[z, 1 - z], [1 - z, z]])

    def row(order):
        return sum(
            np.log(1 + share * (table[i] - 1) + 1e-7)
            for share, i in zip((0.998, 0.97), order, strict=True)
        )

    rows = np.array([row((0, 1)), row((1, 0))])
    expected = rows - np.log(np.exp(rows).mean(0))
    np.testing.assert_allclose(found, expected)


# ---- judging


def judged(n: int = 4000):
    """Two concepts that exclude each other; latent 0 is the first, latent 1 both alike, latent 2 neither."""
    rng = np.random.default_rng(5)
    kind = rng.integers(0, 3, n)
    a, b = (kind == 0).astype(float), (kind == 1).astype(float)
    noise = rng.random((n, 3))
    codes = np.stack([3 * a, 1.5 * (a + b), np.zeros(n)], 1) + noise
    labels = {"a": a, "b": b, "rare": np.r_[np.ones(3), np.zeros(n - 3)]}
    return Judge(codes, labels, np.arange(n) // 2, mistaken_for={"b": {"a"}})


def test_judging_by_hand():
    judge = judged()
    assert judge.judged == ["a", "b"] and judge.of(0, "rare") is None
    right, wrong = judge.of(0, "a"), judge.of(0, "b")
    assert not right.wrong and right.better == "a" and right.auprc == right.best_auprc > 0.99
    assert wrong.wrong and wrong.better == "a"
    assert wrong.wrong_tolerant  # worse than chance is wrong in every sense
    # A latent that cannot tell them apart is neither one's worse.
    assert not judge.of(1, "a").wrong and not judge.of(1, "b").wrong
    assert judge.best(0) == "a" and judge.best(0, among={"b"}) == "b"


def test_a_clear_difference_is_wrong_although_its_interval_is_wide():
    rng = np.random.default_rng(0)
    a = np.r_[np.ones(6), np.zeros(34)]
    b = np.r_[np.ones(4), np.zeros(2), np.ones(2), np.zeros(32)]
    codes = np.r_[np.ones(4), np.full(2, 0.9), rng.random(34) * 0.95][:, None]
    found = Judge(codes, {"a": a, "b": b}, np.arange(40)).of(0, "b")
    assert found.wrong and found.better == "a"


def test_risk_figures_by_hand():
    answers = Answers()
    for concept, score, right in (("a", 0.9, True), ("a", 0.8, False), ("b", 0.6, True), ("c", 0.5, None)):  # fmt: skip
        answers.add(concept, score, right)
    answers.tolerant = [False, False, False]
    found = risk_figures(answers, probabilities=True)
    assert answers.count == 4 and found["n_judged"] == 3
    assert found["wrong"] == pytest.approx(1 / 3) and found["wrong_tolerant"] == 0
    assert found["risk_coverage"]["0.3"] == 0 and found["risk_coverage"]["1"] == pytest.approx(
        1 / 3
    )
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.16) / 3)
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.4) / 3)
    assert risk_figures(Answers(), probabilities=True)["wrong"] is None


# ---- in a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("named") / "r", world(1500, seed=4))
    name_run(run, WORDS, TOWER)
    return run


def test_verdicts_are_written_and_counted(run):
    from dermaudit.sae.run_data import RunData

    figures = json.loads(run.files.naming.read_text())
    rows = RunData(run).concepts
    assert sum(figures["verdicts"].values()) == len(rows)
    for verdict, count in figures["verdicts"].items():
        assert sum(row["verdict"] == verdict for row in rows) == count
    ruler = next(row for row in rows if row["latent"] == RULER)
    assert ruler["verdict"] == "named" and ruler["p_correct"] > 0.8 and ruler["wrong"] is False


def test_a_stricter_risk_names_less(run, tmp_path):
    import shutil

    from dermaudit.run.directory import open_run

    shutil.copytree(run.path, tmp_path / "r")
    figures = name_run(open_run(tmp_path / "r"), WORDS, TOWER, NameOptions(risk=0.0))
    assert figures["named"] == 0 and figures["verdicts"]["one of a set"] == 0


def test_bench_names_compares_all_methods(run, monkeypatch, capsys):
    from dermaudit.bench import names as bench
    from dermaudit.bench.options import NamesOptions

    monkeypatch.setattr(bench, "tower_of", lambda run, threads: TOWER)
    found = bench.compare_namers(NamesOptions(run=run.path))["methods"]
    assert set(found) == set(naming_methods())
    fused_figures = found["fused"]
    assert fused_figures["n_judged"] >= 1 and fused_figures["wrong"] == 0
    assert fused_figures["named_under_permutation"] == 0 and fused_figures["ece"] is not None
    assert found["wpmi"]["coverage"] == 1 and found["wpmi"]["ece"] is None
    json.dumps(found)
    assert "judged by labels of test images" in capsys.readouterr().err
