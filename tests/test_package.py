"""The public names, and what importing the package does."""

import importlib

import pytest

import vit_sae_plugin

PUBLIC = """
    HookedViT HookedViTConfig HookedSAEViT
    PatchSAE PatchSAEConfig PatchTrainingSAE PatchTrainingSAEConfig
    MatryoshkaTopKSAE MatryoshkaTopKSAEConfig
    MatryoshkaTopKTrainingSAE MatryoshkaTopKTrainingSAEConfig
    PatchAggregatedSAE PatchAggregatedSAEConfig
    LatentAtlas analyze ViTSAERunnerConfig ViTSAETrainingRunner ViTActivationsStore
""".split()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(vit_sae_plugin, name).__name__ == name
    assert name in vit_sae_plugin.__all__
    assert name in dir(vit_sae_plugin)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PatchSEA'"):
        vit_sae_plugin.PatchSEA  # noqa: B018


def test_importing_twice_is_harmless_and_registers_the_architectures():
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    importlib.reload(vit_sae_plugin)
    for architecture in ("patchsae", "matryoshka_topk"):
        assert architecture in SAE_CLASS_REGISTRY
        assert architecture in SAE_TRAINING_CLASS_REGISTRY
    assert "patch_aggregated" in SAE_CLASS_REGISTRY
    assert {"standard_ghost", "topk_ghost"} <= set(SAE_TRAINING_CLASS_REGISTRY)
