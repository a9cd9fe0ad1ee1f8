"""Latents of a whole data set on disk: sparse rows with their image ids, in the images' order.

A folder of this format (version 1) holds

- ``latents.json``: ``format_version``, ``d_sae``, ``n_rows``, ``n_images``, ``n_values``,
  ``shards`` (file names in order), and ``source``: the model and hook they come from;
- ``latents-00000.safetensors``, …: compressed sparse rows. Row r of a shard has the latents
  ``indices[indptr[r]:indptr[r + 1]]`` (int32, rising) with ``values`` at the same places; it
  belongs to the image ``image_index[r]`` (int64) and to the token at ``token_position[r]`` of the
  model's token axis (int32; 0 for pooled embeddings);
- ``images.parquet``: ``image_index`` (position in the source), ``id``, ``label`` (−1: none).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_sae_plugin.atomic_files import delete_leftovers, folder_beside
from vit_sae_plugin.evaluation.reconstruction import check_finite

FORMAT_VERSION = 1
HEADER_FILE = "latents.json"
IMAGES_FILE = "images.parquet"
_IMAGE_COLUMNS = pa.schema(
    [("image_index", pa.int64()), ("id", pa.string()), ("label", pa.int64())]
)


@dataclass
class SparseLatents:
    """Sparse rows of latents and what each row belongs to.

    ``(values, indices, indptr)`` are what ``scipy.sparse.csr_matrix`` takes.
    """

    values: Float[Tensor, " values"]
    """All activations that aren't zero, row after row."""
    indices: Int[Tensor, " values"]
    """The latent of each."""
    indptr: Int[Tensor, " rows_and_one"]
    """Row r has the values from ``indptr[r]`` up to, without, ``indptr[r + 1]``."""
    image_index: Int[Tensor, " rows"]
    """The image of each row, by its position in the source."""
    token_position: Int[Tensor, " rows"]
    """The token of each row."""
    images: pd.DataFrame
    """``id`` and ``label`` by ``image_index``, in the order in which they were written."""
    d_sae: int
    """Number of latents."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def row_ids(self) -> list[str]:
        """The image id of each row."""
        return self.images["id"].loc[self.image_index.numpy()].to_list()

    def to_dense(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows d_sae"]:
        """Some of the rows, zeros included."""
        bounds = self.indptr[start : None if stop is None else stop + 1]
        span = slice(int(bounds[0]), int(bounds[-1]))
        row = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
        dense = torch.zeros(len(bounds) - 1, self.d_sae, dtype=self.values.dtype)
        dense[row, self.indices[span].long()] = self.values[span]
        return dense


def load_latents(folder: str | Path, shard: int | None = None) -> SparseLatents:
    """Read back what ``save_latents`` wrote.

    Args:
        folder: where it wrote to.
        shard: read only this one of the shards (``latents.json`` lists them), for data sets that
            don't fit in memory.

    Raises:
        FileNotFoundError: no latents there.
        ValueError: a format version that this release doesn't know.
        IndexError: there is no such shard.
    """
    folder = Path(folder)
    header = read_header(folder)
    names = header["shards"]
    if shard is not None:
        if not 0 <= shard < len(names):
            raise IndexError(f"shard is {shard}; want 0 to {len(names) - 1}, those of {folder}")
        names = [names[shard]]
    parts = [load_file(folder / name) for name in names]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part["values"]))
    indptr = [part["indptr"][1:] + start for part, start in zip(parts, offsets, strict=False)]
    joined = {
        name: torch.cat([part[name] for part in parts])
        for name in ("values", "indices", "image_index", "token_position")
    }
    return SparseLatents(
        **joined,
        indptr=torch.cat([torch.zeros(1, dtype=torch.int64), *indptr]),
        images=pd.read_parquet(folder / IMAGES_FILE).set_index("image_index"),
        d_sae=header["d_sae"],
    )


def read_header(folder: Path) -> dict[str, Any]:
    """The content of ``latents.json``, if this release can read the folder."""
    path = folder / HEADER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no saved latents in {folder}: it has no {HEADER_FILE}")
    header = json.loads(path.read_text(encoding="utf-8"))
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} is of format version {header.get('format_version')}; want "
            f"{FORMAT_VERSION}, which this release reads"
        )
    return header


class LatentWriter:
    """Writes latents batch by batch, in constant memory; the folder appears only when complete.

    Use it as a context manager. An exception inside leaves nothing behind, and what a killed
    process leaves beside the place the next writer there removes.

    Args:
        folder: where to; must not exist, unless ``overwrite``.
        d_sae: number of latents.
        source: what to note about where they come from; plain JSON values.
        dtype: of the values on disk.
        overwrite: replace latents saved there before.
        max_shard_values: a shard is closed once it holds that many values.

    Raises:
        FileExistsError: the folder exists and may not be replaced, or holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        d_sae: int,
        source: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        overwrite: bool = False,
        max_shard_values: int = 2**24,
    ):
        self.folder = Path(folder)
        if self.folder.exists() and not (overwrite and (self.folder / HEADER_FILE).is_file()):
            raise FileExistsError(
                f"{self.folder} exists; choose another place, or overwrite=True to replace latents "
                "saved there (nothing else is ever replaced)"
            )
        self.d_sae = d_sae
        self.source = dict(source)
        self.dtype = dtype
        self.max_shard_values = max_shard_values
        self._n_rows = self._n_images = self._n_values = 0
        self._shards: list[str] = []
        self._pending: list[dict[str, Tensor]] = []
        self._n_pending = 0

    def __enter__(self) -> Self:
        delete_leftovers(self.folder.parent)
        with ExitStack() as stack:
            self._unfinished = stack.enter_context(folder_beside(self.folder))
            images = pq.ParquetWriter(self._unfinished / IMAGES_FILE, _IMAGE_COLUMNS)
            self._images = stack.enter_context(images)
            self._stack = stack.pop_all()
        return self

    def add(
        self,
        latents: Float[Tensor, "batch token d_sae"],
        image_index: Sequence[int],
        ids: Sequence[str],
        labels: Sequence[int],
        token_positions: Int[Tensor, " token"],
    ) -> None:
        """Add the next images, each with the same tokens.

        Raises:
            ValueError: the latents hold NaN or infinity.
        """
        check_finite(latents=latents)
        n_images, n_tokens, _ = latents.shape
        row, index = latents.flatten(0, 1).nonzero(as_tuple=True)
        values = latents.flatten(0, 1)[row, index].to(self.dtype)
        counts = torch.bincount(row, minlength=n_images * n_tokens)
        self._pending.append(
            {
                "values": values.cpu(),
                "indices": index.int().cpu(),
                "counts": counts.cpu(),
                "image_index": torch.tensor(image_index).repeat_interleave(n_tokens),
                "token_position": token_positions.int().cpu().repeat(n_images),
            }
        )
        self._n_pending += len(values)
        self._n_images += n_images
        columns = [list(image_index), list(ids), list(labels)]
        self._images.write_table(pa.table(columns, schema=_IMAGE_COLUMNS))
        if self._n_pending >= self.max_shard_values:
            self._close_shard()

    def _close_shard(self) -> None:
        joined = {
            name: torch.cat([part[name] for part in self._pending]) for name in self._pending[0]
        }
        counts = joined.pop("counts")
        joined["indptr"] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        name = f"latents-{len(self._shards):05d}.safetensors"
        save_file(joined, self._unfinished / name)
        self._shards.append(name)
        self._n_rows += len(counts)
        self._n_values += self._n_pending
        self._pending, self._n_pending = [], 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    def _finish(self) -> None:
        if self._pending or not self._shards:
            self._close_shard()
        header = {
            "format_version": FORMAT_VERSION,
            "d_sae": self.d_sae,
            "n_rows": self._n_rows,
            "n_images": self._n_images,
            "n_values": self._n_values,
            "shards": self._shards,
            "source": self.source,
        }
        text = json.dumps(header, indent=2, ensure_ascii=False)
        (self._unfinished / HEADER_FILE).write_text(text + "\n", encoding="utf-8")
