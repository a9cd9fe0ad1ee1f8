"""Embeddings with an id for each row, in memory or in a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.atomic_files import write_file_atomically, write_text_atomically

NonFinite = Literal["refuse", "drop"]
FILE_FORMATS = (".npy", ".safetensors", ".parquet")

_ROWS_AT_A_TIME = 65_536


@dataclass
class EmbeddingRows:
    """Rows ``[n, d]`` and what each stands for, so that a row never loses its image.

    Args:
        rows: a float array, which may be memory-mapped: rows are read when they are used.
        ids: one a row, such as the image's path. Default: ``"0"``, ``"1"``, …
        name: where they came from, for messages.
        non_finite: what to do with rows that hold NaN or infinity: ``"refuse"`` (an error that
            counts them) or ``"drop"`` (leave them out, with a warning that counts them).
    """

    rows: np.ndarray
    ids: Sequence[str] | None = None
    name: str = "embeddings"
    non_finite: NonFinite = "refuse"
    n_dropped: int = field(default=0, init=False)
    """Rows left out because they aren't finite."""

    def __post_init__(self) -> None:
        if self.non_finite not in ("refuse", "drop"):
            raise ValueError(f"non_finite is {self.non_finite!r}; want 'refuse' or 'drop'")
        if self.rows.ndim != 2 or not np.issubdtype(self.rows.dtype, np.floating):
            raise ValueError(
                f"{self.name}: want floating-point rows [n, d], got shape "
                f"{tuple(self.rows.shape)} of {self.rows.dtype}"
            )
        if len(self.rows) == 0:
            raise ValueError(f"{self.name}: there are no rows")
        if self.ids is not None and len(self.ids) != len(self.rows):
            raise ValueError(f"{self.name}: {len(self.rows)} rows, but {len(self.ids)} ids")
        if self.ids is not None:
            self.ids = [str(row_id) for row_id in self.ids]
        self._check_finite()

    def _check_finite(self) -> None:
        finite = np.concatenate(
            [np.isfinite(block).all(axis=1) for block in self._blocks(_ROWS_AT_A_TIME)]
        )
        n_bad = int((~finite).sum())
        if n_bad == 0:
            return
        first = int(np.argmin(finite))
        finding = (
            f"{self.name}: {n_bad} of {len(finite)} rows hold NaN or infinite values "
            f"(the first is row {first})"
        )
        if self.non_finite == "refuse":
            raise ValueError(f"{finding}; mend them, or say non_finite='drop' to leave them out")
        if n_bad == len(finite):
            raise ValueError(f"{finding}: nothing is left")
        warnings.warn(f"{finding}: left out", stacklevel=4)
        keep = np.flatnonzero(finite)
        # The ids must name the rows that stay, also where they were only implied.
        self.ids = [self.id(int(row)) for row in keep]
        self.rows = self.rows[keep]
        self.n_dropped = n_bad

    def _blocks(self, n_rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.rows), n_rows):
            yield np.asarray(self.rows[start : start + n_rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n_rows, d_in = self.rows.shape
        return f"<EmbeddingRows {self.name!r}: {n_rows:,} rows of {d_in} {self.rows.dtype}>"

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return int(self.rows.shape[1])

    def id(self, row: int) -> str:
        """What one row stands for."""
        return str(row) if self.ids is None else self.ids[row]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows and their ids: same embeddings, same hash."""
        digest = sha256(repr((self.rows.shape, str(self.rows.dtype))).encode())
        for block in self._blocks(_ROWS_AT_A_TIME):
            digest.update(np.ascontiguousarray(block).tobytes())
        for row_id in self.ids or ():
            digest.update(row_id.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def tensor(self, rows: slice | np.ndarray) -> Float[Tensor, "rows d_in"]:
        """Some of the rows, as float32."""
        return torch.from_numpy(np.array(self.rows[rows], dtype=np.float32))

    def batches(self, n_rows: int = 4096) -> RowBatches:
        """All rows in order, ``n_rows`` at a time; can be walked again and again."""
        return RowBatches(self, n_rows)

    def save(self, path: str | Path) -> Path:
        """Write rows and ids to ``.npy`` (ids beside it, in ``.ids.json``), ``.safetensors`` or
        ``.parquet``; nothing is left half-written."""
        path = Path(path)
        _check_format(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [self.id(row) for row in range(len(self))]

        def write(unfinished: Path) -> None:
            self._write(unfinished, ids)
            if path.suffix == ".npy":
                # Should this stop halfway, no rows are left rather than rows with others' ids.
                path.unlink(missing_ok=True)
                write_text_atomically(_ids_file(path), json.dumps(ids))

        write_file_atomically(path, write)
        return path

    def _write(self, path: Path, ids: list[str]) -> None:
        rows = np.ascontiguousarray(self.rows, dtype=np.float32)
        if path.suffix == ".npy":
            np.save(path, rows)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({"rows": rows}, path, metadata={"ids": json.dumps(ids)})
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self.d_in)
            pq.write_table(pa.table({"id": ids, "embedding": lists}), path)


@dataclass(frozen=True)
class RowBatches(Iterable[Tensor]):
    """Batches of ``EmbeddingRows``, in order, re-iterable."""

    embeddings: EmbeddingRows
    n_rows: int

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.embeddings), self.n_rows):
            yield self.embeddings.tensor(slice(start, start + self.n_rows))


def load_embedding_rows(
    path: str | Path, *, d_in: int | None = None, non_finite: NonFinite = "refuse"
) -> EmbeddingRows:
    """Read embeddings from a file.

    - ``.npy``: a float array ``[n, d]``, memory-mapped; ids from ``NAME.ids.json`` (a list of
      strings) beside it, if that file exists.
    - ``.safetensors``: the tensor ``rows`` (or the only 2-D float tensor); ids from the metadata
      key ``ids``, a JSON list of strings.
    - ``.parquet``: a column of float lists of one length (``embedding``, or the only such column);
      ids from the column ``id``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a format not listed, no such array, a width other than ``d_in``, or rows that
            aren't finite (see ``non_finite``).
    """
    path = Path(path)
    _check_format(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no embeddings at {path}; want a file of {', '.join(FILE_FORMATS)}"
        )
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
    rows, ids = readers[path.suffix](path)
    if d_in is not None and rows.ndim == 2 and rows.shape[1] != d_in:
        raise ValueError(f"{path.name}: rows are {rows.shape[1]} wide; want {d_in}, the SAE's d_in")
    return EmbeddingRows(rows, ids, name=path.name, non_finite=non_finite)


def _read_npy(path: Path) -> tuple[np.ndarray, list[str] | None]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no .npy file of numbers: {error}") from None
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays; want one array, as numpy.save writes it")
    beside = _ids_file(path)
    if not beside.is_file():
        return rows, None
    return rows, _read_ids(beside.read_text(encoding="utf-8"), beside)


def _read_ids(text: str, place: Path) -> list[str]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the ids in {place} can't be read as JSON: {error}") from None
    if not isinstance(ids, list) or not all(isinstance(row_id, str) for row_id in ids):
        raise ValueError(f"the ids in {place} are no list of texts; want one text for each row")
    return ids


def _read_safetensors(path: Path) -> tuple[np.ndarray, list[str] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no .safetensors file: {error}") from None
    with opened as file:
        names = list(file.keys())
        name = "rows" if "rows" in names else _only(names, path, "tensor", "rows")
        # Through torch, for numpy has no bfloat16.
        rows = file.get_tensor(name)
        rows = (rows.float() if rows.is_floating_point() else rows).numpy()
        ids = (file.metadata() or {}).get("ids")
    return rows, None if ids is None else _read_ids(ids, path)


def _read_parquet(path: Path) -> tuple[np.ndarray, list[str] | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged, or no .parquet file: {error}") from None
    lists = [
        column.name
        for column in table.schema
        if pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
    ]
    name = "embedding" if "embedding" in lists else _only(lists, path, "list column", "embedding")
    column = table[name].combine_chunks()
    widths = {0} if len(column) == 0 else set(column.value_lengths().to_pylist())
    if len(widths) != 1 or None in widths:
        raise ValueError(f"{path.name}: the lists of column {name!r} are not all of one length")
    rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), widths.pop())
    return rows, table["id"].to_pylist() if "id" in table.column_names else None


def _only(names: list[str], path: Path, what: str, preferred: str) -> str:
    if len(names) != 1:
        raise ValueError(
            f"{path.name}: want a {what} named {preferred!r}, or only one; found {names}"
        )
    return names[0]


def _check_format(path: Path) -> None:
    if path.suffix not in FILE_FORMATS:
        raise ValueError(
            f"{path.name}: embeddings are read from and written to {', '.join(FILE_FORMATS)}, "
            f"not {path.suffix or 'a name without an ending'}"
        )


def _ids_file(path: Path) -> Path:
    return path.with_suffix(".ids.json")
