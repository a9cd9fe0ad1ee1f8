"""What can go wrong with an activation cache."""

from __future__ import annotations

import errno


class CacheMismatchError(ValueError):
    """A cache isn't what is asked for: other weights, hooks, tokens, preprocessing or images."""


class DamagedCacheError(ValueError):
    """A file of a cache is missing, cut short or changed."""


class UnfinishedCacheError(ValueError):
    """Some of a cache's shards aren't written yet."""


class CacheWriteError(OSError):
    """A shard can't be written; those written before stay as they are."""


class ShardInUseError(OSError):
    """Another process is writing this shard."""


def is_full_disk(error: OSError) -> bool:
    """Whether there was no room: on the disk, in a quota, or in what one file may have."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason_in_words(error: OSError) -> str:
    """Why a file can't be written."""
    return "the disk is full" if is_full_disk(error) else error.strerror or str(error)
