"""Whether SAEs can be trained from one stream of rows, and that stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_sae_plugin.activations.activations_store import ViTActivationsStore
from vit_sae_plugin.activations.shared_rows import HooksOfOnePass, SharedRows, StoresInStep
from vit_sae_plugin.training.cached_rows import store_of_cache
from vit_sae_plugin.training.row_stores import POOLED_HOOK, store_of_embeddings, store_of_images
from vit_sae_plugin.training.run_input import RunInput
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.saev_rows import store_of_saev
from vit_sae_plugin.training.sweep.sweep_folder import is_sweep_folder

_SHARED = (
    "model_name model_from_pretrained_kwargs dataset_path embeddings_path standardize_embeddings "
    "embedding_modality non_finite_rows token_kind seqpos_slice train_batch_size_tokens "
    "store_batch_size_images n_batches_in_buffer n_workers shuffle_images dtype autocast_model "
    "seed checkpoint_every_minutes"
).split()


def check_shared_input(members: Mapping[str, ViTSAERunnerConfig]) -> None:
    """Raise a ValueError unless the members can be trained from one stream of rows.

    The message names two that can't, and what differs, with both values.
    """
    (first, one), *others = members.items()
    for name, other in others:
        differing = {
            what: (value, other_value)
            for what, value_of in _VALUES.items()
            if (value := value_of(one)) != (other_value := value_of(other))
        }
        if differing:
            listed = "; ".join(
                f"{what} is {a!r} and {b!r}" for what, (a, b) in sorted(differing.items())
            )
            raise ValueError(
                f"members {first!r} and {name!r} can't share a stream of rows: {listed}; want the "
                "same, or two sweeps"
            )
    for name, cfg in members.items():
        if cfg.logger.log_to_wandb:
            raise ValueError(
                f"logger.log_to_wandb is True for member {name!r}, but Weights & Biases keeps one "
                "run a process; want False"
            )


def rows_name(cfg: ViTSAERunnerConfig) -> str:
    """What a member reads, by which members that read the same find each other."""
    out = "" if cfg.hook_name_out is None else f" → {cfg.hook_name_out}"
    return cfg.hook_name + out


def shared_rows(
    members: Mapping[str, ViTSAERunnerConfig], given: RunInput, folder: Path
) -> SharedRows:
    """The one stream that all members read.

    Args:
        members: settings that ``check_shared_input`` has passed.
        given: what they name, opened.
        folder: of the sweep; embeddings made of images are kept there.
    """
    by_rows = {rows_name(cfg): cfg for cfg in members.values()}
    cfg = next(iter(by_rows.values()))
    model, images, cache = given.model, given.images, given.cache
    if cache is not None:
        stores = {name: store_of_cache(each, cache, model) for name, each in by_rows.items()}
        return StoresInStep(stores)
    if (shards := given.saev) is not None:
        return StoresInStep({name: store_of_saev(each, shards) for name, each in by_rows.items()})
    if model is None or images is None:
        return StoresInStep({rows_name(cfg): store_of_embeddings(cfg)})
    if _reads_pooled(cfg):
        kept_in = _in_folder(cfg, folder)
        return StoresInStep({rows_name(cfg): store_of_images(kept_in, model, images)})
    hooks = {name: (each.hook_name, each.hook_name_out) for name, each in by_rows.items()}
    every = dict.fromkeys(hook for pair in hooks.values() for hook in pair if hook is not None)
    first, *beside = every
    store = ViTActivationsStore.from_config(
        model, cfg, images, hook_name=first, hook_names_beside=beside, hook_name_out=None
    )
    return HooksOfOnePass(store, hooks)


def _in_folder(cfg: ViTSAERunnerConfig, folder: Path) -> ViTSAERunnerConfig:
    """The settings of a run in this folder, which goes on if there is anything of it."""
    resumed = str(folder) if is_sweep_folder(folder) else None
    return replace(cfg, output_path=str(folder), resume_from_checkpoint=resumed)


def _reads_pooled(cfg: ViTSAERunnerConfig) -> bool:
    return cfg.hook_name == POOLED_HOOK and cfg.hook_name_out is None


def _n_estimate_batches(cfg: ViTSAERunnerConfig) -> int:
    """Batches that a run reads before its first step."""
    wants = cfg.sae.normalize_activations in ("expected_average_only_in", "covariance_whitening")
    return cfg.n_batches_for_norm_estimate if wants else 0


def _setting(name: str) -> Callable[[ViTSAERunnerConfig], Any]:
    return lambda cfg: getattr(cfg, name)


_VALUES: dict[str, Callable[[ViTSAERunnerConfig], Any]] = {
    **{name: _setting(name) for name in _SHARED},
    "model_device": lambda cfg: cfg.model_device or cfg.device,
    "act_store_device": lambda cfg: cfg.act_store_device or cfg.device,
    "rows of": lambda cfg: "pooled embeddings" if _reads_pooled(cfg) else "tokens",
    "batches that sae.normalize_activations reads before training": _n_estimate_batches,
}
"""What must be the same for all, by name."""
