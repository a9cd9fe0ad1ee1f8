"""Read pickles without ever running what they ask for.

A pickle is a program: it names functions and calls them. This unpickler knows a short list of
builders for tensors, arrays and plain containers, all of them written here. Every other class
becomes an ``Inert`` container with the class's name and the attributes that were stored, and
any attempt to call something else ends in ``UnsafeFileError``. Nothing is ever imported.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

_DTYPE_OF_STORAGE = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
UNTYPED_STORAGE = "UntypedStorage"


class UnsafeFileError(ValueError):
    """A file asks for code to be run."""


class Inert:
    """What became of an object of a class that this reader doesn't know: its stored attributes.

    ``fields`` holds them; ``class_name`` is the full name under which the class was pickled.
    """

    class_name = ""
    fields: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        if args or kwargs:
            _refuse_call(cls.class_name)
        made = super().__new__(cls)
        object.__setattr__(made, "fields", {})
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        # (attributes, slots), as pickle stores objects with __slots__
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.fields.update({str(name): value for name, value in part.items()})

    def __setitem__(self, name: Any, value: Any) -> None:
        self.fields[str(name)] = value

    def __setattr__(self, name: str, value: Any) -> None:
        self.fields[name] = value

    def append(self, value: Any) -> None:
        self.fields[str(len(self.fields))] = value

    def __repr__(self) -> str:
        return f"Inert({self.class_name}: {', '.join(self.fields)})"


class _Builder:
    """A function that a pickle may call. It has no attributes that a pickle could overwrite."""

    __slots__ = ("_build",)
    _build: Callable[..., Any]

    def __init__(self, build: Callable[..., Any]) -> None:
        object.__setattr__(self, "_build", build)

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafeFileError(f"it asks to change {name!r} of a function; nothing was run")

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafeFileError("it asks to change a function; nothing was run")


class _StorageType:
    """The name of a storage class, as it stands in a pickle of tensors."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafeFileError("it asks to change a storage type; nothing was run")


class Storage:
    """Bytes of tensors, and the number format to read them in."""

    __slots__ = ("bytes", "dtype")

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.bytes = data
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafeFileError("it asks to change a storage; nothing was run")


class InertUnpickler(pickle.Unpickler):
    """Unpickles tensors, arrays and plain values; all else is inert or refused.

    Args:
        file: where the pickle begins.
        storage_of: what the persistent ids of the surrounding format stand for.
        read_nested: reads the bytes that a storage pickled by itself consists of.
    """

    def __init__(
        self,
        file: BinaryIO | io.BytesIO,
        storage_of: Callable[[Any], Storage] | None = None,
        read_nested: Callable[[bytes], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._storage_of = storage_of
        self._read_nested = read_nested
        self._inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in _KNOWN:
            return _KNOWN[full_name]
        if module in ("torch", "torch.storage"):
            if name in _DTYPE_OF_STORAGE or name in (UNTYPED_STORAGE, "TypedStorage"):
                return _StorageType(name)
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
        if full_name == "torch.storage._load_from_bytes" and self._read_nested is not None:
            return _Builder(self._read_nested)
        if full_name not in self._inert:
            made = type(name.rpartition(".")[2], (Inert,), {"class_name": full_name})
            self._inert[full_name] = made
        return self._inert[full_name]

    def persistent_load(self, pid: Any) -> Storage:
        if self._storage_of is None:
            raise ValueError("it refers to tensors that it doesn't hold")
        return self._storage_of(pid)


def dtype_of_storage(storage_type: Any) -> torch.dtype:
    """The number format that a pickled storage class stands for.

    Raises:
        ValueError: it is none that this reader knows.
    """
    name = storage_type.name if isinstance(storage_type, _StorageType) else None
    if name == UNTYPED_STORAGE:
        return torch.uint8
    if name not in _DTYPE_OF_STORAGE:
        raise ValueError(
            f"its tensors are of storage type {name or type(storage_type).__name__}; want one of "
            f"{', '.join(_DTYPE_OF_STORAGE)}"
        )
    return _DTYPE_OF_STORAGE[name]


def _refuse_call(full_name: str) -> NoReturn:
    raise UnsafeFileError(f"it asks to call {full_name}; nothing was run")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_unused: Any) -> Tensor:
    """A tensor on a storage; sizes and strides are checked, for the file may be hostile."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor in it has no storage")
    values = storage.bytes.view(storage.dtype)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor in it has size {size!r} and stride {stride!r}")
    n_wanted = int(np.prod([int(n) for n in size], dtype=object)) if size else 1
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if n_wanted and (last >= len(values) or n_wanted > len(values)):
        raise ValueError(
            f"a tensor in it of size {tuple(size)} needs {max(last + 1, n_wanted)} numbers, but "
            f"its storage holds {len(values)}"
        )
    return values.as_strided(tuple(size), tuple(stride), offset)


def _tensor_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor in it has no storage or no number format")
    return _tensor(Storage(storage.bytes, dtype), offset, size, stride)


def _parameter(data: Any, *_unused: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter in it is no tensor")
    return data


def _nothing(*_unused: Any) -> None:
    """Stands for what has no use here: gradient hooks, layouts, devices' generators."""


def _reconstructed(cls: Any, base: Any = None, state: Any = None) -> Any:
    """An object of a class without ``__reduce__``, as pickle's protocols 0 and 1 store it."""
    if isinstance(cls, type) and issubclass(cls, Inert):
        return cls()
    raise UnsafeFileError(f"it asks to construct {cls!r}; nothing was run")


def _new_object(cls: Any, *args: Any) -> Any:
    if args:
        _refuse_call(getattr(cls, "class_name", repr(cls)))
    return _reconstructed(cls)


class _Array:
    """A numpy array while it is being read."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran_order, data = state
        self.array = _array_of(shape, dtype, fortran_order, data)


class _ArrayType:
    """The format of a numpy array's numbers while it is being read."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_unused: Any) -> None:
        self.code = str(code)
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>=" else "="


def _array_of(shape: Any, dtype: Any, fortran_order: Any, data: Any) -> np.ndarray:
    numbers = _numpy_dtype(dtype)
    if isinstance(data, str):  # as Python 2 and protocol 2 store bytes
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError("an array in it holds objects, not numbers")
    flat = np.frombuffer(data, dtype=numbers)
    return flat.reshape(shape, order="F" if fortran_order else "C").copy()


def _numpy_dtype(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _ArrayType):
        raise ValueError("an array in it has no number format")
    numbers = np.dtype(dtype.code).newbyteorder(dtype.order)  # type: ignore[arg-type]
    if numbers.kind not in "biuf":
        raise ValueError(f"an array in it holds {numbers}, not numbers")
    return numbers


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _array_of(shape, dtype, order == "F", bytes(data))


def _array_scalar(dtype: Any, data: Any) -> Any:
    return _array_of((), dtype, False, data).item()


def _device(*args: Any) -> str:
    return ":".join(str(part) for part in args)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 stores bytes."""
    return str(text).encode("latin1" if encoding == "latin1" else "utf-8")


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts)


_NUMPY_CORES = ("numpy.core", "numpy._core")
_KNOWN: Mapping[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _Builder(lambda *_: {}),
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.tuple": tuple,
    "builtins.bytearray": _Builder(_encoded),
    "__builtin__.set": set,
    "copyreg._reconstructor": _Builder(_reconstructed),
    "copy_reg._reconstructor": _Builder(_reconstructed),
    "copyreg.__newobj__": _Builder(_new_object),
    "_codecs.encode": _Builder(_encoded),
    "torch.Size": tuple,
    "torch.device": _Builder(_device),
    "torch._utils._rebuild_tensor": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v3": _Builder(_tensor_with_dtype),
    "torch._utils._rebuild_parameter": _Builder(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Builder(_parameter),
    "torch.serialization._get_layout": _Builder(_nothing),
    **{
        f"pathlib.{name}": _Builder(_path)
        for name in ("Path", "PurePath", "PosixPath", "WindowsPath", "PurePosixPath")
    },
    **{
        f"{core}.{name}": built
        for core in _NUMPY_CORES
        for name, built in {
            "multiarray._reconstruct": _Builder(lambda *_: _Array()),
            "multiarray.scalar": _Builder(_array_scalar),
            "numeric._frombuffer": _Builder(_array_from_buffer),
        }.items()
    },
    "numpy.dtype": _Builder(_ArrayType),
    # named as the class of an array, never called
    "numpy.ndarray": _StorageType("ndarray"),
}


def plain(value: Any) -> Any:
    """What was read, with arrays as tensors and everything else in ordinary containers.

    Inert objects stay, for a reader that knows their class asks for their fields.

    Raises:
        ValueError: it holds itself, or is nested too deep.
    """
    try:
        return _plain(value, {})
    except RecursionError:
        raise ValueError("it is nested too deep") from None


_UNFINISHED = object()


def _plain(value: Any, done: dict[int, Any]) -> Any:
    # each object once: a small file can refer to one list in exponentially many ways
    if isinstance(value, _Array):
        value = value.array
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, (Inert, dict, list, tuple)):
        return value
    if id(value) in done:
        if done[id(value)] is _UNFINISHED and not isinstance(value, Inert):
            raise ValueError("a container in it holds itself")
        return value if isinstance(value, Inert) else done[id(value)]
    done[id(value)] = _UNFINISHED
    if isinstance(value, Inert):
        for name, item in list(value.fields.items()):
            value.fields[name] = _plain(item, done)
        made: Any = value
    elif isinstance(value, dict):
        made = {name: _plain(item, done) for name, item in value.items()}
    else:
        made = type(value)([_plain(item, done) for item in value])
    done[id(value)] = made
    return made
