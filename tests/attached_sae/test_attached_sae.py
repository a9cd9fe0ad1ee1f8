"""An SAE on its model: what reaches it, what it gives back, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, Transcoder, TranscoderConfig
from torch import Tensor

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from tests.hooked_vit.conftest import build_case
from tests.tiny_models import FAMILIES
from vit_sae_plugin import AttachedSAE, HookedSAEViT
from vit_sae_plugin.activations import ActivationSource, EmbeddingStatistics
from vit_sae_plugin.attached_sae import RowCoder, keep_top_k, row_coder

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def pixels(model) -> Tensor:
    return Pictures(5).batch(model)


def _statistics(d_in: int) -> EmbeddingStatistics:
    return EmbeddingStatistics(torch.linspace(-1, 1, d_in), 0.5, "image", 10)


def _scaled_patch_sae(model):
    """An SAE of patches whose input is centred and scaled twice."""
    sae = tiny_sae(model, HOOK, "patches")
    sae.cfg.metadata.input_statistics = _statistics(sae.cfg.d_in).to_metadata()
    sae.cfg.metadata.input_scaling = 3.0
    return sae


@torch.no_grad()
def test_rows_are_centred_scaled_and_restored(model, pixels):
    sae = _scaled_patch_sae(model)
    attached = AttachedSAE(model, sae)
    _, cache = model.run_with_cache(pixels, names_filter=HOOK)
    patches = cache[HOOK][:, model.cfg.n_prefix_tokens :]
    assert torch.equal(attached.activations(pixels), patches)
    mean = torch.linspace(-1, 1, sae.cfg.d_in)
    wanted = sae.encode((patches - mean) * 0.5 * 3)
    torch.testing.assert_close(attached.latents(pixels), wanted)
    restored = sae.decode(wanted) / 3 / 0.5 + mean
    torch.testing.assert_close(attached.decode(wanted), restored)
    torch.testing.assert_close(attached.reconstruct(patches), restored)


@torch.no_grad()
def test_a_splice_edits_only_what_the_sae_reads(model, pixels):
    attached = AttachedSAE(model, _scaled_patch_sae(model))
    hooks = attached.fwd_hooks()
    seen: list[Tensor] = []
    model.run_with_hooks(
        pixels, fwd_hooks=[*hooks, (HOOK, lambda value, hook: seen.append(value.clone()))]
    )
    _, cache = model.run_with_cache(pixels, names_filter=HOOK)
    assert torch.equal(seen[0][:, 0], cache[HOOK][:, 0])
    wanted = attached.reconstruct(cache[HOOK][:, 1:])
    torch.testing.assert_close(seen[0][:, 1:], wanted)
    torch.testing.assert_close(
        attached.splice(pixels), attached.run_with_acts(pixels, wanted), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_hooked_sae_vit_splices_as_the_metadata_say(model, pixels):
    sae = _scaled_patch_sae(model)
    attached = AttachedSAE(model, sae)
    hooked = HookedSAEViT.from_hooked_vit(model)
    wanted = attached.splice(pixels)
    torch.testing.assert_close(hooked.run_with_saes(pixels, saes=[sae]), wanted)
    _, cache = hooked.run_with_cache_with_saes(pixels, saes=[sae])
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_acts_post"], attached.latents(pixels))

    def silence(latents: Tensor, hook: object = None) -> Tensor:
        return torch.zeros_like(latents)

    with hooked.saes([sae], use_error_term=True):
        edited = hooked.run_with_hooks(pixels, fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", silence)])
        torch.testing.assert_close(hooked(pixels), model(pixels), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        edited, attached.splice(pixels, silence, use_error_term=True), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_with_the_error_term_and_nothing_edited_the_output_stays(family):
    case = build_case(family)
    plain = case.hooked(case.pixels)
    sae = tiny_sae(case.hooked, "blocks.0.hook_resid_post")
    attached = AttachedSAE(case.hooked, sae)
    assert (attached.splice(case.pixels) - plain).abs().max() > 1e-3
    unedited = attached.splice(case.pixels, use_error_term=True)
    torch.testing.assert_close(unedited, plain, rtol=1e-5, atol=1e-6)
    through_latents = attached.splice(case.pixels, lambda latents: latents, use_error_term=True)
    torch.testing.assert_close(through_latents, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_heads_are_flattened_and_split_again(model, pixels):
    hook = "blocks.0.attn.hook_z"
    attached = AttachedSAE(model, identity_sae(model, hook))
    _, cache = model.run_with_cache(pixels, names_filter=hook)
    assert torch.equal(attached.activations(pixels), cache[hook].flatten(2))
    torch.testing.assert_close(attached.splice(pixels), model(pixels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_transcoder_reads_one_hook_and_writes_another(model, pixels):
    hook_in, hook_out = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    d_model = model.cfg.d_model
    torch.manual_seed(0)
    sae = Transcoder(
        TranscoderConfig(d_in=d_model, d_out=d_model, d_sae=40, apply_b_dec_to_input=False)
    )
    for parameter in sae.parameters():
        parameter.data.normal_(std=0.2)
    for name, value in ActivationSource.from_model(model, hook_in).to_metadata().items():
        setattr(sae.cfg.metadata, name, value)
    sae.cfg.metadata.hook_name_out = hook_out
    attached = AttachedSAE(model, sae)
    _, cache = model.run_with_cache(pixels, names_filter=hook_in)
    acts = sae.decode(sae.encode(cache[hook_in]))
    wanted = model.run_with_hooks(pixels, fwd_hooks=[(hook_out, lambda value, hook: acts)])
    torch.testing.assert_close(attached.splice(pixels), wanted)
    hooked = HookedSAEViT.from_hooked_vit(model)
    torch.testing.assert_close(hooked.run_with_saes(pixels, saes=[sae]), wanted)
    plain = model(pixels)
    for unedited in (
        attached.splice(pixels, use_error_term=True),
        hooked.run_with_saes(pixels, saes=[sae], use_error_term=True),
        hooked(pixels),
    ):
        torch.testing.assert_close(unedited, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["none", "layer_norm", "constant_norm_rescale"])
@torch.no_grad()
def test_an_edit_beside_the_error_term_adds_what_it_changes(model, pixels, rule):
    torch.manual_seed(0)
    d_in = model.hook_width(HOOK)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=24, normalize_activations=rule))
    sae.cfg.metadata.hook_name = HOOK
    attached = AttachedSAE(model, sae)
    acts = attached.activations(pixels)
    latents = attached.encode(acts)
    strongest = int(latents.sum((0, 1)).argmax())
    decoded = attached.decode(latents)
    attached.encode(acts)
    removed = latents.clone()
    removed[..., strongest] = 0
    wanted = acts + attached.decode(removed) - decoded
    assert (wanted - acts).abs().max() > 1e-3

    def remove(latents: Tensor) -> Tensor:
        latents = latents.clone()
        latents[..., strongest] = 0
        return latents

    found = attached.reconstruct(acts, remove, use_error_term=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_memory_rules_change_nothing(model, pixels, monkeypatch):
    attached = AttachedSAE(model, tiny_sae(model, HOOK))
    acts = attached.activations(pixels)
    whole = attached.reconstruct(acts)
    monkeypatch.setitem(row_coder.MAX_LATENT_VALUES, "cpu", 2 * acts.shape[1] * attached.d_sae)
    assert [part for part, _ in attached.encode_parts(acts)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 5),
    ]
    torch.testing.assert_close(attached.reconstruct(acts), whole)
    monkeypatch.setitem(row_coder.MAX_LATENT_VALUES, "cpu", 1)
    assert len(list(attached.rows.parts(3, 100))) == 3


def test_layouts(model):
    of_all = AttachedSAE(model, tiny_sae(model, HOOK)).layout
    assert of_all.roles[:2] == ("class", "patch")
    of_patches = AttachedSAE(model, tiny_sae(model, HOOK, "patches")).require_patches()
    assert of_patches.patch_numbers == tuple(range(model.cfg.grid[0] * model.cfg.grid[1]))
    pooled = AttachedSAE(model, tiny_sae(model, "hook_image_embed"))
    assert pooled.layout.roles == ("image",)
    with pytest.raises(ValueError, match="none of which is a patch"):
        pooled.require_patches()
    with pytest.raises(ValueError, match="none of which is a patch"):
        AttachedSAE(model, tiny_sae(model, HOOK, "cls")).require_patches()


def test_gradients_reach_the_latents(model, pixels):
    attached = AttachedSAE(model, tiny_sae(model, HOOK))
    kept: list[Tensor] = []

    def keep(latents: Tensor) -> Tensor:
        kept.append(latents)
        latents.retain_grad()
        return latents

    attached.splice(pixels, keep).sum().backward()
    assert kept[0].grad is not None
    assert kept[0].grad.abs().max() > 0


def test_saes_that_do_not_fit(model):
    sae, small = tiny_sae(model, HOOK), StandardSAE(StandardSAEConfig(d_in=8, d_sae=4))
    small.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match=r"is 32 wide, but the SAE's d_in is 8"):
        AttachedSAE(model, small)
    with pytest.raises(ValueError, match="name no hook"):
        AttachedSAE(model, StandardSAE(StandardSAEConfig(d_in=32, d_sae=4)))
    with pytest.raises(ValueError, match="name no hook"):
        HookedSAEViT.from_hooked_vit(model).add_sae(
            StandardSAE(StandardSAEConfig(d_in=32, d_sae=4))
        )
    with pytest.raises(ValueError, match="are 8 wide; want 32, the SAE's d_in"):
        AttachedSAE(model, sae, statistics=_statistics(8))
    of_texts = EmbeddingStatistics(torch.zeros(32), 1.0, "text", 1)
    with pytest.raises(ValueError, match="standardised text embeddings"):
        AttachedSAE(model, sae, statistics=of_texts)
    with pytest.raises(ValueError, match="rows are 7 wide; want 32"):
        RowCoder(sae).encode(torch.zeros(2, 7))
    sae.W_dec.data[0, 3] = torch.inf
    with pytest.raises(ValueError, match="W_dec of this SAE holds 1 values that are NaN"):
        AttachedSAE(model, sae)


def test_keep_top_k_keeps_signs():
    latents = torch.tensor([[3.0, -5.0, 1.0, 0.0]])
    assert keep_top_k(latents, 2).tolist() == [[3.0, -5.0, 0.0, 0.0]]
    assert keep_top_k(latents, 9) is latents
    with pytest.raises(ValueError, match="k is 0; want 1 or more"):
        keep_top_k(latents, 0)
