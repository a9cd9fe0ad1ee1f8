from __future__ import annotations

import importlib
import sys

import pytest
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    get_sae_class,
    get_sae_training_class,
)

from vit_sae_plugin.saes import patch_sae, registration


@pytest.fixture
def restored_registries(monkeypatch):
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        for architecture, classes in registry.items():
            monkeypatch.setitem(registry, architecture, classes)


def test_registering_again_is_harmless():
    before = dict(SAE_CLASS_REGISTRY), dict(SAE_TRAINING_CLASS_REGISTRY)
    registration.register()
    assert before == (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY)


def test_after_a_reload_the_new_classes_are_registered(restored_registries):
    stale = patch_sae.PatchSAE
    try:
        importlib.reload(patch_sae)
        importlib.reload(registration).register()
        assert patch_sae.PatchSAE is not stale
        assert get_sae_class("patchsae")[0] is patch_sae.PatchSAE
        assert get_sae_training_class("patchsae")[0] is patch_sae.PatchTrainingSAE
    finally:
        # Other tests hold the classes imported before the reload.
        for name in ("PatchSAE", "PatchSAEConfig", "PatchTrainingSAE", "PatchTrainingSAEConfig"):
            setattr(patch_sae, name, getattr(sys.modules["vit_sae_plugin.saes"], name))
        importlib.reload(registration).register()


def test_a_name_taken_by_another_package_is_an_error(restored_registries):
    SAE_CLASS_REGISTRY["patchsae"] = SAE_CLASS_REGISTRY["standard"]
    with pytest.raises(ValueError, match=r"'patchsae' is already registered.*StandardSAE"):
        registration.register()
