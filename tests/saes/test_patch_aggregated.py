"""Aggregation rules travel with saved SAEs: our own, and any SAELens SAE lifted."""

import copy
import json

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

from vit_sae_plugin import PatchAggregatedSAE, PatchAggregatedSAEConfig
from vit_sae_plugin.aggregation import make_aggregation
from vit_sae_plugin.saes import (
    MatryoshkaTopKSAE,
    MatryoshkaTopKSAEConfig,
    PatchSAE,
    PatchSAEConfig,
    PatchTrainingSAE,
    PatchTrainingSAEConfig,
)

D_IN, D_SAE = 6, 20


def acts(seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(seed))


def metadata(token_kind: str = "all") -> SAEMetadata:
    return SAEMetadata(token_kind=token_kind, n_prefix_tokens=1, hook_name="blocks.0.hook_z")


def make_patch_sae(**settings) -> PatchSAE:
    torch.manual_seed(0)
    cfg = PatchSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=metadata(), **settings)
    return PatchSAE(cfg)


def make_any(architecture: str):
    torch.manual_seed(0)
    sizes = {"d_in": D_IN, "d_sae": D_SAE}
    if architecture == "standard":
        return StandardSAE(StandardSAEConfig(**sizes, metadata=metadata()))
    if architecture == "topk":
        return TopKSAE(TopKSAEConfig(**sizes, k=4, metadata=metadata()))
    if architecture == "patchsae":
        return make_patch_sae()
    if architecture == "gated":
        return GatedTrainingSAE(GatedTrainingSAEConfig(**sizes))
    if architecture == "jumprelu":
        return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sizes))
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=4))
    sae.topk_threshold.fill_(0.01)
    return sae


def test_a_patch_sae_aggregates_under_its_default_rule():
    sae = make_patch_sae()
    latents = sae.encode(acts())
    assert latents.shape == (3, 5, D_SAE)
    image_latents = sae.encode_image(acts())
    torch.testing.assert_close(image_latents, (latents > 0.2).sum(dim=1).float())
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    shorter = sae.encode_image(acts(), mask)
    torch.testing.assert_close(shorter[1], (latents[1, :3] > 0.2).sum(dim=0).float())
    torch.testing.assert_close(shorter[0], image_latents[0])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"name": "max"}, lambda h: h.amax(dim=1)),
        ({"name": "kth_largest", "k": 2}, lambda h: h.sort(dim=1).values[:, -2]),
        ({"name": "cls"}, lambda h: h[:, 0]),
        ({"name": "mean", "tokens": "patches"}, lambda h: h[:, 1:].mean(dim=1)),
    ],
)
def test_the_rule_is_saved_and_loaded(tmp_path, rule, expected):
    sae = make_patch_sae(aggregation=rule)
    sae.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert isinstance(again, PatchSAE)
    assert again.cfg.aggregation == rule
    torch.testing.assert_close(again.encode_image(acts()), expected(sae.encode(acts())))


def test_the_rule_passes_from_training_to_inference(tmp_path):
    cfg = PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, aggregation={"name": "max"})
    PatchTrainingSAE(cfg).save_inference_model(tmp_path)
    assert SAE.load_from_disk(tmp_path).cfg.aggregation == {"name": "max"}
    # folders saved before there were rules
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    del config["aggregation"]
    path.write_text(json.dumps(config))
    assert SAE.load_from_disk(tmp_path).cfg.aggregation == {"name": "count", "threshold": 0.2}


@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "patchsae", "gated", "jumprelu", "batchtopk"]
)
def test_any_sae_can_be_lifted_saved_and_loaded(tmp_path, architecture):
    sae = make_any(architecture)
    lifted = PatchAggregatedSAE.from_sae(sae, {"name": "share", "threshold": 0.01})
    reference = lifted.base
    latents = reference.encode(acts())
    assert latents.count_nonzero() > 0
    lifted.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert isinstance(again, PatchAggregatedSAE)
    assert type(again.base) is type(reference)
    for one in (lifted, again, copy.deepcopy(again)):
        torch.testing.assert_close(one.encode(acts()), latents)
        torch.testing.assert_close(one(acts()), reference(acts()))
        active = one.encode(acts()) > 0.01
        assert one.encode_image(acts()).equal(active.float().mean(dim=1))
    assert (again.cfg.d_in, again.cfg.d_sae) == (D_IN, D_SAE)
    assert again.cfg.metadata.hook_name == sae.cfg.metadata.hook_name
    assert again.W_dec.shape == (D_SAE, D_IN)


def test_a_matryoshka_sae_aggregates_by_the_mean(tmp_path):
    torch.manual_seed(0)
    sae = MatryoshkaTopKSAE(MatryoshkaTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    sae.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert again.cfg.aggregation == {"name": "mean"}
    torch.testing.assert_close(again.encode_image(acts()), sae.encode(acts()).mean(dim=1))
    pooled = acts()[:, :1]  # one embedding an image
    torch.testing.assert_close(again.encode_image(pooled), sae.encode(pooled[:, 0]))


def test_a_training_sae_is_lifted_as_it_would_be_saved(tmp_path):
    sae = make_any("batchtopk")
    lifted = PatchAggregatedSAE.from_sae(sae)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(lifted.encode(acts()), SAE.load_from_disk(tmp_path).encode(acts()))
    assert lifted.base.cfg.architecture() == "jumprelu"


def test_hooks_dtype_and_folding_reach_the_sae_inside():
    sae = make_any("standard")
    lifted = PatchAggregatedSAE.from_sae(copy.deepcopy(sae), "mean")
    _, cache = lifted.run_with_cache(acts())
    torch.testing.assert_close(cache["hook_sae_acts_post"], sae.encode(acts()))
    assert set(lifted.hook_dict) >= {"hook_sae_input", "hook_sae_recons", "hook_sae_output"}
    edited = lifted.run_with_hooks(
        acts(), fwd_hooks=[("hook_sae_acts_post", lambda h, hook: h * 0)]
    )
    assert torch.equal(edited, sae.b_dec.expand_as(edited))
    lifted.fold_W_dec_norm()
    torch.testing.assert_close(lifted.W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(lifted(acts()), sae(acts()))
    half = lifted.to(dtype=torch.bfloat16)
    assert half.encode(acts()).dtype == half.base.W_enc.dtype == torch.bfloat16
    assert half.base.cfg.dtype == half.cfg.dtype == "bfloat16"


def test_folded_input_scaling_is_remembered(tmp_path):
    torch.manual_seed(0)
    sae = StandardSAE(
        StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in")
    )
    lifted = PatchAggregatedSAE.from_sae(sae)
    assert lifted.cfg.normalize_activations == "expected_average_only_in"
    lifted.fold_activation_norm_scaling_factor(0.5)
    lifted.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert again.cfg.normalize_activations == again.base.cfg.normalize_activations == "none"
    torch.testing.assert_close(again(acts()), lifted(acts()))


def test_it_can_be_spliced_into_a_model():
    from tests.analysis.tiny_pipeline import HOOK, make_model, make_sae
    from vit_sae_plugin import HookedSAEViT

    model = make_model()
    sae = make_sae(model)
    spliced = HookedSAEViT.from_hooked_vit(model)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = spliced.run_with_saes(pixels, saes=[sae])
    lifted = PatchAggregatedSAE.from_sae(sae)
    torch.testing.assert_close(spliced.run_with_saes(pixels, saes=[lifted]), expected)
    _, cache = spliced.run_with_cache_with_saes(pixels, saes=[lifted])
    latents = cache[f"{HOOK}.hook_sae_acts_post"]
    aggregated = make_aggregation("count")(latents)
    torch.testing.assert_close(lifted.encode_image(cache[f"{HOOK}.hook_sae_input"]), aggregated)


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match="did you mean 'count'"):
        make_patch_sae(aggregation={"name": "coutn"})
    with pytest.raises(ValueError, match="architecture'\\] is 'nothing'; want one"):
        PatchAggregatedSAEConfig(d_in=D_IN, d_sae=D_SAE, base={"architecture": "nothing"})
    with pytest.raises(ValueError, match=r"want \[batch, token, d_sae\]"):
        make_patch_sae().encode_image(acts()[0])
    no_class_token = make_patch_sae(aggregation={"name": "cls"})
    no_class_token.cfg.metadata.token_kind = "patches"
    with pytest.raises(ValueError, match="n_prefix_tokens 0; want 1 or more"):
        no_class_token.encode_image(acts())
