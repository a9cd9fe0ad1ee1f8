"""Rows of a run that saev wrote, once they are known to fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens.util import str_to_dtype

from vit_sae_plugin.activations.saev_store import SaevStore, named_model

if TYPE_CHECKING:
    from vit_sae_plugin.activations.saev_shards import SaevShards
    from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig


def store_of_saev(cfg: ViTSAERunnerConfig, shards: SaevShards) -> SaevStore:
    """Rows from saev's shards.

    Raises:
        ValueError: the shards are of another model, or lack the hook or the tokens; or the settings
            ask for what they don't hold.
    """
    known = named_model(shards)
    asked = {
        "model_name": cfg.model_name,
        "model_from_pretrained_kwargs": cfg.model_from_pretrained_kwargs,
    }
    if known and cfg.model_name is not None and asked != known:
        raise ValueError(
            f"the shards in {shards.path} are of {shards.ckpt} ({known}), but the settings say "
            f"{asked}; want the same, or leave out the model"
        )
    if cfg.hook_name_out is not None:
        raise ValueError(
            f"hook_name_out is {cfg.hook_name_out!r}, but rows of saev's shards are of one layer; "
            "want None"
        )
    if tuple(cfg.seqpos_slice) != (None,):
        raise ValueError(
            f"seqpos_slice is {cfg.seqpos_slice}, which saev's shards don't take; want token_kind "
            "'all', 'patches' or 'cls' alone"
        )
    return SaevStore(
        shards,
        hook_name=cfg.hook_name,
        token_kind=cfg.token_kind,
        train_batch_size_tokens=cfg.train_batch_size_tokens,
        n_batches_in_buffer=cfg.n_batches_in_buffer,
        seed=cfg.seed,
        dtype=str_to_dtype(cfg.dtype),
        device=cfg.act_store_device or cfg.device,
    )
