from __future__ import annotations

import pytest
import torch
from sae_lens import (
    SAE,
    GatedTrainingSAEConfig,
    StandardSAE,
    TopKSAE,
    TrainingSAE,
)

from vit_sae_plugin.saes import (
    PatchAggregatedSAE,
    PatchTrainingSAEConfig,
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAEConfig,
    export_as_standard,
    export_as_topk,
    save_exported,
)

SIZES = {"d_in": 8, "d_sae": 24}
CONFIGS = {
    "patchsae": PatchTrainingSAEConfig(**SIZES),
    "standard_ghost": StandardGhostTrainingSAEConfig(**SIZES),
    "topk_ghost": TopKGhostTrainingSAEConfig(**SIZES, k=3),
}


def make_sae(architecture: str) -> TrainingSAE:
    """Random weights, decoder norms and biases: nothing is one or zero by accident."""
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(CONFIGS[architecture].to_dict())
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sae.eval()


def rows() -> torch.Tensor:
    return torch.randn(50, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("saved_first", [False, True])
@pytest.mark.parametrize("architecture", ["patchsae", "standard_ghost"])
def test_standard_has_the_same_outputs(architecture, saved_first, tmp_path):
    sae = make_sae(architecture)
    if saved_first:
        sae.save_inference_model(tmp_path)
        sae = SAE.load_from_disk(tmp_path)
    plain = export_as_standard(sae)
    assert type(plain) is StandardSAE
    assert plain.cfg.architecture() == "standard"
    assert plain.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    torch.testing.assert_close(plain.encode(rows()), sae.encode(rows()))
    torch.testing.assert_close(plain(rows()), sae(rows()))


@pytest.mark.parametrize("rescale", [False, True])
def test_topk_has_the_same_outputs(rescale):
    sae = make_sae("topk_ghost")
    sae.cfg.rescale_acts_by_decoder_norm = rescale
    plain = export_as_topk(sae)
    assert type(plain) is TopKSAE
    assert plain.cfg.rescale_acts_by_decoder_norm is False
    torch.testing.assert_close(plain.encode(rows()), sae.encode(rows()))
    torch.testing.assert_close(plain(rows()), sae(rows()))


def test_an_aggregation_rule_around_the_sae_is_left_out():
    sae = PatchAggregatedSAE.from_sae(make_sae("standard_ghost"), "mean")
    torch.testing.assert_close(export_as_standard(sae)(rows()), sae(rows()))
    sae = PatchAggregatedSAE.from_sae(make_sae("topk_ghost"), "mean")
    torch.testing.assert_close(export_as_topk(sae)(rows()), sae(rows()))


def test_an_exported_sae_has_weights_of_its_own_and_draws_no_random_numbers():
    sae = make_sae("patchsae")
    state = torch.get_rng_state()
    plain = export_as_standard(sae)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        sae.W_dec.zero_()
    assert plain.W_dec.abs().sum() > 0
    assert all(parameter.is_contiguous() for parameter in plain.parameters())


def test_what_can_not_be_exported_is_refused(tmp_path):
    gated = TrainingSAE.from_dict(GatedTrainingSAEConfig(**SIZES).to_dict())
    with pytest.raises(ValueError, match=r"'gated'; want a plain ReLU SAE"):
        export_as_standard(gated)
    with pytest.raises(ValueError, match=r"'gated'; want a top-k SAE"):
        export_as_topk(gated)
    with pytest.raises(ValueError, match=r"'patchsae'; want a top-k SAE"):
        export_as_topk(make_sae("patchsae"), k=3)
    with pytest.raises(ValueError, match=r"'topk_ghost'; want a plain ReLU SAE"):
        export_as_standard(make_sae("topk_ghost"))
    with pytest.raises(ValueError, match=r"k is 5; want 3, for which"):
        export_as_topk(make_sae("topk_ghost"), k=5)
    with pytest.raises(ValueError, match=r"k is 25; want 1 to d_sae, 24"):
        export_as_topk(make_sae("topk_ghost"), k=25)
    with pytest.raises(ValueError, match=r"architecture is 'jumprelu'"):
        save_exported(make_sae("patchsae"), tmp_path, "jumprelu")
    with pytest.raises(ValueError, match=r"k is 3; want none"):
        save_exported(make_sae("patchsae"), tmp_path, "standard", k=3)
    assert list(tmp_path.iterdir()) == []
