"""Activations that saev wrote to disk: its shards, protocol 2, read where they lie.

A folder holds ``metadata.json``, ``shards.json`` and ``acts000000.bin``, ``acts000001.bin``, …,
each float32 in C order ``[example, layer, token, d_model]`` (saev,
``docs/src/developers/protocol.md``). The folder's name is the SHA-256 of the metadata. Their key
``data`` holds a pickle, which runs what it says when it is opened: it is never decoded here.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

PROTOCOLS = ("2.0", "2.1")
_SHARD_NAME = re.compile(r"acts\d{6}\.bin")
_AFTER_BLOCK = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_BYTES_PER_NUMBER = 4


def is_saev_text(text: Any) -> bool:
    """Whether a text names saev's shards, as in ``"saev:PATH"``."""
    return isinstance(text, str) and text.startswith("saev:")


def open_saev(text: Any) -> SaevShards | None:
    """The shards that ``"saev:PATH"`` names; None for anything else.

    Raises:
        FileNotFoundError, ValueError: see ``SaevShards``.
    """
    return SaevShards(text.removeprefix("saev:")) if is_saev_text(text) else None


class SaevShards:
    """A folder of saev's shards, checked when it is opened; rows are read as they are asked for.

    Warns if the folder's name isn't the SHA-256 of its metadata, as it is where saev wrote it.

    Args:
        path: the folder.

    Attributes:
        family, ckpt: saev's names of the model, such as ``"clip"`` and ``"ViT-B-16/openai"``.
        layers: the blocks whose outputs are kept.
        has_cls_token: whether the first token of each example is the class token.
        n_patches: patches of an example, which follow it.
        d_model: width of a row.
        n_examples: images in all.
        sha256: of the metadata.

    Raises:
        FileNotFoundError: the folder, one of its JSON files or a shard is missing.
        ValueError: an unknown protocol, a value that is missing or impossible, or a shard of the
            wrong size.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}; want a folder of saev's shards")
        values = _read_json(self.path / "metadata.json", dict)
        protocol = self._value(values, str, "protocol")
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"{path} has saev's protocol {protocol!r}; want one of {', '.join(PROTOCOLS)}"
            )
        dtype = self._value(values, str, "dtype")
        if dtype != "float32":
            raise ValueError(f"{path} has dtype {dtype!r}; want 'float32'")
        layers = self._value(values, list, "layers")
        if not layers or not all(type(layer) is int for layer in layers):
            raise ValueError(f"{path} has layers {layers!r}; want numbers of blocks")
        if len(set(layers)) < len(layers):
            raise ValueError(f"{path} has layers {layers}; want each once")
        self.layers: tuple[int, ...] = tuple(layers)
        self.family: str = self._value(values, str, "family")
        self.ckpt: str = self._value(values, str, "ckpt")
        self.has_cls_token: bool = self._value(values, bool, "cls_token")
        self.n_patches = self._count(values, "content_tokens_per_example", "patches_per_ex")
        self.d_model = self._count(values, "d_model")
        self.n_examples = self._count(values, "n_examples", "n_ex")
        self.sha256 = self._check_name(values)
        self._shards = self._read_shards()
        self._first_examples = np.cumsum([0, *(n for _, n in self._shards)])[:-1]
        self._open: dict[int, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"<SaevShards of {self.ckpt}, layers {list(self.layers)}: {self.n_examples:,} examples "
            f"of {self.n_tokens} × {self.d_model}>"
        )

    @property
    def n_tokens(self) -> int:
        """Tokens kept of each example."""
        return self.n_patches + int(self.has_cls_token)

    def layer_of(self, hook_name: str) -> int:
        """The layer that a hook's name means: saev keeps what comes out of blocks.

        Raises:
            ValueError: it is no block's output, or that of a block that isn't kept.
        """
        match = _AFTER_BLOCK.fullmatch(hook_name)
        if match is not None and int(match[1]) in self.layers:
            return int(match[1])
        kept = [f"blocks.{layer}.hook_resid_post" for layer in self.layers]
        raise ValueError(f"hook_name is {hook_name!r}; want one that {self.path} has: {kept}")

    def tokens(self, token_kind: str) -> slice:
        """Where an example's tokens of a kind are.

        Raises:
            ValueError: an unknown kind, or the class token where none was kept.
        """
        n_prefix = int(self.has_cls_token)
        kinds = {"all": slice(0, self.n_tokens), "patches": slice(n_prefix, self.n_tokens)}
        if self.has_cls_token:
            kinds["cls"] = slice(0, 1)
        if token_kind not in kinds:
            raise ValueError(
                f"token_kind is {token_kind!r}; want one that {self.path} has: {', '.join(kinds)}"
            )
        return kinds[token_kind]

    def example(self, number: int, layer: int) -> Float[np.ndarray, "token d_model"]:
        """One example's rows of a layer: memory-mapped, read-only.

        Args:
            number: of the example, counted over all shards.
            layer: one of ``layers``.
        """
        shard = int(np.searchsorted(self._first_examples, number, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = self._map(shard)
        return self._open[shard][number - self._first_examples[shard], self.layers.index(layer)]

    def _map(self, shard: int) -> np.ndarray:
        name, n_examples = self._shards[shard]
        shape = (n_examples, len(self.layers), self.n_tokens, self.d_model)
        return np.memmap(self.path / name, dtype="<f4", mode="r", shape=shape)

    def _read_shards(self) -> list[tuple[str, int]]:
        """Name and number of examples of each shard that holds any."""
        where = self.path / "shards.json"
        shards = []
        for entry in _read_json(where, list):
            if not isinstance(entry, dict):
                raise ValueError(f"{where} has the entry {entry!r}; want name and n_examples")
            name = self._value(entry, str, "name", where=where)
            n_examples = self._value(entry, int, "n_examples", "n_ex", where=where)
            if not _SHARD_NAME.fullmatch(name) or n_examples < 0:
                raise ValueError(
                    f"{where} has a shard {name!r} of {n_examples} examples; want a name like "
                    "acts000000.bin and 0 or more"
                )
            if n_examples > 0:
                self._check_size(name, n_examples)
                shards.append((name, n_examples))
        n_there = sum(n for _, n in shards)
        if n_there != self.n_examples:
            raise ValueError(
                f"{where} has {n_there:,} examples; want {self.n_examples:,} as metadata.json says "
                "(saev was stopped while it wrote?)"
            )
        return shards

    def _check_size(self, name: str, n_examples: int) -> None:
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, which shards.json names")
        per_example = len(self.layers) * self.n_tokens * self.d_model * _BYTES_PER_NUMBER
        size = path.stat().st_size
        # saev lays out each file for a full shard, so the last one may be longer than its contents
        if size < n_examples * per_example or size % per_example:
            raise ValueError(
                f"{path} has {size:,} bytes; want {n_examples * per_example:,} or more, a multiple "
                f"of the {per_example:,} of one example"
            )

    def _check_name(self, values: dict[str, Any]) -> str:
        as_written = _sha256(values, ensure_ascii=False)
        found = self.path.resolve().name
        if found not in (as_written, _sha256(values, ensure_ascii=True)):
            warnings.warn(
                f"the folder is called {found}, but saev calls it by the SHA-256 of its metadata, "
                f"{as_written}: it was renamed, or metadata.json was changed",
                stacklevel=3,
            )
        return as_written

    def _value(
        self, values: dict[str, Any], kind: type, *names: str, where: Path | None = None
    ) -> Any:
        """The value of the first of these names that is there."""
        where = where or self.path / "metadata.json"
        found = next((values[name] for name in names if name in values), None)
        if type(found) is not kind:
            raise ValueError(f"{where} has {names[0]} = {found!r}; want a {kind.__name__}")
        return found

    def _count(self, values: dict[str, Any], *names: str) -> int:
        found = self._value(values, int, *names)
        if found < 1:
            raise ValueError(f"{self.path} has {names[0]} = {found}; want 1 or more")
        return found


def _read_json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; want a folder of saev's shards")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); want it as saev wrote it") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path} holds a {type(found).__name__}; want a {kind.__name__}")
    return found


def _sha256(values: dict[str, Any], *, ensure_ascii: bool) -> str:
    text = json.dumps(
        values, sort_keys=True, separators=(",", ":"), ensure_ascii=ensure_ascii, allow_nan=True
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
