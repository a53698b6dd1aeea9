"""Stage 1: block masks with exact counts, visible cells only, targets in order, gradient where it should be."""

from __future__ import annotations

import copy
import math
import random

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dermaudit.errors import ForeignArtifactError
from dermaudit.pretrain.losses.masked import MaskedLatent, Teacher, paint, split_cells
from dermaudit.pretrain.losses.masking import block_mask, block_masks
from dermaudit.pretrain.recipe import load_recipe
from dermaudit.pretrain.tokens import TokenReader
from dermaudit.pretrain.training.teachers import make_teacher, resize_grid
from dermaudit.towers import load_model
from dermaudit.towers.loading.panderm import PanDermVisual

# ---- masks


@given(st.integers(2, 16), st.integers(2, 16), st.floats(0, 1), st.integers(0, 9999))
@settings(max_examples=150, deadline=None)
def test_block_mask_exact_count(rows, columns, share, seed):
    count = round(share * rows * columns)
    mask = block_mask((rows, columns), count, random.Random(seed))
    assert mask.shape == (rows * columns,) and int(mask.sum()) == count


def test_block_mask_of_the_published_base_recipe():
    shares = []
    for seed in range(40):
        mask = torch.from_numpy(block_mask((14, 14), 98, random.Random(seed))).view(14, 14)
        assert int(mask.sum()) == 98
        same = (mask[1:] == mask[:-1]).float().mean() + (mask[:, 1:] == mask[:, :-1]).float().mean()
        shares.append(float(same) / 2)
    # Blocks: a neighbour mostly shares its cell's fate; of cells drawn singly half would.
    assert min(shares) > 0.7


def test_block_masks_a_row_depends_on_its_seed_alone():
    masks = block_masks([5, 6, 7], (6, 6), 0.4)
    assert masks.shape == (3, 36) and (masks.sum(1) == 14).all()
    assert torch.equal(block_masks([7, 5], (6, 6), 0.4), masks[[2, 0]])
    assert not torch.equal(masks[0], masks[1])
    # Something is always visible and something always masked.
    assert int(block_masks([0], (2, 2), 0.99).sum()) == 3
    assert int(block_masks([0], (2, 2), 0.01).sum()) == 1


def test_split_cells_order_is_invertible():
    mask = block_masks(list(range(5)), (4, 4), 0.5)
    cells = split_cells(mask)
    assert cells.visible.shape == cells.masked.shape == (5, 8)
    for row in range(5):
        assert not mask[row, cells.visible[row]].any() and mask[row, cells.masked[row]].all()
        assert (cells.visible[row].diff() > 0).all() and (cells.masked[row].diff() > 0).all()
    values = torch.randn(5, 16)
    ordered = values.gather(1, cells.order)
    assert torch.equal(torch.empty_like(values).scatter(1, cells.order, ordered), values)


def test_paint_only_the_masked_cells():
    x = torch.rand(2, 3, 16, 16) * 255
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 1 of 4 × 4 cells of 4 px
    painted = paint(x, mask)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 4:8] = True
    torch.testing.assert_close(painted[0][:, inside], x[0].mean((1, 2))[:, None].expand(3, 16))
    assert torch.equal(painted[0][:, ~inside], x[0][:, ~inside])
    assert torch.equal(painted[1], x[1])


# ---- towers


def native(**options) -> nn.Module:
    torch.manual_seed(0)
    return open_clip.model.CLIP(
        16,
        {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, **options},
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    ).visual


def timm_vit() -> nn.Module:
    torch.manual_seed(0)
    visual = open_clip.timm_model.TimmModel("vit_tiny_patch16_224", 16, pool="avg", proj="linear")
    visual.trunk.set_input_size((64, 64))
    visual.image_size = (64, 64)
    return visual


def xcit() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.timm_model.TimmModel(
        "xcit_nano_12_p16_224", 16, image_size=64, pool="avg", proj="linear"
    )


def panderm() -> nn.Module:
    torch.manual_seed(0)
    return PanDermVisual(64, 16, 32, 2, 2, 64, 16)


TOWERS = {
    "native": (native, 32),
    "timm": (timm_vit, 64),
    "panderm": (panderm, 64),
    "xcit": (xcit, 64),
}
DROPPING = ("native", "timm", "panderm")


@pytest.mark.parametrize("name", TOWERS)
def test_reader_grid_and_the_tower_own_output(name):
    make, size = TOWERS[name]
    visual = make().eval()
    reader, x = TokenReader(visual, size), torch.randn(2, 3, size, size)
    assert reader.grid == (4, 4) and reader.can_drop == (name in DROPPING)
    with torch.no_grad():
        seen = reader.read(visual, x)
        torch.testing.assert_close(seen.embedding, visual(x), rtol=0, atol=0)
    assert seen.cells.shape == (2, 16, reader.d) and seen.first.shape[1] == 1
    assert not [hook for m in visual.modules() for hook in m._forward_hooks]


@pytest.mark.parametrize("name", ["native", "timm", "panderm"])
def test_reader_with_all_cells_kept_equals_the_whole_tower(name):
    make, size = TOWERS[name]
    visual = make().eval()
    reader, x = TokenReader(visual, size), torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole = reader.read(visual, x)
        kept = reader.read(visual, x, keep=torch.arange(16).expand(2, -1))
        torch.testing.assert_close(kept.cells, whole.cells)
        torch.testing.assert_close(kept.embedding, whole.embedding)
        some = split_cells(block_masks([1, 2], (4, 4), 0.5)).visible
        part = reader.read(visual, x, keep=some)
        assert part.cells.shape[1] == 8
        # Masked pixels are not seen at all.
        other = x.clone()
        for row in range(2):
            for cell in range(16):
                if cell not in some[row]:
                    r, c = divmod(cell, 4)
                    step = size // 4
                    other[row, :, r * step : (r + 1) * step, c * step : (c + 1) * step] = 9.0
        torch.testing.assert_close(reader.read(visual, other, keep=some).cells, part.cells)
        assert not torch.allclose(reader.read(visual, other).cells, whole.cells)


@pytest.mark.parametrize("name", ["native", "panderm"])
def test_project_the_mean_token_is_the_embedding(name):
    make, size = TOWERS[name]
    visual = (native(pool_type="avg") if name == "native" else make()).eval()
    reader, x = TokenReader(visual, size), torch.randn(2, 3, size, size)
    with torch.no_grad():
        seen = reader.read(visual, x)
        projected = reader.project(visual, seen.cells.mean(1, keepdim=True))[:, 0]
        torch.testing.assert_close(projected, seen.embedding, rtol=1e-4, atol=1e-5)


# ---- the objective


def objective_for(name="native", **options):
    make, size = TOWERS[name]
    student = make()
    return student, MaskedLatent(student, size, **options), torch.randn(3, 3, size, size)


MASK = block_masks([1, 2, 3], (4, 4), 0.5)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_masked_gradient_flows_where_it_should(name, kind):
    teacher = None if kind == "ema" else Teacher(native().eval(), 32)
    student, objective, x = objective_for(name, teacher=teacher)
    teacher_module = objective.teacher
    before = {k: v.clone() for k, v in teacher_module.state_dict().items()}
    x.requires_grad_(True)
    loss = objective.train()(student.train(), x, MASK)
    assert loss.shape == (3,) and (loss >= 0).all() and (loss <= 2).all()
    loss.mean().backward()
    assert all(p.grad is None for p in teacher_module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher_module.state_dict().items())
    for part in (objective.regressor, objective.predict, objective.norm):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), part
    seen = [p for n, p in student.named_parameters() if p.requires_grad and "head" not in n]
    assert sum(float(p.grad.abs().sum()) for p in seen if p.grad is not None) > 0
    if name in DROPPING:
        size = x.shape[-1]
        cells = x.grad.abs().sum(1).view(3, 4, size // 4, 4, size // 4).sum((2, 4)).flatten(1)
        assert (cells[MASK] == 0).all() and (cells[~MASK] > 0).all()


def test_masked_zero_on_a_perfect_prediction_and_two_on_its_opposite():
    student, objective, x = objective_for(teacher=Teacher(native().eval(), 32))
    cells = split_cells(MASK)
    with torch.no_grad():
        target = objective.targets(x, cells)
        assert float(objective.distance(target * 7, target, cells).abs().max()) < 1e-6
        assert float((objective.distance(-target, target, cells) - 2).abs().max()) < 1e-6


def test_masked_weights_by_hand():
    _, objective, x = objective_for(weights=(2.0, 0.0, 1.0))
    cells = split_cells(MASK)
    target = nn.functional.normalize(torch.randn(3, 17, 5), dim=-1)
    predicted = target.clone()
    predicted[:, 0] = -target[:, 0]  # the class token is wrong: 1 - cos = 2
    predicted[:, 1:9] = 3.0  # visible cells count for nothing
    expected = 2.0 * 2 / (2.0 + 8)
    found = objective.distance(predicted, target, cells)
    torch.testing.assert_close(found, torch.full((3,), expected), atol=1e-6, rtol=0)


def test_masked_targets_are_the_teacher_s_tokens_reordered():
    teacher_visual = native().eval()
    _, objective, x = objective_for(teacher=Teacher(teacher_visual, 32))
    cells = split_cells(MASK)
    got = objective.targets(x, cells)
    with torch.no_grad():
        tokens = teacher_visual.ln_post(teacher_visual.transformer(teacher_visual._embeds(x)))
        tokens = nn.functional.normalize(tokens @ teacher_visual.proj, dim=-1)
    torch.testing.assert_close(got[:, 0], tokens[:, 0])
    for row in range(3):
        torch.testing.assert_close(got[row, 1:9], tokens[row, 1:][~MASK[row]])
        torch.testing.assert_close(got[row, 9:], tokens[row, 1:][MASK[row]])


def test_teacher_stays_frozen_in_eval_and_out_of_the_state():
    _, objective, x = objective_for(teacher=Teacher(native(patch_dropout=0.5).train(), 32))
    objective.train()
    assert not any(m.training for m in objective.teacher.modules())
    assert not [k for k in objective.state_dict() if k.startswith("teacher")]
    torch.testing.assert_close(objective.teacher(x), objective.teacher(x), rtol=0, atol=0)
    objective.double()
    assert next(objective.teacher.parameters()).dtype == torch.float64


def test_teacher_sees_images_under_its_own_normalisation():
    # A teacher of another size and normalisation: what it sees of the same pixels is what it would.
    recipe = load_recipe(
        "phantom",
        ["masked.teacher=phantom-vit", "model.mean=[0.5, 0.4, 0.3]", "model.std=[0.25, 0.2, 0.3]"],
    )
    teacher = make_teacher(recipe, load_model("phantom-vit").release().visual)
    pixels = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.model.mean, recipe.model.std))
    tower = load_model("phantom-vit")
    theirs = [torch.tensor(tower.preprocess_config[k]).view(3, 1, 1) for k in ("mean", "std")]
    expected = Teacher(tower.release().visual, 96)((pixels - theirs[0]) / theirs[1])
    torch.testing.assert_close(teacher((pixels - mean) / std), expected, atol=1e-4, rtol=1e-4)


def test_resize_grid_a_14_px_teacher_gets_196_px():
    torch.manual_seed(0)
    teacher = open_clip.model.CLIP(
        16,
        {"image_size": 224, "patch_size": 14, "width": 32, "layers": 1, "head_width": 16},
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    ).visual.eval()
    before = teacher.positional_embedding.detach().clone()
    assert resize_grid(teacher, (14, 14), "t") == 196
    assert Teacher(teacher, 196)(torch.randn(1, 3, 224, 224)).shape == (1, 197, 16)
    # The class token's position is kept, the others are resampled from 16 x 16.
    after = teacher.positional_embedding.detach()
    assert torch.equal(after[0], before[0]) and after.shape == (197, 32)
    grid = before[1:].T.view(1, 32, 16, 16)
    small = nn.functional.interpolate(grid, size=(14, 14), mode="bicubic", antialias=True)
    torch.testing.assert_close(after[1:], small.flatten(2)[0].T, atol=1e-5, rtol=0)
    assert resize_grid(native(), (4, 4), "t") == 32


def test_resize_grid_one_that_cannot_be_resized_is_refused():
    with pytest.raises(ForeignArtifactError, match="teacher x has 4 x 4 cells, the student 6 x 6"):
        resize_grid(panderm(), (6, 6), "x")


def test_ema_by_hand_and_never_for_a_frozen_teacher():
    student, objective, x = objective_for()
    with torch.no_grad():
        for p in student.parameters():
            p.fill_(3.0)
        for p in objective.teacher.parameters():
            p.fill_(1.0)
    objective.update(student, 0.75)
    assert all(torch.allclose(p, torch.full_like(p, 1.5)) for p in objective.teacher.parameters())
    frozen = MaskedLatent(student, 32, teacher=Teacher(native().eval(), 32))
    before = copy.deepcopy(frozen.teacher.state_dict())
    frozen.update(student, 0.5)
    assert all(torch.equal(v, before[k]) for k, v in frozen.teacher.state_dict().items())


def test_ema_the_centre_follows_the_mean_token():
    student, objective, x = objective_for()
    cells = split_cells(MASK)
    objective.train()
    objective.targets(x, cells)
    with torch.no_grad():
        seen = objective.reader.read(objective.teacher, x)
        tokens = torch.cat([seen.first[:, :1], seen.cells], 1)
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
    objective.update(student, 0.9)
    torch.testing.assert_close(objective.centre, 0.1 * tokens.mean((0, 1)))
    objective.eval()
    objective.targets(x, cells)
    objective.update(student, 0.9)  # outside training nothing is noted
    torch.testing.assert_close(objective.centre, 0.1 * tokens.mean((0, 1)))


@pytest.mark.parametrize("name", ["native", "xcit"])
def test_masked_learns_to_predict(name):
    student, objective, x = objective_for(name, teacher=Teacher(native().eval(), 32))
    optimizer = torch.optim.AdamW(
        [p for m in (student, objective) for p in m.parameters() if p.requires_grad], lr=3e-3
    )
    student.train(), objective.train()
    losses = []
    for step in range(40):
        mask = block_masks([3 * step + i for i in range(3)], (4, 4), 0.5)
        loss = objective(student, x, mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and math.isfinite(losses[-1])
