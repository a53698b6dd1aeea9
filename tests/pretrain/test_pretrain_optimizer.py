"""Muon: its orthogonal step, AdamW for the rest, and a quadratic that it has to solve."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dermaudit.pretrain.training.optimizer import Muon, make_optimizer, orthogonalise


def seeded(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_orthogonalise_keeps_the_directions_and_levels_their_lengths(rows, columns, seed):
    matrix = seeded(seed, rows, columns)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix) @ vt.T
    off = core - torch.diag(torch.diagonal(core))
    assert off.abs().max() < 1e-3
    strong = s > 0.05 * s[0]  # five steps lift a tiny singular value only part of the way
    assert (torch.diagonal(core)[strong] > 0.4).all() and (torch.diagonal(core) < 1.3).all()


def test_muon_one_step_by_hand():
    # A gradient of equal singular values is its own direction up to a factor of the iteration, and
    # the step's size does not depend on the gradient's.
    steps = []
    for size in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(2, 2))
        optimizer = Muon([{"params": [weight], "weight_decay": 0.0, "matrices": True}], lr=0.1)
        weight.grad = size * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        optimizer.step()
        steps.append(weight.detach().clone())
    torch.testing.assert_close(steps[0], steps[1])
    level = float(-steps[0][0, 1]) / (0.1 * 0.2 * 2**0.5)
    assert 0.65 < level < 1.25 and steps[0][0, 0].abs() < 1e-6


def test_muon_uses_nesterov_momentum():
    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = Muon([{"params": [weight], "weight_decay": 0.0, "matrices": True}], lr=1.0)
    first, second = seeded(0, 3, 4), seeded(1, 3, 4)
    for grad in (first, second):
        weight.grad = grad
        before = weight.detach().clone()
        optimizer.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    expected = 0.2 * 2 * orthogonalise(0.05 * second + 0.95 * momentum)
    torch.testing.assert_close(before - weight.detach(), expected)


def test_parameters_that_are_no_matrices_take_the_step_of_adamw():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(5, 4)
            self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
            self.norm = nn.LayerNorm(4)

    torch.manual_seed(0)
    mine = Mixed()
    other = copy.deepcopy(mine)
    pair = [make_optimizer(kind, [m], 0.01, 0.1) for kind, m in (("muon", mine), ("adamw", other))]
    for step in range(5):
        for module, optimizer in zip((mine, other), pair, strict=True):
            for i, p in enumerate(module.parameters()):
                p.grad = seeded(100 * step + i, *p.shape)
            optimizer.step()
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_muon_takes_linear_layers_and_convolutions_that_mix():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 2)
    )
    optimizer = make_optimizer("muon", [net], 0.1, 0.0)
    taken = [p.shape for g in optimizer.param_groups if g["matrices"] for p in g["params"]]
    assert taken == [net[0].weight.shape, net[3].weight.shape]
    everything = [p for g in optimizer.param_groups for p in g["params"]]
    assert len({id(p) for p in everything}) == len(everything) == len(list(net.parameters()))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_least_squares_problem_is_solved(kind):
    torch.manual_seed(0)
    x, truth = seeded(0, 256, 8), seeded(1, 4, 8)
    layer = nn.Linear(8, 4, bias=False)
    optimizer = make_optimizer(kind, [layer], 0.05, 0.0)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 300)
        loss = ((layer(x) - x @ truth.T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-2
