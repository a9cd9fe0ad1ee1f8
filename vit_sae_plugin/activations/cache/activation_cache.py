"""A cache on disk, to read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.activations.cache.cache_errors import UnfinishedCacheError
from vit_sae_plugin.activations.cache.cache_plan import CachePlan
from vit_sae_plugin.activations.cache.shard_files import (
    COORDINATE_COLUMNS,
    COORDINATES_FILE,
    ShardEntry,
    finished_numbers,
    map_array,
    read_images,
    rows_file,
    scales_file,
    shard_folder,
)
from vit_sae_plugin.datasets import SkippedImages
from vit_sae_plugin.fingerprints import values_sha256
from vit_sae_plugin.hooked_vit.token_layout import TOKEN_ROLES, TokenLayout

if TYPE_CHECKING:
    from vit_sae_plugin.activations.activation_source import ActivationSource


class CachedBatch(NamedTuple):
    """Some images' activations, in the order of the images."""

    index: Int[Tensor, " batch"]  # type: ignore[assignment]  # tuples have a method so called
    """Position in the cache's order of images."""
    ids: list[str]
    """Each image's id in its source."""
    label: Int[Tensor, " batch"]
    """Index of the class, −1 for none."""
    acts_btd: Float[Tensor, "batch token d_in"]
    """The tokens that the cache holds, in the model's order, float32."""


class ActivationCache:
    """The activations of images at one or several hooks, as `write_cache` wrote them.

    Opening reads the manifest and one small file a shard; rows are memory-mapped when asked for.

    Args:
        path: the cache's folder.
        partial: take what is finished of a cache that isn't. What is finished later doesn't show.

    Raises:
        FileNotFoundError: there is no cache.
        UnfinishedCacheError: some shards aren't written yet.
        DamagedCacheError: the manifest or a shard's entry is damaged.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.plan = CachePlan.load(self.path)
        numbers = finished_numbers(self.path)
        if not partial:
            self._check_finished(numbers)
            numbers = [shard.number for shard in self.plan.shards]
        self.entries: dict[int, ShardEntry] = {
            number: ShardEntry.load(self.path, number) for number in numbers
        }
        """Of the shards that are there, by number."""

    def _check_finished(self, numbers: list[int]) -> None:
        n_images = self.plan.n_images
        missing = sorted({shard.number for shard in self.plan.shards} - set(numbers))
        if n_images is None or missing:
            done = f"{len(numbers)} of {'?' if n_images is None else len(self.plan.shards)} shards"
            which = f" (the first that is missing is {missing[0]})" if missing else ""
            raise UnfinishedCacheError(
                f"the cache {self.path} has {done}{which}; finish it with the vit-sae cache "
                "command that began it, or use what is there: cache:PATH?partial=true "
                "(ActivationCache(path, partial=True))"
            )

    def __repr__(self) -> str:
        hooks = ", ".join(self.hook_names)
        return (
            f"<ActivationCache {str(self.path)!r}: {self.n_rows:,} rows of {self.n_images:,} "
            f"images at {hooks}, {self.plan.dtype}>"
        )

    @property
    def hook_names(self) -> list[str]:
        """The hooks whose rows the cache holds."""
        return list(self.plan.hooks)

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that are there."""
        return list(self.entries)

    @property
    def n_rows(self) -> int:
        """Rows of each hook."""
        return sum(entry.n_rows for entry in self.entries.values())

    @property
    def n_images(self) -> int:
        """Images that have rows: all but the unreadable ones."""
        return self.n_rows // self.plan.n_tokens

    @property
    def n_tokens(self) -> int:
        """Rows of an image."""
        return self.plan.n_tokens

    @cached_property
    def tokens(self) -> TokenLayout:
        """Which of an image's rows is which token."""
        rows, columns = self.plan.model["grid"]
        places = self.plan.tokens
        return TokenLayout(
            (rows, columns),
            tuple(TOKEN_ROLES[kind] for _, _, kind in places),  # type: ignore[misc]
            tuple(row * columns + column if row >= 0 else -1 for row, column, _ in places),
        )

    def d_in(self, hook_name: str) -> int:
        """Width of a hook's rows.

        Raises:
            CacheMismatchError: the cache doesn't hold this hook.
        """
        self.plan.check_hook(hook_name)
        return self.plan.hooks[hook_name]

    def source(self, hook_name: str) -> ActivationSource:
        """What a hook's rows are, as the metadata of an SAE that reads them say it.

        Raises:
            CacheMismatchError: the cache doesn't hold this hook.
        """
        return self.plan.source(hook_name)

    def rows(self, hook_name: str, shard: int) -> np.ndarray:
        """A shard's rows as they are stored, `[rows, d_in]`, memory-mapped.

        bfloat16 shows as uint16, its bits, for NumPy has no such type; int8 rows are to be
        multiplied by `scales`. `tensor` gives numbers.

        Raises:
            CacheMismatchError: the cache doesn't hold this hook.
            DamagedCacheError: the file is missing, or of another size.
        """
        shape = (self.entries[shard].n_rows, self.d_in(hook_name))
        path = shard_folder(self.path, shard) / rows_file(hook_name)
        return map_array(path, self.plan.format.stored, shape, shard)

    def scales(self, hook_name: str, shard: int) -> np.ndarray | None:
        """The factor of each row, float32 `[rows]`; None where the format has none."""
        if not self.plan.format.has_scales:
            return None
        path = shard_folder(self.path, shard) / scales_file(hook_name)
        return map_array(path, "<f4", (self.entries[shard].n_rows,), shard)

    def tensor(
        self, hook_name: str, shard: int, rows: slice | np.ndarray = slice(None)
    ) -> Float[Tensor, "rows d_in"]:
        """Some of a shard's rows as float32, in memory of their own."""
        scales = self.scales(hook_name, shard)
        return self.plan.format.decode(
            self.plan.format.as_tensor(np.array(self.rows(hook_name, shard)[rows])),
            None if scales is None else torch.from_numpy(np.array(scales[rows])),
        )

    def coordinates(self, shard: int) -> np.ndarray:
        """Image, row, column, kind and token of each row of a shard: int32 `[rows, 5]`,
        memory-mapped.

        The image is counted in the cache's order; row and column are −1 for what is no patch; the
        kind is an index into `TOKEN_ROLES` (class, register, prompt, patch, image); the token is
        counted among those that the cache holds of an image.
        """
        path = shard_folder(self.path, shard) / COORDINATES_FILE
        shape = (self.entries[shard].n_rows, len(COORDINATE_COLUMNS))
        return map_array(path, "<i4", shape, shard)

    def images(self, shard: int) -> pd.DataFrame:
        """The table of a shard's images: `index`, `id`, `label`, and `skipped`, why an image could
        not be used ("" for those that could)."""
        return read_images(self.path, shard)

    @cached_property
    def image_table(self) -> pd.DataFrame:
        """The images that have rows, in order: `index`, `id`, `label`."""
        tables = [self.images(shard) for shard in self.shards]
        table = pd.concat(tables) if tables else pd.DataFrame(columns=["index", "id", "label"])
        used = table[table["skipped"] == ""] if tables else table
        return used[["index", "id", "label"]].reset_index(drop=True)

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images that have rows, in order."""
        return self.image_table["id"].tolist()

    @property
    def skipped(self) -> SkippedImages:
        """The images that have no rows, with the reason for each."""
        skipped = SkippedImages()
        for shard in self.shards:
            table = self.images(shard)
            for row in table[table["skipped"] != ""].itertuples():
                skipped.add(row.index, row.id, row.skipped)
        return skipped

    @property
    def class_names(self) -> list[str] | None:
        """Label → name; None: the images have none."""
        return self.plan.class_names

    def images_in_order(
        self,
        hook_name: str,
        batch_size_images: int = 32,
        *,
        start_batch: int = 0,
        index: Sequence[int] | None = None,
    ) -> Iterator[CachedBatch]:
        """Images that have rows, in order, with their tokens in the model's order.

        Batches don't cross shards, so one may be smaller than the others.

        Args:
            hook_name: whose rows.
            batch_size_images: images of a batch.
            start_batch: the first batch to give; those before aren't read.
            index: only the images at these places in the cache's order. None: all.
        """
        number = 0
        for shard in self._shards_of(index):
            n_batches = -(-(self.entries[shard].n_rows // self.n_tokens) // batch_size_images)
            if index is None and number + n_batches <= start_batch:
                number += n_batches
                continue
            table = self.images(shard)
            # where each image that has rows lies, once rows are in order
            table = table[table["skipped"] == ""].reset_index(drop=True)
            if index is not None:
                table = table[table["index"].isin(index)]
            order = self._order(shard).reshape(-1, self.n_tokens)
            for start in range(0, len(table), batch_size_images):
                number += 1
                if number <= start_batch:
                    continue
                batch = table.iloc[start : start + batch_size_images]
                rows = order[batch.index.to_numpy()].reshape(-1)
                yield CachedBatch(
                    torch.from_numpy(batch["index"].to_numpy(copy=True)),
                    batch["id"].tolist(),
                    torch.from_numpy(batch["label"].to_numpy(copy=True)),
                    self.tensor(hook_name, shard, rows).view(len(batch), self.n_tokens, -1),
                )

    def _shards_of(self, index: Sequence[int] | None) -> list[int]:
        """The shards that have these images."""
        if index is None:
            return self.shards
        firsts = [self.plan.shard(number).first_index for number in self.shards]
        holds = np.searchsorted(firsts, np.asarray(index, dtype=np.int64), side="right") - 1
        return [self.shards[at] for at in np.unique(holds) if at >= 0]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the manifest and the shards' numbers of rows: same hash, same rows."""
        n_rows = {str(number): entry.n_rows for number, entry in self.entries.items()}
        return values_sha256({"plan": self.plan.to_dict(), "n_rows": n_rows})

    def _order(self, shard: int) -> np.ndarray:
        """Where each row lies, images in order and their tokens in the model's."""
        coordinates = self.coordinates(shard)
        return np.lexsort((coordinates[:, 4], coordinates[:, 0]))
