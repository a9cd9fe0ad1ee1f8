"""Edits of latents: by hand, in places, through plain functions and context managers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from tests.hooked_vit.conftest import build_case
from tests.tiny_models import FAMILIES
from vit_sae_plugin.attached_sae import (
    AttachedSAE,
    HookedSAEViT,
    UpperRun,
    add,
    in_order,
    keep_only,
    remove,
    scale,
    set_to,
    splice_all,
)
from vit_sae_plugin.hooked_vit import TokenLayout

HOOK = "blocks.1.hook_resid_post"
LAYOUT = TokenLayout.of_grid((1, 2), ("class",))


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def pixels(model) -> Tensor:
    return Pictures(3).batch(model)


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (keep_only([2]), [[0, 0, 3], [0, 0, 6], [0, 0, 9]]),
        (remove([0, 2]), [[0, 2, 0], [0, 5, 0], [0, 8, 0]]),
        (set_to([1], 7), [[1, 7, 3], [4, 7, 6], [7, 7, 9]]),
        (scale([1], 2, "patches"), [[1, 2, 3], [4, 10, 6], [7, 16, 9]]),
        (add(np.array([1]), 1, "cls"), [[1, 3, 3], [4, 5, 6], [7, 8, 9]]),
        (keep_only([0], [(0, 1)]), [[1, 2, 3], [4, 5, 6], [7, 0, 0]]),
        (in_order(set_to([0], 1), scale([0], 5)), [[5, 2, 3], [5, 5, 6], [5, 8, 9]]),
        (in_order(scale([0], 5), set_to([0], 1)), [[1, 2, 3], [1, 5, 6], [1, 8, 9]]),
        (remove([]), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_edits_by_hand(edit, wanted):
    latents = torch.arange(1.0, 10).view(1, 3, 3)
    before = latents.clone()
    assert edit.on(LAYOUT, 3)(latents)[0].tolist() == wanted
    assert torch.equal(latents, before)


def test_what_is_not_there():
    with pytest.raises(ValueError, match="latent is 3; want 0 to 2"):
        remove([3]).on(LAYOUT, 3)
    with pytest.raises(ValueError, match="latent is -1; want 0 to 2"):
        remove([-1]).on(LAYOUT, 3)
    with pytest.raises(ValueError, match=r"patch \(1, 0\); want rows 0 to 0 and columns 0 to 1"):
        remove([0], [(1, 0)]).on(LAYOUT, 3)
    with pytest.raises(ValueError, match=r"patch \(0, 1\).* that the SAE reads"):
        remove([0], [(0, 1)]).on(LAYOUT.select([0, 1]), 3)
    with pytest.raises(ValueError, match="no class token"):
        remove([0], "cls").on(TokenLayout.of_grid((1, 2)), 3)


@torch.no_grad()
def test_all_ways_to_edit_agree(model, pixels):
    """Plain functions, hooks, the context manager: one SAE, then two at once."""
    low, high = (
        tiny_sae(model, "blocks.0.hook_resid_post", seed=1),
        tiny_sae(model, HOOK, "patches"),
    )
    edits = {low: scale(range(10), 3.0), high: remove(range(30))}
    on = {AttachedSAE(model, sae): edit for sae, edit in edits.items()}
    hooked = HookedSAEViT.from_hooked_vit(model)
    plain = model(pixels)
    for use_error_term in (True, False):
        wanted = splice_all(pixels, on, use_error_term=use_error_term)
        assert (wanted - plain).abs().max() > 1e-3
        with hooked.edited(edits, use_error_term=use_error_term) as edited:
            torch.testing.assert_close(edited(pixels), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(hooked(pixels), plain)
    one = next(iter(on))
    torch.testing.assert_close(
        splice_all(pixels, {one: edits[low]}), one.splice(pixels, edits[low])
    )
    with hooked.edited(dict.fromkeys(edits)) as edited:
        torch.testing.assert_close(edited(pixels), plain, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="on 2 models; want SAEs on one model"):
        splice_all(pixels, {one: None, AttachedSAE(tiny_hooked_vit(), low): None})


@torch.no_grad()
def test_a_splice_may_reach_some_tokens_only(model, pixels):
    attached = AttachedSAE(model, tiny_sae(model, HOOK))
    acts = attached.activations(pixels)
    whole = attached.reconstruct(acts)
    of_class = attached.reconstruct(acts, where="cls")
    assert torch.equal(of_class[:, 1:], acts[:, 1:])
    assert torch.equal(of_class[:, 0], whole[:, 0])
    of_patch = attached.reconstruct(acts, where=[(0, 1)])
    assert torch.equal(of_patch[:, 2], whole[:, 2])
    assert torch.equal(of_patch[:, :2], acts[:, :2])


@pytest.mark.parametrize(
    "hook",
    [
        "hook_embed",
        "hook_full_embed",
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_resid_mid",
        "blocks.1.hook_mlp_out",
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_post",
        "ln_final.hook_normalized",
        "hook_image_embed",
    ],
)
@torch.no_grad()
def test_what_lies_above_gives_what_the_whole_pass_gives(model, pixels, hook):
    attached = AttachedSAE(model, tiny_sae(model, hook))
    run = UpperRun(attached, pixels)
    torch.testing.assert_close(run.acts_btd, attached.activations(pixels))
    new = attached.reconstruct(run.acts_btd)
    wanted = attached.run_with_acts(pixels, new)
    assert (wanted - model(pixels)).abs().max() > 1e-3
    torch.testing.assert_close(run.output(new), wanted, rtol=1e-4, atol=1e-5)
    several = run.output(torch.cat([run.acts_btd, new]))
    torch.testing.assert_close(several[:3], model(pixels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(several[3:], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="for 4 images; want a multiple of 3"):
        run.output(new[[0, 1, 2, 0]])


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_what_lies_above_in_every_family(family):
    case = build_case(family)
    attached = AttachedSAE(case.hooked, tiny_sae(case.hooked, "blocks.0.hook_resid_post"))
    run = UpperRun(attached, case.pixels)
    new = attached.reconstruct(run.acts_btd)
    wanted = attached.run_with_acts(case.pixels, new)
    torch.testing.assert_close(run.output(new), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blocks_below_run_once(model, pixels):
    attached = AttachedSAE(model, tiny_sae(model, HOOK))
    calls = []
    mlp = model.bare_model.visual.transformer.resblocks[0].mlp
    handle = mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        run = UpperRun(attached, pixels)
        n_below = len(calls)
        for _ in range(3):
            run.output(run.acts_btd)
    finally:
        handle.remove()
    assert n_below == len(calls) == 1
