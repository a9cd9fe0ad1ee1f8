"""The rows of one shard in memory, from the model's batches to the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.cache.cache_plan import CachePlan, ShardRange
from vit_sae_plugin.activations.cache.row_formats import RoundingLoss
from vit_sae_plugin.activations.cache.shard_claims import unfinished_folder
from vit_sae_plugin.activations.cache.shard_files import (
    COORDINATE_COLUMNS,
    COORDINATES_FILE,
    IMAGES_FILE,
    SHARDS_FOLDER,
    ShardEntry,
    rows_file,
    scales_file,
    shard_folder,
    write_array,
    write_images,
)
from vit_sae_plugin.atomic_files import folder_beside
from vit_sae_plugin.datasets.image_loader import ImageBatch
from vit_sae_plugin.datasets.skipped_images import SkippedImages

_MAX_ROUNDING_LOSS = 1e-3
_BYTES_AT_A_TIME = 1 << 24


class ShardBuffer:
    """Memory for one shard, which is filled again and again.

    Rows are put where they will lie in the file as they come, so that nothing is sorted later. It
    takes `images_per_shard × plan.image_bytes()` bytes.

    Args:
        plan: the cache's.
    """

    def __init__(self, plan: CachePlan) -> None:
        n_rows = plan.images_per_shard * plan.n_tokens
        row_format = plan.format
        self.plan = plan
        self.shard: ShardRange | None = None
        self._numbers = {
            hook: torch.empty(n_rows, d_in, dtype=row_format.torch_dtype)
            for hook, d_in in plan.hooks.items()
        }
        self._scales = {hook: torch.empty(n_rows) for hook in plan.hooks if row_format.has_scales}
        self._coordinates = torch.empty(n_rows, len(COORDINATE_COLUMNS), dtype=torch.int32)
        tokens = torch.tensor(plan.tokens, dtype=torch.int32)
        numbers = torch.arange(plan.n_tokens, dtype=torch.int32).unsqueeze(1)
        self._tokens = torch.cat([tokens, numbers], dim=1)
        self._places = torch.empty(0, dtype=torch.long)
        self._losses: dict[str, RoundingLoss] = {}
        self._n_rows = 0
        self._images: list[tuple[int, str, int]] = []

    def start(self, shard: ShardRange) -> None:
        """Forget what the buffer held, and draw the order of a shard's rows."""
        self.shard = shard
        self._n_rows = 0
        self._images = []
        self._losses = {hook: RoundingLoss() for hook in self._scales}
        # neighbouring numbers must not give related orders
        mixed = np.random.SeedSequence((self.plan.seed, shard.number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        self._places = torch.randperm(shard.n_images * self.plan.n_tokens, generator=generator)

    def add(self, images: ImageBatch, values: Sequence[Float[Tensor, "batch token d_in"]]) -> None:
        """Put the rows of some images where they belong.

        Args:
            images: in the order of their source, each within the shard.
            values: one for each hook of the plan, in its order.
        """
        if self.shard is None:
            raise RuntimeError("the buffer has no shard; call start() first")
        n_rows = len(images.ids) * self.plan.n_tokens
        places = self._places[self._n_rows : self._n_rows + n_rows]
        for (hook, numbers), value in zip(self._numbers.items(), values, strict=True):
            rows = value.flatten(0, 1)
            encoded, scales = self.plan.format.encode(rows)  # where the model is: less to copy
            numbers[places] = encoded.cpu()
            if scales is not None:
                self._scales[hook][places] = scales.cpu()
                rounded = self.plan.format.decode(encoded, scales)
                self._losses[hook].add(rows.float().cpu(), rounded.cpu())
        index = images.index - self.shard.start + self.shard.first_index
        coordinates = self._tokens.repeat(len(images.ids), 1)
        image = index.to(torch.int32).repeat_interleave(self.plan.n_tokens).unsqueeze(1)
        self._coordinates[places] = torch.cat([image, coordinates], dim=1)
        self._n_rows += n_rows
        self._images += zip(index.tolist(), images.ids, images.label.tolist(), strict=True)

    def check_rounding(self) -> None:
        """Raise a ValueError if the format takes more of a hook's variance than SAEs don't feel:
        where one feature is far larger than all others, a row's scale is that feature's."""
        for hook, loss in self._losses.items():
            if loss.share > _MAX_ROUNDING_LOSS:
                raise ValueError(
                    f"{self.plan.dtype} would take {loss.share:.2%} of the variance of {hook} "
                    f"(want at most {_MAX_ROUNDING_LOSS:.1%}): some feature is far larger than the "
                    "others; want bfloat16, in another folder"
                )

    def save(self, skipped: SkippedImages, n_images: int) -> ShardEntry:
        """Write the shard beside its place, wait until it is on disk, and move it there at once.

        Args:
            skipped: the images of the shard that could not be used, counted in the whole cache.
            n_images: images visited.
        """
        if self.shard is None:
            raise RuntimeError("the buffer has no shard; call start() first")
        number, shards = self.shard.number, self.plan.folder / SHARDS_FOLDER
        shards.mkdir(parents=True, exist_ok=True)
        self._close_gaps()
        kept = slice(self._n_rows)
        target = shard_folder(self.plan.folder, number)
        with folder_beside(target, unfinished_folder(shards, number)) as folder:
            files = {COORDINATES_FILE: _write(folder / COORDINATES_FILE, self._coordinates[kept])}
            for hook, numbers in self._numbers.items():
                files[rows_file(hook)] = _write(folder / rows_file(hook), numbers[kept])
            for hook, scales in self._scales.items():
                files[scales_file(hook)] = _write(folder / scales_file(hook), scales[kept])
            files[IMAGES_FILE] = write_images(folder / IMAGES_FILE, self._table(skipped))
            entry = ShardEntry(number, n_images, self._n_rows, files)
            entry.save(folder)
        return entry

    def _close_gaps(self) -> None:
        """Move rows up over places that stayed empty, for want of images or because they could not
        be read: a piece at a time, for a file's copy would be as large as the buffer."""
        if self._n_rows == len(self._places):
            return
        kept = self._places[: self._n_rows].sort().values
        for values in (self._coordinates, *self._numbers.values(), *self._scales.values()):
            end = 0
            for rows in kept.split(max(1, _BYTES_AT_A_TIME // values[:1].nbytes)):
                start, end = end, end + len(rows)
                values[start:end] = values[rows]  # those still to move lie behind
        self._places = torch.arange(self._n_rows)

    def _table(self, skipped: SkippedImages) -> pd.DataFrame:
        frame = pd.DataFrame(self._images, columns=["index", "id", "label"])
        frame["skipped"] = ""
        unread = skipped.to_frame().rename(columns={"reason": "skipped"})
        unread["label"] = -1
        table = pd.concat([frame, unread[["index", "id", "label", "skipped"]]])
        table = table.astype({"index": "int64", "label": "int64", "id": str, "skipped": str})
        return table.sort_values("index", ignore_index=True)


def _write(path: Path, values: Tensor) -> dict[str, object]:
    return write_array(path, values.contiguous().view(torch.uint8).numpy())
