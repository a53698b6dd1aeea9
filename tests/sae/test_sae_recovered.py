"""Zero-shot recovered: by hand, against sklearn and torch, and what may not be claimed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.sae.evaluation import recovered_report
from dermaudit.sae.evaluation.recovered import Ablation, recovered


def classifier(weight, scale: float = 100.0) -> SimpleNamespace:
    """What is used of a ZeroShot."""
    weight = torch.nn.functional.normalize(torch.as_tensor(np.asarray(weight)).float(), dim=1)
    return SimpleNamespace(
        classes=[f"c{i}" for i in range(len(weight))], weight=weight, logit_scale=scale
    )


def clusters(n: int = 300, seed: int = 0, spread: float = 0.1):
    """Unit rows around a common mean and one of three class vectors; labels of them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    weight = np.eye(3, 6) + 1.0
    x = weight[truth] + spread * rng.normal(size=(n, 6))
    return x / np.linalg.norm(x, axis=1, keepdims=True), weight, [f"c{i}" for i in truth]


def report(x, x_hat, labels, weight, scale=100.0, groups=None, mean=None, n_draws=50):
    return recovered_report(
        classifier(weight, scale),
        x,
        x_hat,
        labels,
        np.arange(len(x)) if groups is None else groups,
        Ablation(x.mean(0) if mean is None else mean),
        n_draws=n_draws,
    )


def test_recovered_equals_a_computation_by_hand():
    assert recovered(0.9, 0.7, 0.5) == pytest.approx(0.5)
    assert recovered(0.2, 0.3, 0.7) == pytest.approx(0.8)  # of a loss
    assert recovered(0.9, 0.4, 0.5) == pytest.approx(-0.25)  # worse than knowing nothing
    assert np.isnan(recovered(0.505, 0.7, 0.5))


def test_figures_equal_those_of_torch_and_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    x, weight, labels = clusters(spread=0.5)
    x_hat = x + 0.2 * np.random.default_rng(1).normal(size=x.shape)
    found = report(x, x_hat, labels, weight, scale=30.0)
    unit = torch.nn.functional.normalize
    w = unit(torch.from_numpy(weight), dim=1)
    truth = torch.tensor([int(label[1]) for label in labels])
    clean, sae = (30.0 * unit(torch.from_numpy(rows), dim=1) @ w.T for rows in (x, x_hat))
    ce, ce_clean = (torch.nn.functional.cross_entropy(logits, truth) for logits in (sae, clean))
    assert found["cross_entropy"]["value"] == pytest.approx(float(ce), abs=1e-5)
    assert found["cross_entropy"]["clean"] == pytest.approx(float(ce_clean), abs=1e-5)
    assert found["cross_entropy"]["zero"] == pytest.approx(np.log(3), abs=1e-6)
    assert found["accuracy"]["value"] == pytest.approx(
        float((sae.argmax(1) == truth).double().mean())
    )
    assert found["accuracy"]["zero"] == pytest.approx(1 / 3, abs=1e-6)  # no logit is the largest
    assert found["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(truth, sae.argmax(1)), abs=1e-6
    )
    kl = torch.nn.functional.kl_div(
        sae.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert found["kl"]["value"] == pytest.approx(float(kl), abs=1e-5)
    agreement = (sae.argmax(1) == clean.argmax(1)).double().mean()
    assert found["top1_agreement"]["value"] == pytest.approx(float(agreement), abs=1e-6)
    ablated = found["cross_entropy"]["control"]
    assert found["cross_entropy_recovered"]["value"] == pytest.approx(
        (float(ce) - ablated) / (float(ce_clean) - ablated), abs=1e-4
    )
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]


def test_same_rows_recover_everything_and_the_mean_nothing():
    x, weight, labels = clusters()
    same = report(x, 3.0 * x, labels, weight)  # a length the classifier does not see
    for name in ("accuracy_recovered", "cross_entropy_recovered", "top1_agreement"):
        assert same[name]["value"] == pytest.approx(1.0, abs=1e-6)
    assert same["kl"]["value"] == pytest.approx(0.0, abs=1e-9)
    mean = report(x, np.tile(x.mean(0), (len(x), 1)), labels, weight)
    assert mean["accuracy_recovered"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert mean["kl"]["value"] == pytest.approx(mean["kl"]["control"], abs=1e-6)
    # Zero ablation flatters: the mean embedding, which knows nothing, would "recover" something else.
    assert mean["cross_entropy_recovered"]["control"] != pytest.approx(0.0, abs=1e-3)


def test_logit_scale_is_applied():
    # Without it (scale 1) the cross-entropies of all ways lie within .1 of ln 3.
    x, weight, labels = clusters()
    x_hat = x + 0.1 * np.random.default_rng(1).normal(size=x.shape)
    found, bare = (report(x, x_hat, labels, weight, scale) for scale in (100.0, 1.0))
    assert found["cross_entropy"]["control"] - found["cross_entropy"]["clean"] > 0.5
    assert bare["cross_entropy"]["control"] - bare["cross_entropy"]["clean"] < 0.1
    assert found["logit_scale"] == 100.0


def test_recovered_is_undefined_if_there_is_nothing_to_recover():
    x, weight, _ = clusters()
    labels = ["c0"] * len(x)
    found = report(x, x, labels, weight[:1])  # one class: every way is right
    assert found["accuracy"]["clean"] == found["accuracy"]["control"] == 1.0
    assert found["accuracy_recovered"]["value"] is None
    assert found["cross_entropy_recovered"]["low"] is None


def test_labels_that_are_not_a_class_are_left_out():
    x, weight, labels = clusters()
    some = [*labels[:100], *[None] * 100, *["other"] * 100]
    found = report(x, x, some, weight)
    assert found["accuracy"]["n"] == 100 and found["kl"]["n"] == 300
    with pytest.raises(EvidenceError, match="none of the 300 images has a label among"):
        report(x, x, ["other"] * 300, weight)


def test_rows_that_are_not_finite_are_left_out():
    x, weight, labels = clusters()
    broken = x.copy()
    broken[5] = np.nan
    found = report(x, broken, labels, weight, mean=x.mean(0))
    assert found["accuracy"]["n"] == 299 and found["kl"]["value"] == pytest.approx(0, abs=1e-9)


def test_mismatched_shapes_are_refused():
    x, weight, labels = clusters()
    with pytest.raises(UserInputError, match="299 labels"):
        report(x, x, labels[1:], weight)


def test_report_works_with_a_real_classifier():
    """The bundled model's own zero-shot head on its own text tower."""
    from dermaudit.towers import ZeroShot, load_model
    from dermaudit.towers.prompts import ham_classes

    head = ZeroShot(load_model("phantom-vit"), ham_classes())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, head.weight.shape[1]))
    labels = [head.classes[i % 7] for i in range(40)]
    found = recovered_report(head, x, x, labels, np.arange(40), Ablation(x.mean(0)), n_draws=20)
    logits = head.logits(torch.nn.functional.normalize(torch.from_numpy(x), dim=1).float())
    truth = torch.tensor([i % 7 for i in range(40)])
    expected = torch.nn.functional.cross_entropy(logits, truth)
    assert found["cross_entropy"]["value"] == pytest.approx(float(expected), rel=1e-4)
