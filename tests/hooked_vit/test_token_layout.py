"""``TokenLayout``: which token is what, wherever it stands."""

from __future__ import annotations

import math

import pytest
import torch

from tests.hooked_vit.conftest import Case
from tests.tiny_models import tiny_timm
from vit_sae_plugin.hooked_vit import HookedViT, TokenLayout

# Class token, a prompt, four patches out of order, a register, a prompt.
MIXED = TokenLayout(
    (2, 2),
    ("class", "prompt", "patch", "patch", "patch", "patch", "register", "prompt"),
    (-1, -1, 3, 0, 1, 2, -1, -1),
)


def test_positions_by_hand():
    assert MIXED.positions("all").tolist() == list(range(8))
    assert MIXED.positions("cls").tolist() == [0]
    assert MIXED.positions("patches").tolist() == [3, 4, 5, 2], "row-major, wherever they stand"
    assert MIXED.role_positions("prompt", "register").tolist() == [1, 6, 7]
    assert MIXED.n_prefix_tokens == 2
    assert len(MIXED) == 8
    assert MIXED.row_and_column.tolist()[2:6] == [[1, 1], [0, 0], [0, 1], [1, 0]]
    assert MIXED.row_and_column.tolist()[:2] == [[-1, -1]] * 2


def test_values_go_to_their_places_on_the_grid():
    values = torch.arange(16.0).view(2, 8)
    assert MIXED.on_grid(values).tolist() == [[[3, 4], [5, 2]], [[11, 12], [13, 10]]]
    some = MIXED.select([0, 4, 2])
    assert some.roles == ("class", "patch", "patch")
    placed = some.on_grid(torch.tensor([7.0, 8.0, 9.0])).flatten().tolist()
    assert [None if math.isnan(value) else value for value in placed] == [None, 8, None, 9]
    with pytest.raises(ValueError, match="values has 8 tokens in its last axis; want 3"):
        some.on_grid(values)


def test_a_selection_of_patches_has_a_layout_of_its_own():
    patches = MIXED.select(MIXED.positions("patches"))
    assert patches == TokenLayout.of_grid((2, 2))
    assert patches.positions("patches").tolist() == [0, 1, 2, 3]
    with pytest.raises(
        ValueError, match="'cls', but there is no class token among these 4 tokens; want 'all' or"
    ):
        patches.positions("cls")


def test_hooks_with_fewer_tokens():
    layout = TokenLayout.of_grid((2, 3), ("class",), ("prompt", "prompt"))
    assert layout.at_hook((5, 9, 4)) == layout
    assert layout.at_hook((5, 7, 4)) == TokenLayout.of_grid((2, 3), ("class",))
    assert layout.at_hook((5, 6, 2, 2)) == TokenLayout.of_grid((2, 3))
    pooled = layout.at_hook((5, 4))
    assert pooled.roles == ("image",)
    assert torch.isnan(pooled.on_grid(torch.ones(2, 1))).all()
    with pytest.raises(ValueError, match="8 tokens; want 9 as in the blocks, or 6 patches"):
        layout.at_hook((5, 8, 4))


@pytest.mark.parametrize(
    ("roles", "numbers", "message"),
    [
        (("patch", "patch"), (0,), "2 tokens and patch_numbers 1"),
        (("patch", "cls"), (0, -1), r"roles holds \['cls'\]; want class, register"),
        (("patch", "class"), (0, 1), "just the tokens that are no patches"),
        (("patch", "patch"), (0, 0), "want different ones in 0 to 1"),
        (("patch", "patch"), (0, 2), "want different ones in 0 to 1"),
    ],
)
def test_contradictions_are_refused(roles, numbers, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout((1, 2), roles, numbers)


def test_every_family_tells_class_token_from_registers(case: Case):
    cfg = case.hooked.cfg
    fronts = {
        "transformers_dinov2_registers": ("class", *["register"] * 3),
        **dict.fromkeys(
            (
                "timm_registers",
                "timm_dinov3",
                "transformers_dinov3",
                "transformers_dinov3_gated",
            ),
            ("class", "register", "register"),
        ),
        **dict.fromkeys(
            ("timm_distilled", "transformers_deit", "transformers_deit_taught"),
            ("class", "register"),
        ),
        **dict.fromkeys(("transformers_siglip", "transformers_siglip_vision", "timm_siglip"), ()),
    }
    front = fronts.get(case.family, ("class",))
    assert cfg.tokens == TokenLayout.of_grid(cfg.grid, front)
    assert cfg.tokens == cfg.tokens.at_hook(case.hooked(case.pixels, stop_at_layer=1).shape)
    assert (cfg.n_prefix_tokens, cfg.n_tokens) == (len(front), len(front) + math.prod(cfg.grid))


def test_registers_without_class_token_are_no_class_token():
    bare = tiny_timm(class_token=False, reg_tokens=4, global_pool="avg")
    tokens = HookedViT.from_module(bare).cfg.tokens
    assert tokens.roles[:5] == (*["register"] * 4, "patch")
    with pytest.raises(ValueError, match="no class token"):
        tokens.positions("cls")
