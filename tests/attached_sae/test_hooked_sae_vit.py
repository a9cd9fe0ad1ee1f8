"""SAEs in the place of hook points, as in SAELens's ``HookedSAETransformer``."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from torch import Tensor

from tests.hooked_vit.conftest import Case
from vit_sae_plugin.attached_sae import HookedSAEViT
from vit_sae_plugin.hooked_vit import HookNameError

HOOKS = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"]


def make_sae(d_in: int, hook: str, seed: int = 0) -> SAE:
    config = StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, dtype="float32", device="cpu")
    config.metadata.hook_name = hook
    sae = StandardSAE(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / d_in**0.5
    return sae


def splice_by_hand(sae: SAE):
    def splice(value: Tensor, hook: object) -> Tensor:
        flat = value.flatten(2)
        return sae.decode(sae.encode(flat)).view_as(value)

    return splice


@pytest.fixture
def model(case: Case) -> HookedSAEViT:
    return HookedSAEViT.from_hooked_vit(case.hooked)


@pytest.mark.parametrize("hook", HOOKS)
@torch.no_grad()
def test_splicing_equals_the_edit_by_hand(case: Case, model: HookedSAEViT, hook: str):
    sae = make_sae(model.hook_width(hook), hook)
    plain = model(case.pixels)
    wanted = case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, splice_by_hand(sae))])
    assert (wanted - plain).abs().max() > 1e-3
    torch.testing.assert_close(model.run_with_saes(case.pixels, saes=[sae]), wanted)
    with_error = model.run_with_saes(case.pixels, saes=sae, use_error_term=True)
    torch.testing.assert_close(with_error, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(case.pixels), plain)
    assert model.acts_to_saes == {}


@torch.no_grad()
def test_the_saes_own_hooks_are_read_and_edited(case: Case, model: HookedSAEViT):
    hook = "blocks.0.hook_resid_post"
    sae = make_sae(model.cfg.d_model, hook)
    output, cache = model.run_with_cache_with_saes(case.pixels, saes=[sae])
    latents = sae.encode(cache["blocks.1.hook_resid_pre"] * 0 + cache[f"{hook}.hook_sae_input"])
    torch.testing.assert_close(cache[f"{hook}.hook_sae_acts_post"], latents)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], cache[f"{hook}.hook_sae_output"])
    assert torch.equal(output, model.run_with_saes(case.pixels, saes=[sae]))

    def silence(latents: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(latents)

    edited = model.run_with_hooks_with_saes(
        case.pixels, saes=[sae], fwd_hooks=[(f"{hook}.hook_sae_acts_post", silence)]
    )
    constant = sae.b_dec.expand(2, model.cfg.n_tokens, -1)
    wanted = model.run_with_hooks(case.pixels, fwd_hooks=[(hook, lambda value, hook: constant)])
    torch.testing.assert_close(edited, wanted)


@torch.no_grad()
def test_permanent_and_nested_splices(open_clip_case: Case):
    model, pixels = HookedSAEViT.from_hooked_vit(open_clip_case.hooked), open_clip_case.pixels
    hook = HOOKS[0]
    first, second = make_sae(32, hook, seed=1), make_sae(32, hook, seed=2)
    plain = model(pixels)
    model.add_sae(first)
    with_first = model(pixels)
    with model.saes([second]):
        assert not torch.equal(model(pixels), with_first)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(pixels), model(pixels))
    assert torch.equal(model(pixels), with_first)
    assert torch.equal(
        model(pixels, stop_at_layer=1), open_clip_case.hooked(pixels, stop_at_layer=1)
    )
    assert list(model.state_dict()) == list(open_clip_case.bare.state_dict())
    model.reset_saes()
    assert torch.equal(model(pixels), plain)


@torch.no_grad()
def test_splices_are_gone_after_an_exception(open_clip_case: Case):
    model, pixels = HookedSAEViT.from_hooked_vit(open_clip_case.hooked), open_clip_case.pixels
    plain = model(pixels)
    sae = make_sae(32, HOOKS[0])
    with pytest.raises(ZeroDivisionError), model.saes([sae]):
        raise ZeroDivisionError
    assert torch.equal(model(pixels), plain)


def test_saes_that_do_not_fit(open_clip_case: Case):
    model = HookedSAEViT.from_hooked_vit(open_clip_case.hooked)
    with pytest.raises(ValueError, match=r"is 32 wide, but the SAE.s d_in is 16"):
        model.add_sae(make_sae(16, HOOKS[0]))
    with pytest.raises(HookNameError, match=r"near names: blocks\.1\.hook_resid_post"):
        model.add_sae(make_sae(32, "blocks.1.hook_resid_pst"))
    with pytest.raises(ValueError, match="token ids"):
        model.add_sae(make_sae(32, HOOKS[0]), exclude_special_tokens=True)
