"""What a cache holds, and how it is cut into shards: the manifest `cache.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.cache.cache_errors import CacheMismatchError, DamagedCacheError
from vit_sae_plugin.activations.cache.row_formats import RowFormat, row_format
from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.field_types import check_values, checked_value
from vit_sae_plugin.fingerprints import short, values_sha256
from vit_sae_plugin.hooked_vit.token_layout import TOKEN_ROLES
from vit_sae_plugin.near_names import near_names

FORMAT = "vit-sae activation cache"
VERSION = 1
MANIFEST_FILE = "cache.json"
MAX_IMAGES = 2**31 - 1
"""Coordinates are int32."""
_COORDINATE_BYTES = 20


@dataclass(frozen=True)
class CachedImages:
    """One source of a cache's images. The first is what the cache was made of; each further one was
    added later."""

    name: str
    """The source's name, for people."""
    fingerprint: str
    """The source's own, over its ids, labels and sizes."""
    n_images: int | None
    """How many of its images the cache has places for; None: a stream that hasn't ended yet."""
    text: str | None = None
    """How it was named, as `open_images` takes it; None for an object."""
    is_stream: bool = False
    """Whether it can only be walked in order."""
    only_new: bool = False
    """Whether images whose ids the cache held already were left out."""
    class_names: list[str] | None = None
    """Label → name."""


@dataclass(frozen=True)
class ShardRange:
    """The images of one shard."""

    number: int
    """Of the shard, from 0 in the whole cache."""
    part: int
    """Which source of images."""
    start: int
    """Its first image, counted within that source."""
    n_images: int
    """Places for images; some may be unreadable, and the last shard of a stream may have fewer."""
    first_index: int
    """Its first image, counted in the whole cache."""


@dataclass(frozen=True)
class CachePlan:
    """All that the writers of a cache must agree on. From it alone follow the shards."""

    folder: Path
    """Where the cache is; not in the manifest."""
    model: dict[str, Any]
    """`ActivationSource.to_metadata()` but for the hook: model, weights' hash, preprocessing,
    token selection, grid."""
    hooks: dict[str, int]
    """Hook → width of its rows, in the order of the forward pass that was asked for."""
    tokens: list[list[int]]
    """Row, column and kind of each token that is kept of an image. Row and column are −1 for what
    is no patch; kinds are numbered as `TOKEN_ROLES`."""
    dtype: str
    """Name of the row format."""
    images_per_shard: int
    """Places for images in every shard but the last of each source."""
    batch_size_images: int
    """Images the model sees at once; another number may change the last bit of a row."""
    autocast_model: bool = False
    """Whether the model ran under bfloat16 autocast."""
    seed: int = 0
    """Of the order of rows within each shard."""
    parts: list[CachedImages] = field(default_factory=list)
    """The sources of images, in the order in which they were added."""

    @property
    def format(self) -> RowFormat:
        """The number format of the rows."""
        return row_format(self.dtype)

    @property
    def n_tokens(self) -> int:
        """Rows of an image."""
        return len(self.tokens)

    @property
    def n_images(self) -> int | None:
        """Places for images in all; None while a stream hasn't ended."""
        counts = [part.n_images for part in self.parts]
        return None if None in counts else sum(n for n in counts if n is not None)

    @property
    def class_names(self) -> list[str] | None:
        """Label → name: of the source that has most; the others' begin alike."""
        return max((part.class_names or [] for part in self.parts), key=len, default=[]) or None

    @cached_property
    def shards(self) -> list[ShardRange]:
        """All shards, in order. Those of a stream that hasn't ended are not known."""
        return [shard for part in range(len(self.parts)) for shard in self._shards_of(part)]

    def shard(self, number: int) -> ShardRange:
        """One shard, also of a stream that hasn't ended.

        Raises:
            ValueError: there is no such shard.
        """
        if 0 <= number < len(self.shards):
            return self.shards[number]
        if number < 0 or self.n_images is not None:
            raise ValueError(f"number is {number}; want 0 to {len(self.shards) - 1}, the shards")
        part, size = len(self.parts) - 1, self.images_per_shard
        known = sum(n for p in self.parts if (n := p.n_images) is not None)
        start = (number - len(self.shards)) * size
        return ShardRange(number, part, start, size, known + start)

    def _shards_of(self, part: int) -> Iterator[ShardRange]:
        n_images, size = self.parts[part].n_images, self.images_per_shard
        if n_images is None:
            return
        earlier = [other.n_images or 0 for other in self.parts[:part]]
        number = sum(-(-n // size) for n in earlier)
        for start in range(0, n_images, size):
            n_here = min(size, n_images - start)
            yield ShardRange(number, part, start, n_here, sum(earlier) + start)
            number += 1

    def image_bytes(self) -> int:
        """Bytes that the rows and coordinates of one image take, over all hooks."""
        row = sum(self.format.row_bytes(d_in) for d_in in self.hooks.values())
        return self.n_tokens * (row + _COORDINATE_BYTES)

    def source(self, hook_name: str) -> ActivationSource:
        """What the rows of a hook are, as an SAE's metadata say it.

        Raises:
            CacheMismatchError: the cache doesn't hold this hook.
        """
        self.check_hook(hook_name)
        return ActivationSource.from_metadata({**self.model, "hook_name": hook_name})

    def check_hook(self, hook_name: str) -> None:
        """Raise a `CacheMismatchError` unless the cache holds this hook."""
        if hook_name in self.hooks:
            return
        near = near_names(hook_name, self.hooks)
        raise CacheMismatchError(
            f"hook_name is {hook_name!r}, but the cache {self.folder} holds "
            f"{', '.join(near or self.hooks)}; want one of these, or a cache of that hook"
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest's contents; `from_dict` reads them."""
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        values = {"format": FORMAT, "version": VERSION, **values, "kinds": list(TOKEN_ROLES)}
        return {**values, "sha256": values_sha256(values)}

    def save(self) -> None:
        """Write the manifest; it is the old one or the new one whenever the process ends."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        write_text_atomically(self.folder / MANIFEST_FILE, text + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> CachePlan:
        """Read a cache's manifest.

        Raises:
            FileNotFoundError: the folder holds no cache.
            DamagedCacheError: the manifest is damaged, or holds values that can't be.
            ValueError: it is of another version.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no activation cache in {str(folder)!r} (it has no {MANIFEST_FILE}); "
                "write one with: vit-sae cache"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as error:
            raise DamagedCacheError(
                f"{path} is damaged ({error}); restore a copy, or write the cache anew"
            ) from None
        return cls._from_dict(Path(folder), values, path)

    @classmethod
    def _from_dict(cls, folder: Path, values: dict[str, Any], path: Path) -> CachePlan:
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise ValueError(
                f"{path} is {values.get('format')!r} of version {values.get('version')!r}; want "
                f"{FORMAT!r} of version {VERSION}, which this release reads"
            )
        sha256 = values.pop("sha256", None)
        if values_sha256(values) != sha256:
            raise DamagedCacheError(
                f"{path} is damaged or was edited (its own hash doesn't fit); restore a copy, or "
                "write the cache anew"
            )
        if values.get("kinds") != list(TOKEN_ROLES):
            raise ValueError(f"{path} numbers kinds as {values.get('kinds')}; want {TOKEN_ROLES}")
        known = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
        try:
            plan = cls(**{**_checked(known), "folder": folder})
            plan._check_numbers()
        except (ValueError, TypeError) as error:
            raise DamagedCacheError(
                f"{path} is damaged ({error}); restore a copy, or write the cache anew"
            ) from None
        return plan

    def _check_numbers(self) -> None:
        """Raise a ValueError for a number from which no shards, files or coordinates follow."""
        counts = [part.n_images for part in self.parts]
        size, batch = self.images_per_shard, self.batch_size_images
        numbers = [size, batch, self.seed, *self.hooks.values(), *counts]
        if broken := [number for number in numbers if isinstance(number, float)]:
            raise ValueError(f"a number is {broken[0]}; want whole ones, without a point")
        if any(d_in < 1 for d_in in self.hooks.values()) or not self.hooks:
            raise ValueError(f"hooks is {self.hooks}; want one or more, and widths of 1 or more")
        n_kinds = len(TOKEN_ROLES)
        if not self.tokens or any(
            len(token) != 3 or not 0 <= token[2] < n_kinds for token in self.tokens
        ):
            raise ValueError(
                f"tokens is {_shown('tokens', self.tokens)}; want row, column and kind "
                f"(0 to {n_kinds - 1}) of each"
            )
        if batch < 1 or size < 1 or size % batch != 0:
            raise ValueError(
                f"images_per_shard is {size} and batch_size_images is {batch}; want 1 or more, and "
                "whole batches in a shard"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; want 0 or more")
        if None in counts[:-1] or any(n is not None and not 0 <= n <= MAX_IMAGES for n in counts):
            raise ValueError(f"n_images of the parts is {counts}; want 0 to {MAX_IMAGES} of each")

    def with_part(self, part: CachedImages) -> CachePlan:
        """The plan with another source of images behind the others."""
        return replace(self, parts=[*self.parts, part])

    def with_last_part_ended(self, n_images: int) -> CachePlan:
        """The plan once the stream that is its last source has ended."""
        return replace(self, parts=[*self.parts[:-1], replace(self.parts[-1], n_images=n_images)])

    def check_same_settings(self, other: CachePlan) -> None:
        """Raise unless the other plan's rows are of the same kind: all but the images.

        Raises:
            CacheMismatchError: the message shows each value, there and now.
        """
        there, now = self._settings(), other._settings()
        check_same(
            str(self.folder),
            {name: (there.get(name), now.get(name)) for name in {**there, **now}},
            "want the same, or another folder",
        )

    def _settings(self) -> dict[str, Any]:
        own = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name not in ("folder", "model", "parts")
        }
        return {**own, "hooks": list(self.hooks), **self.model}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest's values as `CachePlan` takes them.

    Raises:
        ValueError, TypeError: one is missing, unknown or of the wrong type.
    """
    parts = values.get("parts")
    if not isinstance(parts, list) or not parts or {type(part) for part in parts} != {dict}:
        raise ValueError(f"parts is {parts!r}; want the sources of images, one object each")
    for part in parts:
        check_values(part, CachedImages, prefix="parts: ")
    values = {**values, "parts": [CachedImages(**part) for part in parts]}
    check_values({**values, "folder": Path()}, CachePlan)
    for hook_name, d_in in values["hooks"].items():
        check_file_name(hook_name)
        checked_value(f"hooks: {hook_name}", d_in, int)
    row_format(values["dtype"])
    return values


def check_file_name(hook_name: str) -> None:
    """Raise a ValueError for a hook that can't be part of a file's name: no real one is such."""
    if not re.fullmatch(r"\w[\w.]*", hook_name, re.ASCII):
        raise ValueError(f"a hook is called {hook_name!r}; want letters, digits, dots and _")


def check_same(place: str, values: Mapping[str, tuple[Any, Any]], wanted: str) -> None:
    """Raise a `CacheMismatchError` that shows both values of each setting that differs.

    Args:
        place: the cache.
        values: name → (value in the cache, value asked for).
        wanted: what to do.
    """
    differing = [
        f"{name} is {_shown(name, there)} in the cache, but {_shown(name, now)} now"
        for name, (there, now) in values.items()
        if there != now
    ]
    if differing:
        raise CacheMismatchError(f"the cache {place} doesn't fit: {'; '.join(differing)}; {wanted}")


def _shown(name: str, value: Any) -> str:
    if name.endswith("sha256") and isinstance(value, str):
        return short(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 12:
        return f"{value[:6]!r}… ({len(value)} in all)"
    return repr(value)
