"""Attribution: exact where the model above is linear, complete where it isn't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.attached_sae import AttachedSAE, attribute, remove, zero_shot_score
from vit_sae_plugin.attached_sae.attribution import METHODS

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def pixels(model):
    return Pictures(1).batch(model)


def _score(embeds):
    return embeds.square().sum(-1)


def test_on_the_embedding_itself_all_three_are_the_decoders_weights(model, pixels):
    """Linear: latent i adds activation × (its decoder row · direction), whatever the method."""
    sae = tiny_sae(model, "hook_image_embed", d_sae=20)
    attached = AttachedSAE(model, sae)
    direction = torch.linspace(-1, 1, sae.cfg.d_in)
    latents = attached.latents(pixels)[0, 0].detach()
    wanted = (latents * (sae.W_dec @ direction)).detach().numpy()
    for method in METHODS:
        found = attribute(attached, pixels, lambda embeds: embeds @ direction, method)
        assert found.latent.tolist() == latents.nonzero().flatten().tolist()
        np.testing.assert_allclose(found.value, wanted[found.latent], rtol=1e-3, atol=1e-5)
        assert found.score == pytest.approx((model(pixels) @ direction).item(), rel=1e-5)
        assert found.table["row"].tolist() == [-1] * len(found.latent)


@pytest.mark.parametrize("kind", ["all", "patches"])
def test_integrated_gradients_are_complete(model, pixels, kind):
    """They sum to what silencing all latents changes (Sundararajan et al., proposition 1)."""
    attached = AttachedSAE(model, tiny_sae(model, HOOK, kind))
    found = attribute(attached, pixels, _score, "integrated_gradients", n_steps=64)
    everything = remove(range(attached.d_sae))
    with torch.no_grad():
        silent = attached.splice(pixels, everything, use_error_term=True)
        difference = (_score(model(pixels)) - _score(silent)).item()
    assert found.value.sum() == pytest.approx(difference, rel=1e-3)
    assert found.by_latent["attribution"].sum() == pytest.approx(difference, rel=1e-3)
    assert np.nansum(found.on_grid()) == pytest.approx(
        found.value[found.layout.patch_of_token.numpy()[found.token] >= 0].sum(), rel=1e-5
    )


@pytest.mark.parametrize("rule", ["none", "layer_norm"])
@torch.no_grad()
def test_ablation_is_the_fall_without_one_latent_in_one_place(model, pixels, rule):
    torch.manual_seed(0)
    sae = StandardSAE(
        StandardSAEConfig(d_in=model.hook_width(HOOK), d_sae=12, normalize_activations=rule)
    )
    sae.cfg.metadata.hook_name = HOOK
    attached = AttachedSAE(model, sae)
    found = attribute(attached, pixels, _score, "ablation", batch_size_conditions=5)
    assert len(found.value) == int((attached.latents(pixels) != 0).sum()) > 5
    plain = _score(model(pixels)).item()
    for row in found.table.iloc[[0, 1, -1]].itertuples():
        where = [(row.row, row.column)] if row.row >= 0 else "cls"
        without = attached.splice(pixels, remove([row.latent], where), use_error_term=True)
        fall = plain - _score(without).item()
        assert row.attribution == pytest.approx(fall, rel=1e-2, abs=1e-4)


def test_small_changes_of_all_methods_agree(model, pixels):
    """Scaled down, latents act linearly, so gradient and ablation must rank them alike."""
    sae = tiny_sae(model, HOOK)
    sae.W_dec.data *= 0.01
    attached = AttachedSAE(model, sae)
    ablation = attribute(attached, pixels, _score, "ablation").value
    for method in ("gradient", "integrated_gradients"):
        other = attribute(attached, pixels, _score, method).value
        assert np.corrcoef(ablation, other)[0, 1] > 0.99


def test_a_zero_shot_logit(model, pixels):
    classifier = torch.nn.functional.normalize(torch.randn(model.cfg.d_embed, 3), dim=0)
    score = zero_shot_score(classifier, 2, 100.0)
    with torch.no_grad():
        embeds = model.encode_image(pixels, normalize=True)
        wanted = (100 * embeds @ classifier)[0, 2].item()
        assert score(model(pixels)).item() == pytest.approx(wanted, abs=1e-4)  # parts are up to 100
    with pytest.raises(ValueError, match="label is 3; want 0 to 2"):
        zero_shot_score(classifier, 3)


def test_bad_input(model, pixels):
    attached = AttachedSAE(model, tiny_sae(model, HOOK))
    with pytest.raises(ValueError, match="method is 'shapley'; want one of gradient"):
        attribute(attached, pixels, _score, "shapley")
    with pytest.raises(ValueError, match="holds 2 images; want one"):
        attribute(attached, pixels.repeat(2, 1, 1, 1), _score)
    with pytest.raises(ValueError, match=r"the score is \(1, 24\); want a tensor of 1 numbers"):
        attribute(attached, pixels, lambda embeds: embeds)
