"""Files of tensors, in whatever container they come: read as data, never run.

``read_tensors`` opens ``.pt`` and ``.pth`` (today's zip format and that before PyTorch 1.6),
``.pkl`` and ``.pkl.gz``, ``.safetensors``, ``.npz`` and ``.npy``. Which it is, is seen from the
first bytes; names lie.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vit_sae_plugin.inert_pickle import (
    InertUnpickler,
    Storage,
    UnsafeFileError,
    dtype_of_storage,
    plain,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_BYTES_UNPACKED = 1 << 34
_BYTES_AT_A_TIME = 1 << 24
_MAX_JSON_LINE = 1 << 20
_DAMAGE = (
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
)


class UnreadableFileError(ValueError):
    """A file that is damaged, cut off, or no file of tensors."""


def read_tensors(path: Path) -> Any:
    """What a file of tensors holds: nested dicts, lists, tensors on the CPU, and plain values.

    Objects of unknown classes are ``Inert``.

    Raises:
        FileNotFoundError: no such file.
        UnsafeFileError: the file asks to run code.
        UnreadableFileError: it is damaged, cut off, or holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        return _guarded(path.name, lambda: _read(file, path))


def read_after_json_line(path: Path) -> tuple[dict[str, Any], Any]:
    """A JSON object in a file's first line, and the file of tensors that follows it.

    Raises:
        FileNotFoundError, UnsafeFileError, UnreadableFileError: see ``read_tensors``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")

    def read() -> dict[str, Any]:
        with path.open("rb") as file:
            return {"header": _json_line(file), "tensors": _read_bytes(file.read())}

    parts = _guarded(path.name, read)
    return parts["header"], parts["tensors"]


def _json_line(file: BinaryIO) -> dict[str, Any]:
    try:
        header = json.loads(file.readline(_MAX_JSON_LINE))
    except (UnicodeDecodeError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its first line is no JSON object")
    return header


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    try:
        return plain(read())
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name} isn't read: {error}") from None
    except _DAMAGE as error:
        reason = str(error).strip("'\"") or type(error).__name__
        raise UnreadableFileError(
            f"{name} can't be read as a file of tensors ({reason}); it is damaged, cut off, or of "
            "another format: get it again, and compare its size with the original's"
        ) from None


def _read(file: BinaryIO, path: Path) -> Any:
    start = file.read(8)
    file.seek(0)
    if start[:4] == b"PK\x03\x04" and path.suffix == ".npz":
        return _read_npz(file)
    if start[:4] == b"PK\x03\x04":
        return _read_zip(file)
    if _is_safetensors(start, path):
        return _read_safetensors(path)
    if start[:6] == b"\x93NUMPY":
        return torch.from_numpy(np.load(file, allow_pickle=False))
    if start[:2] == b"\x1f\x8b":
        return _read_bytes(_unpacked(file))
    return _read_pickles(file)


def _unpacked(file: BinaryIO) -> bytes:
    parts, n_bytes = [], 0
    with gzip.open(file) as stream:
        while part := stream.read(_BYTES_AT_A_TIME):
            parts.append(part)
            n_bytes += len(part)
            if n_bytes > _MAX_BYTES_UNPACKED:
                raise ValueError(f"it unpacks to more than {_MAX_BYTES_UNPACKED} bytes")
    return b"".join(parts)


def _read_bytes(data: bytes) -> Any:
    file = io.BytesIO(data)
    return _read_zip(file) if data[:4] == b"PK\x03\x04" else _read_pickles(file)


def _is_safetensors(start: bytes, path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    # the length of a JSON header in 8 bytes, then the header
    n_header = int.from_bytes(start, "little")
    if not 2 <= n_header <= path.stat().st_size - 8 or n_header > 100_000_000:
        return False
    with path.open("rb") as file:
        file.seek(8)
        return file.read(1) == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_zip(file: BinaryIO | io.BytesIO) -> Any:
    """PyTorch's format since 1.6: ``NAME/data.pkl`` and the storages, stored uncompressed."""
    n_bytes = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
            raise UnsafeFileError("it is a TorchScript program, not a file of tensors")
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries named data.pkl; want 1")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("its entries are compressed, which PyTorch's never are")
        if sum(info.file_size for info in entries.values()) > n_bytes:
            raise ValueError("its entries overlap")
        folder = pickles[0].removesuffix("data.pkl")
        byteorder = f"{folder}byteorder"
        if byteorder in entries and archive.read(byteorder).strip() not in (b"little", b""):
            raise ValueError("its numbers are stored in big-endian order")
        loaded: dict[str, Tensor] = {}

        def storage_of(pid: Any) -> Storage:
            _tag, storage_type, key, *_rest = pid
            if str(key) not in loaded:
                loaded[str(key)] = _stored(archive, entries[f"{folder}data/{key}"])
            return Storage(loaded[str(key)], dtype_of_storage(storage_type))

        data = io.BytesIO(archive.read(pickles[0]))
        return InertUnpickler(data, storage_of, _read_bytes).load()


def _read_pickles(file: BinaryIO | io.BytesIO) -> Any:
    """A plain pickle, or PyTorch's format before 1.6: five pickles, then the storages' bytes."""
    first = InertUnpickler(file, None, _read_bytes)
    value = first.load()
    if value != _LEGACY_MAGIC or isinstance(value, bool):
        return value
    if InertUnpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError("it is of an unknown version of PyTorch's old format")
    machine = InertUnpickler(file).load()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise ValueError("its numbers are stored in big-endian order")
    return _read_legacy(file)


def _read_legacy(file: BinaryIO | io.BytesIO) -> Any:
    start = file.tell()
    n_left = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    loaded: dict[str, Storage] = {}

    def storage_of(pid: Any) -> Storage:
        if pid[0] == "module":
            return pid[1]
        _tag, storage_type, key, _location, n_numbers, view = pid
        dtype = dtype_of_storage(storage_type)
        n_bytes = n_numbers * dtype.itemsize
        if not 0 <= n_bytes <= n_left:
            raise ValueError(f"a storage of {n_bytes} bytes is in {n_left} bytes of file")
        if str(key) not in loaded:
            # filled below: the bytes come after the pickles
            loaded[str(key)] = Storage(torch.empty(n_bytes, dtype=torch.uint8), dtype)
        if view is None:
            return loaded[str(key)]
        _view_key, offset, n_viewed = view
        first, last = offset * dtype.itemsize, (offset + n_viewed) * dtype.itemsize
        return Storage(loaded[str(key)].bytes[first:last], dtype)

    value = InertUnpickler(file, storage_of, _read_bytes).load()
    for key in InertUnpickler(file).load():
        storage = loaded[str(key)]
        (n_numbers,) = struct.unpack("<q", file.read(8))
        if n_numbers * storage.dtype.itemsize != len(storage.bytes):
            raise ValueError(
                f"its storage {key!r} has {n_numbers} numbers where "
                f"{len(storage.bytes) // storage.dtype.itemsize} were announced"
            )
        _fill(storage.bytes, file)
    return value


def _stored(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    values = torch.empty(entry.file_size, dtype=torch.uint8)
    with archive.open(entry) as stream:
        _fill(values, stream)
        stream.read(1)  # at the end the archive compares its checksum
    return values


def _fill(values: Tensor, file: Any) -> None:
    target = memoryview(values.numpy().data)
    n_read = 0
    while n_read < len(target):
        n_more = file.readinto(target[n_read : n_read + _BYTES_AT_A_TIME])
        if not n_more:
            raise ValueError(f"a storage of {len(target)} bytes ends after {n_read}")
        n_read += n_more
