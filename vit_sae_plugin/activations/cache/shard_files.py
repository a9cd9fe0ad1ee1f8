"""The files of one shard: where they are, what they hold, and whether they are whole."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from vit_sae_plugin.activations.cache.cache_errors import DamagedCacheError
from vit_sae_plugin.field_types import check_values
from vit_sae_plugin.fingerprints import values_sha256

if TYPE_CHECKING:
    import pandas as pd

    from vit_sae_plugin.activations.cache.cache_plan import CachePlan

SHARDS_FOLDER = "shards"
ENTRY_FILE = "shard.json"
COORDINATES_FILE = "coordinates.bin"
IMAGES_FILE = "images.parquet"
COORDINATE_COLUMNS = ("image", "row", "column", "kind", "token")
_BYTES_AT_A_TIME = 1 << 24


def shard_folder(cache: Path, number: int) -> Path:
    """Where a shard is, once it is finished."""
    return cache / SHARDS_FOLDER / f"shard-{number:06d}"


def rows_file(hook_name: str) -> str:
    """Name of the file that holds a hook's rows."""
    return f"{hook_name}.rows.bin"


def scales_file(hook_name: str) -> str:
    """Name of the file that holds the scale of each of a hook's rows."""
    return f"{hook_name}.scales.bin"


@dataclass(frozen=True)
class ShardEntry:
    """What was written of a shard: its `shard.json`."""

    number: int
    """Of the shard."""
    n_images: int
    """Images visited, readable or not."""
    n_rows: int
    """Rows of each hook."""
    files: Mapping[str, Mapping[str, Any]]
    """File name → `{"size": bytes, "xxh3_128": hex}`."""

    @classmethod
    def load(cls, cache: Path, number: int) -> ShardEntry:
        """Read a finished shard's entry.

        Raises:
            DamagedCacheError: there is none, or it is damaged.
        """
        path = shard_folder(cache, number) / ENTRY_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            sha256 = values.pop("sha256")
            if values_sha256(values) != sha256 or values["number"] != number:
                raise ValueError("its own hash doesn't fit")
            check_values(values, cls)
            for described in values["files"].values():
                check_values(described, _File)
            if values["n_rows"] < 0 or values["n_images"] < 0:
                raise ValueError(f"n_rows is {values['n_rows']}; want 0 or more")
            return cls(**values)
        except FileNotFoundError:
            raise DamagedCacheError(f"shard {number} is missing: {path}; {HOW_TO_MEND}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedCacheError(
                f"shard {number} is damaged: {path} ({error}); {HOW_TO_MEND}"
            ) from None

    def save(self, folder: Path) -> None:
        """Write `shard.json` beside the files it describes."""
        values = {
            "number": self.number,
            "n_images": self.n_images,
            "n_rows": self.n_rows,
            "files": {name: dict(entry) for name, entry in self.files.items()},
        }
        text = json.dumps({**values, "sha256": values_sha256(values)}, indent=1)
        (folder / ENTRY_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _File:
    """What is written down of a file of a shard."""

    size: int
    xxh3_128: str


HOW_TO_MEND = "vit-sae cache --verify lists all damage, --repair writes just those shards anew"


def finished_numbers(cache: Path) -> list[int]:
    """The shards that are there, in order."""
    try:
        names = os.listdir(cache / SHARDS_FOLDER)
    except FileNotFoundError:
        return []
    found = (re.fullmatch(r"shard-(\d{6,})", name, re.ASCII) for name in names)
    numbers = (int(match[1]) for match in found if match is not None)
    return sorted(number for number in numbers if shard_folder(cache, number).name in names)


def expected_sizes(plan: CachePlan, n_rows: int) -> dict[str, int]:
    """Size in bytes of each file of a shard whose size follows from its number of rows."""
    sizes = {COORDINATES_FILE: n_rows * 4 * len(COORDINATE_COLUMNS)}
    for hook_name, d_in in plan.hooks.items():
        sizes[rows_file(hook_name)] = n_rows * d_in * plan.format.itemsize
        if plan.format.has_scales:
            sizes[scales_file(hook_name)] = 4 * n_rows
    return sizes


def find_shard_damage(
    plan: CachePlan, number: int, read: Callable[[int], object] = lambda n_bytes: None
) -> str | None:
    """What is wrong with a shard that should be there; None if nothing is.

    Every byte is read.

    Args:
        plan: the cache's.
        number: of the shard.
        read: called with the number of bytes read, now and then.
    """
    try:
        entry = ShardEntry.load(plan.folder, number)
    except DamagedCacheError as error:
        return str(error)
    folder = shard_folder(plan.folder, number)
    expected = expected_sizes(plan, entry.n_rows)
    if missing := {*expected, IMAGES_FILE} - set(entry.files):
        return f"shard {number} lists no {sorted(missing)[0]}"
    for name, described in entry.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"shard {number} is damaged: {path} is missing"
        size = path.stat().st_size
        if size != described["size"] or size != expected.get(name, size):
            wanted = expected.get(name, described["size"])
            return f"shard {number} is damaged: {path} has {size} bytes where {wanted} were written"
        try:
            found = file_checksum(path, read)
        except OSError as error:
            return f"shard {number} can't be read: {error}"
        if found != described["xxh3_128"]:
            return f"shard {number} is damaged: the contents of {path} have changed"
    return None


def file_checksum(path: Path, read: Callable[[int], object] = lambda n_bytes: None) -> str:
    """XXH3-128 (hex) of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while part := file.read(_BYTES_AT_A_TIME):
            digest.update(part)
            read(len(part))
    return digest.hexdigest()


def write_array(path: Path, values: np.ndarray) -> dict[str, Any]:
    """Write an array's bytes and nothing else; returns size and checksum of what was meant to be
    written, taken from memory, so that a disk's own faults show."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for start in range(0, len(data), _BYTES_AT_A_TIME):
            part = data[start : start + _BYTES_AT_A_TIME]
            file.write(part)
            digest.update(part)
    return {"size": len(data), "xxh3_128": digest.hexdigest()}


def map_array(path: Path, dtype: str, shape: tuple[int, ...], number: int) -> np.ndarray:
    """A file of a shard as a memory-mapped array, read-only.

    Raises:
        DamagedCacheError: it is missing, or not of this size.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedCacheError(
            f"shard {number} is damaged: {path} can't be read ({error.strerror}); {HOW_TO_MEND}"
        ) from None
    if size != n_bytes:
        raise DamagedCacheError(
            f"shard {number} is damaged: {path} has {size} bytes where {n_bytes} were written; "
            f"{HOW_TO_MEND}"
        )
    if n_bytes == 0:
        return np.empty(shape, dtype)  # an empty file can't be mapped
    return np.memmap(path, dtype, "r", shape=shape)


def write_images(path: Path, images: pd.DataFrame) -> dict[str, Any]:
    """Write the table of a shard's images; returns its size and checksum."""
    images.to_parquet(path, index=False)
    return {"size": path.stat().st_size, "xxh3_128": file_checksum(path)}


def read_images(cache: Path, number: int) -> pd.DataFrame:
    """The table of a shard's images: `index`, `id`, `label` (−1 for none), and `skipped`, why it
    could not be used ("" for one that was).

    Raises:
        DamagedCacheError: it is missing or damaged.
    """
    import pandas as pd
    import pyarrow as pa

    path = shard_folder(cache, number) / IMAGES_FILE
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedCacheError(
            f"shard {number} is damaged: {path} can't be read ({error}); {HOW_TO_MEND}"
        ) from None
