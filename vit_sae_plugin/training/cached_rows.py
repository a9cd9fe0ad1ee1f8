"""Rows of a run that come from a cache, once it is known to fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sae_lens.util import str_to_dtype
from torch import Tensor

from vit_sae_plugin.activations.activation_source import describe_preprocessing
from vit_sae_plugin.activations.cache.cache_plan import check_same
from vit_sae_plugin.activations.cache.cache_store import CacheStore
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.fingerprints import known_model_fingerprint
from vit_sae_plugin.model_loaders import full_name

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig


def store_of_cache(
    cfg: ViTSAERunnerConfig, cache: ActivationCache, model: HookedViT | None
) -> CacheStore:
    """Rows from a cache.

    Args:
        cfg: the run's settings.
        cache: the cache.
        model: the run's model, if it has been loaded; rows don't need it.

    Raises:
        CacheMismatchError: the cache is of another model, other weights, preprocessing, hooks or
            tokens than the settings say; the message shows both values.
    """
    hooks = [cfg.hook_name] if cfg.hook_name_out is None else [cfg.hook_name, cfg.hook_name_out]
    for hook in hooks:
        cache.plan.check_hook(hook)
    _check_settings(cfg, cache)
    if model is not None:
        check_model_made(cache, model)
    statistics = None
    if cfg.standardize_embeddings:
        rows = _ShardAfterShard(cache, cfg.hook_name)
        statistics = EmbeddingStatistics.from_rows(rows, cfg.embedding_modality)
    return CacheStore(
        cache,
        hook_name=cfg.hook_name,
        hook_name_out=cfg.hook_name_out,
        train_batch_size_tokens=cfg.train_batch_size_tokens,
        n_batches_in_buffer=cfg.n_batches_in_buffer,
        seed=cfg.seed,
        dtype=str_to_dtype(cfg.dtype),
        device=cfg.act_store_device or cfg.device,
        statistics=statistics,
    )


class _ShardAfterShard:
    """A hook's rows, of which one shard is in memory at a time; may be walked again."""

    def __init__(self, cache: ActivationCache, hook_name: str) -> None:
        self._cache, self._hook_name = cache, hook_name

    def __iter__(self) -> Iterator[Tensor]:
        return (self._cache.tensor(self._hook_name, shard) for shard in self._cache.shards)


def check_model_made(cache: ActivationCache, model: HookedViT) -> None:
    """Raise a `CacheMismatchError` unless the cache's rows are this model's."""
    there = cache.plan.model
    now = {
        "model_sha256": known_model_fingerprint(model),
        "preprocessing": describe_preprocessing(model.preprocess),
    }
    check_same(
        str(cache.path),
        {name: (there.get(name), value) for name, value in now.items()},
        "want the model that made it, or a cache of this one",
    )


def _check_settings(cfg: ViTSAERunnerConfig, cache: ActivationCache) -> None:
    there = cache.plan.model
    now: dict[str, Any] = {"token_kind": cfg.token_kind, "seqpos_slice": list(cfg.seqpos_slice)}
    if there["model_name"] is not None:
        now["model_name"] = None if cfg.model_name is None else full_name(cfg.model_name)
    differing: dict[str, tuple[Any, Any]] = {
        name: (there[name], value) for name, value in now.items()
    }
    kwargs_there, kwargs_now = there["model_from_pretrained_kwargs"], _plain(cfg)
    for name in sorted({*kwargs_there, *kwargs_now}):
        differing[f"model_from_pretrained_kwargs[{name!r}]"] = (
            kwargs_there.get(name),
            kwargs_now.get(name),
        )
    check_same(str(cache.path), differing, "want the same settings, or another cache")


def _plain(cfg: ViTSAERunnerConfig) -> dict[str, Any]:
    return {k: v for k, v in cfg.model_from_pretrained_kwargs.items() if v is not None}
