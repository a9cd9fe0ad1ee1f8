import pytest

import vit_sae_plugin.saes  # noqa: F401  (registers the architectures)
from vit_sae_plugin.training.presets import (
    complete_settings,
    load_preset,
    preset_names,
    preset_summary,
)
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig

PAPERS = [
    "batchtopk",
    "msae-rw-vit-l-14",
    "msae-uw-vit-l-14",
    "patchsae-vit-b-16",
    "relu",
    "topk",
]


def test_the_presets_of_the_papers_are_there():
    assert set(PAPERS) <= set(preset_names())
    assert preset_summary("patchsae-vit-b-16").startswith("PatchSAE as published")


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_makes_a_config(name):
    settings = complete_settings(load_preset(name), d_in=768, n_rows_per_epoch=10_000)
    config = ViTSAERunnerConfig.from_dict(settings)
    assert config.sae.d_in == 768


def test_patchsae_is_the_published_setting():
    settings = complete_settings(
        load_preset("patchsae-vit-b-16"), d_in=768, n_rows_per_epoch=197 * 1_281_167
    )
    config = ViTSAERunnerConfig.from_dict(settings)
    assert config.sae.d_sae == 49_152
    assert config.training_tokens == 2_621_440 * 197
    assert config.train_batch_size_tokens == 128 * 197
    assert config.clip_grad_norm is None


def test_msae_epochs_and_decay_are_worked_out():
    settings = complete_settings(load_preset("msae-rw-vit-l-14"), d_in=768, n_rows_per_epoch=40_960)
    assert settings["sae"]["d_sae"] == 6144
    assert settings["training_tokens"] == 30 * 40_960
    assert settings["lr_decay_steps"] == 60  # a fifth of 300 steps


def test_settings_given_stay_as_they_are():
    settings = {"sae": {"architecture": "topk", "d_in": 8, "d_sae": 32}, "training_tokens": 5}
    assert complete_settings(settings, d_in=8, n_rows_per_epoch=None) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training_epochs": 2}, "a stream of unknown length"),
        ({"training_epochs": 2, "training_tokens": 10}, "want one of the two"),
        ({"sae": {"expansion_factor": -1}}, "expansion_factor is -1; want a number above 0"),
        ({"sae": "patchsae"}, "want the SAE's settings by name"),
        ({"lr_decay_fraction": 1.5}, "want at most 1"),
    ],
)
def test_relative_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        complete_settings(settings, d_in=8, n_rows_per_epoch=None)


def test_an_unknown_preset_lists_near_names():
    with pytest.raises(ValueError, match="near names: patchsae-vit-b-16"):
        load_preset("patchsae-vit-b16")
