"""Tokens of two models are matched by what they are, wherever prompts stand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.evaluation.tiny_setup import tiny_hooked_vit
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.activations.matched_source import MatchedSource, matching_positions
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

GRID = (1, 3)
PLAIN = TokenLayout.of_grid(GRID, ("class", "register"))
# prompts behind the class token and at the end, the register behind the patches, which stand
# in another order
ADAPTED = TokenLayout(
    GRID,
    ("class", "prompt", "patch", "patch", "patch", "register", "prompt"),
    (-1, -1, 2, 0, 1, -1, -1),
)


def _source(layout, hook="blocks.0.hook_resid_post", kind="all"):
    return MatchedSource.of(ActivationSource(hook, kind), layout)


def test_tokens_are_found_by_role_and_place():
    assert matching_positions(PLAIN, ADAPTED).tolist() == [0, 5, 3, 4, 2]
    assert matching_positions(PLAIN, PLAIN).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"reads register token 0, which is none of TokenLayout"):
        matching_positions(PLAIN, TokenLayout.of_grid(GRID, ("class",)))


def test_a_prompted_model_shows_the_same_tokens_and_keeps_its_prompts():
    source, cfg = _source(PLAIN), SimpleNamespace(tokens=ADAPTED)
    value = torch.arange(14.0).view(1, 7, 2)
    read = source.select(cfg, value)
    assert read[0, :, 0].tolist() == [0, 10, 6, 8, 4]
    new = source.replace(cfg, value, -read)
    assert new[0, :, 0].tolist() == [0, 2, -4, -6, -8, -10, 12]
    assert source.layout(cfg, value).roles == PLAIN.roles
    # prompts of the plain model are left alone as well
    assert _source(ADAPTED).wanted.roles == ("class", "patch", "patch", "patch", "register")


def test_another_grid_is_refused():
    model = tiny_hooked_vit()
    with pytest.raises(
        ValueError, match=r"reads patches of a grid \(1, 3\), but tiny has \(4, 4\)"
    ):
        _source(PLAIN).check_model(model)
