"""The activation cache: rows of a model's hooks on disk, written once and read any number of
times."""

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache, CachedBatch
from vit_sae_plugin.activations.cache.begin_cache import plan_cache
from vit_sae_plugin.activations.cache.cache_errors import (
    CacheMismatchError,
    CacheWriteError,
    DamagedCacheError,
    ShardInUseError,
    UnfinishedCacheError,
)
from vit_sae_plugin.activations.cache.cache_names import open_cache
from vit_sae_plugin.activations.cache.cache_plan import CachePlan
from vit_sae_plugin.activations.cache.cache_store import CacheStore
from vit_sae_plugin.activations.cache.cache_writer import write_cache, write_shards
from vit_sae_plugin.activations.cache.check_cache import repair_cache, verify_cache
from vit_sae_plugin.activations.cache.shard_files import ShardEntry
from vit_sae_plugin.activations.cache.shard_writer import write_shard

__all__ = [
    "ActivationCache",
    "CacheMismatchError",
    "CachePlan",
    "CacheStore",
    "CacheWriteError",
    "CachedBatch",
    "DamagedCacheError",
    "ShardEntry",
    "ShardInUseError",
    "UnfinishedCacheError",
    "open_cache",
    "plan_cache",
    "repair_cache",
    "verify_cache",
    "write_cache",
    "write_shard",
    "write_shards",
]
