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
    assert (config.model_name, config.hook_name) == ("ViT-B-16", "blocks.10.hook_resid_post")
    assert config.model_from_pretrained_kwargs == {"pretrained": "openai"}
    assert (config.token_kind, config.standardize_embeddings) == ("all", False)
    assert (config.optimizer, config.lr, config.lr_warm_up_steps) == ("adam", 4e-4, 500)
    assert (config.lr_scheduler_name, config.lr_decay_steps) == ("constant", 0)
    assert config.dead_feature_window == 64
    sae = config.sae
    assert (sae.l1_coefficient, sae.l1_warm_up_steps, sae.use_ghost_grads) == (8e-5, 0, True)
    assert (sae.b_dec_init_method, sae.mse_normalization) == ("geometric_median", "input_norm")
    assert sae.normalize_activations == "none"


OF_ALL_MSAE_RUNS = {
    "model_name": "ViT-L-14",
    "model_from_pretrained_kwargs": {"pretrained": "openai"},
    "hook_name": "hook_image_embed",
    "standardize_embeddings": True,
    "embedding_modality": "image",
    "training_tokens": 30 * 1_281_167,
    "train_batch_size_tokens": 4096,
    "optimizer": "adamw",
    "adam_eps": 6.25e-10,
    "weight_decay": 0.0,
    "clip_grad_norm": 1.0,
    "lr_scheduler_name": "constant",
    "lr_warm_up_steps": 0,
    "lr_decay_steps": 1877,  # a fifth of 9,383 steps
}
OF_MSAE = {
    "d_sae": 6144,
    "k_list": None,
    "k_start": 64,
    "reconstruction_loss": "mse",
    "decoder_init_norm": 0.1,
    "soft_cap": None,
    "tied_weights": False,
    "use_ghost_grads": False,
    "aux_loss_coefficient": 0.0,
}
PUBLISHED = {
    "msae-uw-vit-l-14": (
        1e-4,
        {"architecture": "matryoshka_topk", "level_weights": "uniform", **OF_MSAE},
    ),
    "msae-rw-vit-l-14": (
        1e-4,
        {"architecture": "matryoshka_topk", "level_weights": "reverse", **OF_MSAE},
    ),
    "relu": (
        5e-5,
        {
            "architecture": "standard_relative_l1",
            "d_sae": 6144,
            "l1_coefficient": 0.003,
            "l1_warm_up_steps": 0,
        },
    ),
    "topk": (5e-4, {"architecture": "topk", "d_sae": 6144, "k": 64}),
    "batchtopk": (5e-4, {"architecture": "batchtopk", "d_sae": 6144, "k": 32}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_msae_and_its_baselines_are_the_published_settings(name):
    lr, of_the_sae = PUBLISHED[name]
    settings = complete_settings(load_preset(name), d_in=768, n_rows_per_epoch=1_281_167)
    config = ViTSAERunnerConfig.from_dict(settings).to_dict()
    wanted = {**OF_ALL_MSAE_RUNS, "lr": lr}
    assert {setting: config[setting] for setting in wanted} == wanted
    assert {setting: config["sae"][setting] for setting in of_the_sae} == of_the_sae


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
