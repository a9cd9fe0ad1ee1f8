"""SAELens's own runner config, read as one for a vision transformer.

| SAELens's setting | here |
| --- | --- |
| ``sae``, ``model_name``, ``model_class_name``, ``hook_name``, ``training_tokens``, | the same |
| ``train_batch_size_tokens``, ``device``, ``dtype``, ``autocast``, ``compile_sae``, | |
| ``sae_compilation_mode``, ``seed``, ``lr…``, ``n_restart_cycles``, ``adam_beta…``, | |
| ``dead_feature_window``, ``feature_sampling_window``, ``n_batches_for_norm_estimate``, | |
| ``n_checkpoints``, ``logger``, ``verbose`` | |
| ``model_from_pretrained_kwargs`` | the same; None is none |
| ``seqpos_slice`` | the same, of the image's tokens |
| ``context_size`` | must be its default or the image's tokens |
| ``store_batch_size_prompts`` | ``store_batch_size_images``: a prompt is an image |
| ``n_batches_in_buffer``, *prompts* in the buffer | the training batches that hold as many rows |
| ``llm_device``, ``autocast_lm`` | ``model_device``, ``autocast_model`` |
| ``act_store_device`` | the same (``"with_model"`` is resolved by SAELens) |
| ``dataset_path`` | a folder or a source of ours; else a Hugging Face data set, ``"hf:…"`` |
| ``output_path`` | the run's folder |
| ``checkpoint_path`` | where ``n_checkpoints`` go; with none of them not used |
| ``resume_from_checkpoint`` | the run's folder, not a checkpoint's |
| ``activations_mixing_fraction`` | its default: the buffer is always shuffled as a whole |
| ``dead_feature_threshold``, ``streaming``, ``save_final_checkpoint``, versions | not used |
| all others | refused, unless they have their default |
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.config import LanguageModelSAERunnerConfig

from vit_sae_plugin.activations.token_selection import selected_positions
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

_SAME_MEANING = (
    "sae model_name model_class_name model_from_pretrained_kwargs hook_name seqpos_slice "
    "training_tokens train_batch_size_tokens device act_store_device dtype autocast compile_sae "
    "sae_compilation_mode seed lr lr_scheduler_name lr_warm_up_steps lr_decay_steps lr_end "
    "n_restart_cycles adam_beta1 adam_beta2 dead_feature_window feature_sampling_window "
    "n_batches_for_norm_estimate n_checkpoints resume_from_checkpoint logger verbose"
).split()
_RENAMED = {
    "store_batch_size_prompts": "store_batch_size_images",
    "llm_device": "model_device",
    "autocast_lm": "autocast_model",
}
_CONVERTED = ("n_batches_in_buffer dataset_path output_path checkpoint_path context_size").split()
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
    "ViTSAERunnerConfig's eval_every_n_steps evaluates": "n_eval_batches eval_batch_size_prompts",
    "training starts from new weights, or resumes": "from_pretrained_path",
    "the model is run as it is": "compile_llm llm_compilation_mode model_kwargs",
}
_WITHOUT_EFFECT = (
    # SAELens doesn't use the first either; a stream is recognised by its source; the last state
    # of a run is always kept; versions are those that run
    "dead_feature_threshold streaming save_final_checkpoint sae_lens_version "
    "sae_lens_training_version"
).split()
_SOURCES = ("folder:", "hf:", "wds:", "shapes:", "shapes?", "cache:", "saev:")


def from_language_model_config(
    cfg: LanguageModelSAERunnerConfig[Any], tokens: TokenLayout
) -> ViTSAERunnerConfig:
    """The same run as a ``ViTSAERunnerConfig``; the module's table has each setting.

    Args:
        cfg: SAELens's config.
        tokens: of the model, ``model.cfg.tokens``.

    Raises:
        ValueError: the model class isn't ``"HookedViT"``; a setting that has no meaning for images
            differs from its default; a setting that this package doesn't know; a ``context_size``
            that is neither its default nor the model's number of tokens.
    """
    if cfg.model_class_name != "HookedViT":
        raise ValueError(f"model_class_name is {cfg.model_class_name!r}; want 'HookedViT'")
    _check_context_size(cfg, len(tokens))
    reasons = {name: why for why, names in _REFUSED.items() for name in names.split()}
    handled = {*_SAME_MEANING, *_RENAMED, *_CONVERTED, *_WITHOUT_EFFECT}
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
    values["n_batches_in_buffer"] = _batches_in_buffer(cfg, tokens)
    values["dataset_path"] = _as_source(cfg.dataset_path)
    values["output_path"] = cfg.output_path
    if cfg.n_checkpoints > 0:
        path = "checkpoint_path" if cfg.output_path is not None else "output_path"
        values[path] = cfg.checkpoint_path
    return ViTSAERunnerConfig(**values)


def _check_context_size(cfg: LanguageModelSAERunnerConfig[Any], n_tokens: int) -> None:
    # SAELens measures seqpos_slice against it, so it may have to be set
    default = LanguageModelSAERunnerConfig.context_size
    if cfg.context_size not in (default, n_tokens):
        raise ValueError(
            f"context_size is {cfg.context_size}, but an image of {cfg.model_name} has {n_tokens} "
            f"tokens; want {n_tokens}, or its default, {default}"
        )


def _batches_in_buffer(cfg: LanguageModelSAERunnerConfig[Any], tokens: TokenLayout) -> int:
    """SAELens keeps the rows of ``n_batches_in_buffer`` prompts, at least one training batch."""
    rows_of_an_image = 1
    if cfg.hook_name != "hook_image_embed":
        rows_of_an_image = len(selected_positions(tokens, "all", tuple(cfg.seqpos_slice)))
    n_rows = cfg.n_batches_in_buffer * rows_of_an_image
    return math.ceil(n_rows / cfg.train_batch_size_tokens)


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _as_source(dataset_path: str) -> str:
    known = dataset_path == "shapes" or dataset_path.startswith(_SOURCES)
    if not dataset_path or known or Path(dataset_path).exists():
        return dataset_path
    return f"hf:{dataset_path}"
