"""Settings: checked when made, written and read, and taken over from SAELens's own config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from vit_sae_plugin.devices import best_device
from vit_sae_plugin.hooked_vit import TokenLayout
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAEConfig, PatchTrainingSAEConfig
from vit_sae_plugin.training import ViTSAERunnerConfig
from vit_sae_plugin.training.language_model_config import from_language_model_config

TOKENS = TokenLayout.of_grid((7, 7), front=("class",))


def _topk(**changes: Any) -> TopKTrainingSAEConfig:
    return TopKTrainingSAEConfig(**{"d_in": 32, "d_sae": 64, "k": 4, **changes})


def _config(**changes: Any) -> ViTSAERunnerConfig:
    return ViTSAERunnerConfig(**{"sae": _topk(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae": _topk(d_sae=0)}, "sae.d_sae is 0; want a number above 0"),
        ({"sae": _topk(d_in=-1)}, "sae.d_in is -1; want a number above 0"),
        (
            {"sae": PatchTrainingSAEConfig(d_in=32, d_sae=64, cls_mse_coefficient=4.0)},
            "sae.cls_mse_coefficient is 4.0; want 1",
        ),
        ({"sae": _topk(reshape_activations="hook_z")}, "want 'none': heads are flattened"),
        ({"model_class_name": "HookedTransformer"}, "'HookedTransformer'; want 'HookedViT'"),
        ({"hook_name": "blocks.3.hook_resid_pots"}, r"near names: blocks\.3\.hook_resid_post"),
        ({"token_kind": "patch"}, "'patch'; want 'all', 'patches' or 'cls'"),
        ({"hook_name": "hook_image_embed", "token_kind": "patches"}, "one vector for each image"),
        ({"seqpos_slice": (0, None, -1)}, "want a step of 1 or more"),
        ({"training_tokens": 100}, "training_tokens is 100; want at least the 4096"),
        ({"n_batches_in_buffer": 0}, "n_batches_in_buffer is 0; want a number above 0"),
        ({"store_batch_size_images": 2.5}, "store_batch_size_images is 2.5, a float; want int"),
        ({"n_workers": -1}, "n_workers is -1; want 0 or more"),
        ({"lr": "fast"}, "lr is 'fast', a str; want float"),
        ({"lr": 0.0}, "lr is 0.0; want a number above 0"),
        ({"lr": float("nan")}, "lr is nan; want a number above 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; want 0 ≤ adam_beta2 < 1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; want 'adam' or 'adamw'"),
        ({"lr_scheduler_name": "cosine"}, "lr_scheduler_name is 'cosine'; want 'constant' or"),
        ({"lr_warm_up_steps": 300, "lr_decay_steps": 200}, "is more than the 488 training steps"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm is -1.0; want a number above 0"),
        ({"clip_grad_norm": "never"}, "clip_grad_norm is 'never', a str; want float or None"),
        ({"device": "gpu"}, "device is 'gpu'; want 'cpu', 'cuda'"),
        ({"dtype": "float8"}, "float8"),
        ({"verbose": 1}, "verbose is 1, a int; want bool"),
        ({"output_path": None, "n_checkpoints": 2}, "n_checkpoints is 2 but output_path is None"),
    ],
)
def test_a_bad_setting_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        _config(**changes)
    assert "\n" not in str(error.value)


def test_a_frozen_decoder_has_no_encoder_tied_to_it() -> None:
    tied = MatryoshkaTopKTrainingSAEConfig(d_in=32, d_sae=64, tied_weights=True)
    with pytest.raises(ValueError, match=r"freeze_decoder is True, but sae\.tied_weights"):
        _config(sae=tied, freeze_decoder=True)


def test_sae_must_be_a_training_config() -> None:
    with pytest.raises(TypeError, match="sae is a dict; want the config of a training"):
        _config(sae={"architecture": "topk"})


AUTOMATIC = (
    "lr lr_warm_up_steps lr_decay_steps optimizer adam_eps clip_grad_norm dead_feature_window"
).split()


def test_an_architecture_is_trained_as_published_unless_the_user_says_otherwise() -> None:
    def settings(config: ViTSAERunnerConfig) -> list[Any]:
        return [getattr(config, name) for name in AUTOMATIC]

    patchsae = PatchTrainingSAEConfig(d_in=32, d_sae=64)
    matryoshka = MatryoshkaTopKTrainingSAEConfig(d_in=32, d_sae=64)
    long = {"training_tokens": 20_480 * 4096}  # PatchSAE's number of steps
    assert settings(_config(sae=patchsae, **long)) == [4e-4, 500, 0, "adam", 1e-8, None, 64]
    # a short run must not end within its warm-up
    assert settings(_config(sae=patchsae)) == [4e-4, 48, 0, "adam", 1e-8, None, 64]
    assert settings(_config(sae=matryoshka)) == [1e-4, 0, 98, "adamw", 6.25e-10, 1.0, 1000]
    theirs = SAETrainerConfig(10, 10, lr_end=None)
    assert settings(_config()) == [theirs.lr, 0, 0, "adam", 1e-8, 1.0, theirs.dead_feature_window]

    own = {"lr": 1e-3, "lr_warm_up_steps": 1, "lr_decay_steps": 2, "optimizer": "adam"}
    own |= {"adam_eps": 1e-7, "clip_grad_norm": 3.0, "dead_feature_window": 5}
    for sae in (patchsae, matryoshka, _topk()):
        assert settings(_config(sae=sae, **own)) == [own[name] for name in AUTOMATIC]
    assert ViTSAERunnerConfig.from_dict(_config(sae=patchsae, lr="auto").to_dict()).lr == 4e-4


def test_estimating_a_norm_takes_no_longer_than_training() -> None:
    assert _config(training_tokens=20_480 * 4096).n_batches_for_norm_estimate == 1000
    short = _config(training_tokens=20 * 4096)
    assert short.n_batches_for_norm_estimate == short.total_training_steps == 20
    assert _config(n_batches_for_norm_estimate=7).n_batches_for_norm_estimate == 7


def test_without_a_device_the_best_is_taken() -> None:
    assert _config().device == best_device()
    assert _config(device="cpu").device == "cpu"


def test_patchsae_is_trained_unclipped_as_published_and_others_as_in_saelens() -> None:
    assert _config(sae=PatchTrainingSAEConfig(d_in=32, d_sae=64)).clip_grad_norm is None
    assert _config().clip_grad_norm == 1.0
    assert _config(clip_grad_norm=None).clip_grad_norm is None
    assert (
        _config(sae=PatchTrainingSAEConfig(d_in=8, d_sae=9), clip_grad_norm=1).clip_grad_norm == 1
    )


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_settings_survive_a_file(tmp_path: Path, ending: str) -> None:
    config = _config(
        model_from_pretrained_kwargs={"pretrained": "openai"},
        seqpos_slice=(1, None),
        lr=6.25e-10,
        clip_grad_norm=None,
        logger=LoggingConfig(log_to_wandb=True, wandb_project="p"),
    )
    config.save(tmp_path / f"settings.{ending}")
    assert ViTSAERunnerConfig.load(tmp_path / f"settings.{ending}") == config


def test_numbers_a_person_writes_in_yaml_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "sae: {architecture: patchsae, d_in: 32, d_sae: 64, l1_coefficient: 8e-5}\n"
        "lr: 4e-4\ntraining_tokens: 2e6\nlogger: {wandb_project: mine}\n"
    )
    config = ViTSAERunnerConfig.load(path)
    assert (config.lr, config.training_tokens, config.sae.l1_coefficient) == (4e-4, 2_000_000, 8e-5)
    assert isinstance(config.training_tokens, int)
    assert not config.logger.log_to_wandb


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1", "no 'sae' with an 'architecture'"),
        ("sae: {architecture: patchsea, d_in: 8, d_sae: 8}", "'patchsea'; near names: patchsae"),
        (
            "sae: {architecture: patchsae, d_in: 8, d_sae: 8, l1_coeficient: 1}",
            "setting of patchsae 'l1_coeficient'; near names: l1_coefficient",
        ),
        ("sae: {architecture: patchsae, d_in: 8}", "sae.d_sae is missing"),
        (
            "sae: {architecture: patchsae, d_in: 8, d_sae: 8}\ntraning_tokens: 5",
            "setting 'traning_tokens'; near names: training_tokens",
        ),
        ("- a", "holds a list; want settings by name"),
        ("a: [", "can't be read"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ViTSAERunnerConfig.load(path)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '\.toml'; want \.yaml, \.yml or \.json"):
        _config().save(tmp_path / "settings.toml")
    with pytest.raises(FileNotFoundError, match="there is no settings file"):
        ViTSAERunnerConfig.load(tmp_path / "missing.yaml")


def _language_model_config(**changes: Any) -> LanguageModelSAERunnerConfig:
    settings = {
        "sae": _topk(),
        "model_name": "ViT-B-32",
        "model_class_name": "HookedViT",
        "hook_name": "blocks.1.hook_resid_post",
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(**{**settings, **changes})


def test_saelens_config_is_taken_over() -> None:
    theirs = _language_model_config(
        model_from_pretrained_kwargs={"pretrained": "openai"},
        store_batch_size_prompts=7,
        seqpos_slice=(1, None),
        lr=1e-3,
        seed=3,
        autocast_lm=True,
        dataset_path="cifar10",
        training_tokens=8192,
        n_checkpoints=1,
        checkpoint_path="saved",
    )
    ours = from_language_model_config(theirs, TOKENS)
    assert ours.store_batch_size_images == 7
    assert ours.seqpos_slice == (1, None)
    assert ours.model_from_pretrained_kwargs == {"pretrained": "openai"}
    assert (ours.lr, ours.seed, ours.autocast_model, ours.training_tokens) == (1e-3, 3, True, 8192)
    assert ours.dataset_path == "hf:cifar10"
    assert ours.checkpoint_path == theirs.checkpoint_path
    assert ours.clip_grad_norm == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hook_eval", "blocks.0.hook_resid_post"),
        ("dataset_trust_remote_code", False),
        ("is_dataset_tokenized", False),
        ("use_chat_formatting", True),
        ("prepend_bos", False),
        ("disable_concat_sequences", True),
        ("sequence_separator_token", "eos"),
        ("exclude_special_tokens", True),
        ("hook_head_index", 1),
        ("activations_mixing_fraction", 0.9),
        ("prefetch_llm_batches", True),
        ("from_pretrained_path", "somewhere"),
        ("compile_llm", True),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_settings_without_meaning_for_images_are_refused_by_name(name: str, value: Any) -> None:
    changes = {name: value}
    if name == "use_chat_formatting":  # SAELens wants both
        changes["is_dataset_tokenized"] = False
    with pytest.raises(ValueError, match=rf"{name} is|is_dataset_tokenized is"):
        from_language_model_config(_language_model_config(**changes), TOKENS)


def test_every_saelens_setting_is_used_or_refused() -> None:
    from dataclasses import fields

    from vit_sae_plugin.training import language_model_config as ours

    named = {*ours._SAME_MEANING, *ours._RENAMED, *ours._WITHOUT_EFFECT}
    named |= {name for names in ours._REFUSED.values() for name in names.split()}
    named |= set(ours._CONVERTED)
    assert {entry.name for entry in fields(LanguageModelSAERunnerConfig)} == named


def test_other_model_classes_and_context_sizes_are_refused() -> None:
    def convert(**changes: Any) -> ViTSAERunnerConfig:
        return from_language_model_config(_language_model_config(**changes), TOKENS)

    with pytest.raises(ValueError, match="'HookedTransformer'; want 'HookedViT'"):
        convert(model_class_name="HookedTransformer")
    convert(context_size=50)
    with pytest.raises(ValueError, match="context_size is 77, but an image of ViT-B-32 has 50"):
        convert(context_size=77)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # SAELens keeps the rows of that many prompts: images of 50 tokens here
        ({"n_batches_in_buffer": 20}, 1),
        ({"n_batches_in_buffer": 1024}, 13),  # 51,200 rows are 12.5 batches of 4,096
        ({"n_batches_in_buffer": 1024, "seqpos_slice": (1, 9)}, 2),
        ({"n_batches_in_buffer": 8192, "hook_name": "hook_image_embed"}, 2),
    ],
)
def test_the_buffer_holds_as_many_rows_as_saelens_would(theirs, ours) -> None:
    config = from_language_model_config(_language_model_config(**theirs), TOKENS)
    assert config.n_batches_in_buffer == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("folder:photos", "folder:photos"),
        ("shapes", "shapes"),
        ("shapes?n_images=5", "shapes?n_images=5"),
        ("shapes3d", "hf:shapes3d"),
        ("wds:a.tar", "wds:a.tar"),
        ("hf:cifar10:test", "hf:cifar10:test"),
        ("cifar10", "hf:cifar10"),
        ("", ""),
    ],
)
def test_a_source_of_ours_stays_and_else_it_is_hugging_face_s(theirs, ours) -> None:
    config = from_language_model_config(_language_model_config(dataset_path=theirs), TOKENS)
    assert config.dataset_path == ours


def test_the_table_of_saelens_settings_names_them_all() -> None:
    from dataclasses import fields

    from vit_sae_plugin.training import language_model_config as ours

    refused = {name for names in ours._REFUSED.values() for name in names.split()}
    for entry in fields(LanguageModelSAERunnerConfig):
        short = entry.name[:2] == "lr" or entry.name[:9] == "adam_beta" or "version" in entry.name
        if entry.name not in refused and not short:
            assert f"``{entry.name}``" in (ours.__doc__ or ""), entry.name
