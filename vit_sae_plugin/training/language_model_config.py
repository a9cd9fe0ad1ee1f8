"""SAELens's own runner config, read as one for a vision transformer."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig

from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig

_SAME_MEANING = (
    "sae model_name model_class_name model_from_pretrained_kwargs hook_name seqpos_slice "
    "training_tokens train_batch_size_tokens n_batches_in_buffer device act_store_device dtype "
    "autocast compile_sae sae_compilation_mode seed lr lr_scheduler_name lr_warm_up_steps "
    "lr_decay_steps lr_end n_restart_cycles adam_beta1 adam_beta2 dead_feature_window "
    "feature_sampling_window n_batches_for_norm_estimate n_checkpoints resume_from_checkpoint "
    "logger verbose"
).split()
_RENAMED = {
    "store_batch_size_prompts": "store_batch_size_images",
    "llm_device": "model_device",
    "autocast_lm": "autocast_model",
}
_REFUSED = {
    "only text has it": (
        "hook_eval dataset_trust_remote_code is_dataset_tokenized use_chat_formatting prepend_bos "
        "disable_concat_sequences sequence_separator_token exclude_special_tokens"
    ),
    "heads are flattened instead of chosen": "hook_head_index",
    "the buffer is always shuffled as a whole": "activations_mixing_fraction",
    "activations are computed as they are needed": (
        "use_cached_activations cached_activations_path prefetch_llm_batches"
    ),
    "'vit-sae eval' evaluates, after training": "n_eval_batches eval_batch_size_prompts",
    "training starts from new weights, or resumes": "from_pretrained_path",
    "the model is run as it is": "compile_llm llm_compilation_mode model_kwargs",
}
_WITHOUT_EFFECT = (
    # SAELens doesn't use the first either; a stream is recognised by its source; the last state
    # of a run is always kept; versions are those that run
    "dead_feature_threshold streaming save_final_checkpoint sae_lens_version "
    "sae_lens_training_version"
).split()


def from_language_model_config(cfg: LanguageModelSAERunnerConfig[Any]) -> ViTSAERunnerConfig:
    """The same run as a :class:`ViTSAERunnerConfig`.

    ``seqpos_slice`` slices the image's tokens, ``store_batch_size_prompts`` counts images, and a
    ``dataset_path`` that is neither a folder nor a source this package knows is a Hugging Face
    data set, as it is in SAELens.

    Raises:
        ValueError: the model class isn't ``"HookedViT"``; a setting that has no meaning for images
            differs from its default; a setting that this package doesn't know.
    """
    if cfg.model_class_name != "HookedViT":
        raise ValueError(f"model_class_name is {cfg.model_class_name!r}; want 'HookedViT'")
    reasons = {name: why for why, names in _REFUSED.items() for name in names.split()}
    handled = {*_SAME_MEANING, *_RENAMED, *_WITHOUT_EFFECT}
    handled |= {"dataset_path", "output_path", "checkpoint_path", "context_size"}
    for entry in fields(cfg):
        if entry.name in handled:
            continue
        value, default = getattr(cfg, entry.name), _default(entry)
        if value != default:
            why = reasons.get(entry.name, "this version doesn't know it")
            raise ValueError(
                f"{entry.name} is {value!r}, which can't be used for images ({why}); want its "
                f"default, {default!r}"
            )
    values = {name: getattr(cfg, name) for name in _SAME_MEANING}
    values |= {ours: getattr(cfg, theirs) for theirs, ours in _RENAMED.items()}
    values["dataset_path"] = _as_source(cfg.dataset_path)
    values["output_path"] = cfg.output_path
    if cfg.output_path is not None:
        values["checkpoint_path"] = cfg.checkpoint_path
    elif cfg.n_checkpoints > 0:
        values["output_path"] = cfg.checkpoint_path
    return ViTSAERunnerConfig(**values)


def check_context_size(cfg: LanguageModelSAERunnerConfig[Any], n_tokens: int) -> None:
    """Raise a ValueError if ``context_size`` is set to anything but the model's token count.

    SAELens measures ``seqpos_slice`` against it, so it may have to be set.
    """
    default = LanguageModelSAERunnerConfig.context_size
    if cfg.context_size not in (default, n_tokens):
        raise ValueError(
            f"context_size is {cfg.context_size}, but an image of {cfg.model_name} has {n_tokens} "
            f"tokens; want {n_tokens}, or its default, {default}"
        )


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _as_source(dataset_path: str) -> str:
    known = dataset_path.startswith(("hf:", "wds:", "shapes"))
    if not dataset_path or known or Path(dataset_path).exists():
        return dataset_path
    return f"hf:{dataset_path}"
