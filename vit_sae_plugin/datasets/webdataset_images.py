"""Images in WebDataset shards: tar files in which neighbouring files form a sample."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from glob import glob, has_magic
from typing import Any
from urllib.parse import urlparse

from vit_sae_plugin.datasets.folder_images import IMAGE_SUFFIXES
from vit_sae_plugin.datasets.image_decoding import (
    DEFAULT_LIMITS,
    DecodingLimits,
    refuse,
)
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    fingerprint_of,
    printable_id,
    valid_text,
)


class WebDatasetImages(ImageSource):
    """A stream of the samples of tar shards, shard by shard in the order given.

    A sample's label is its ``cls`` file (an integer, or one of ``class_names``), else ``label`` or
    ``cls`` in its ``json`` file. A sample without an image, and a shard that is missing or breaks
    off, are listed as skipped; the samples before the break are used.

    Args:
        shards: paths or URLs as the webdataset library takes them ("train-{000..127}.tar"), a
            pattern with "*" for local files, or a sequence of these.
        image_key: ending of the image in a sample ("jpg", "input.png"); default the first that
            is an image's.
        label_key: the key in ``json`` that holds the label.
        class_names: by label index; may repeat.
        name: for reports.
        limits: sizes beyond which an image is refused.

    Raises:
        ImportError: the webdataset library is missing.
        ValueError: no shard is named.
    """

    is_streaming = True

    def __init__(
        self,
        shards: str | Sequence[str],
        *,
        image_key: str | None = None,
        label_key: str | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        limits: DecodingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.shards = _expanded([shards] if isinstance(shards, str) else shards)
        if not self.shards:
            raise ValueError(f"no shards match {shards!r}; want names or patterns of .tar files")
        self.image_key = image_key
        self.label_keys = ("label", "cls") if label_key is None else (label_key,)
        self.class_names = None if class_names is None else [valid_text(n) for n in class_names]
        self.name = valid_text(name or _short(self.shards[0]))
        self.limits = limits
        short = [_short(shard) for shard in self.shards]
        self._warned_of_labels = False
        self._shard_ids = short if len(set(short)) == len(short) else self.shards

    def records(self, start: int = 0) -> Iterator[ImageRecord]:
        """All samples from position ``start`` on; the shards before it are read, not decoded."""
        for index, (id, label, content) in enumerate(self._samples()):
            if index >= start:
                yield ImageRecord(index, printable_id(id), label, content, self.limits)

    def fingerprint(self) -> str:
        """Over the shards' names and, where they are local files, sizes."""

        def parts() -> Iterator[str]:
            yield "webdataset"
            yield f"{self.image_key} {self.label_keys}"
            for shard in self.shards:
                yield _short(shard)
                yield str(os.path.getsize(shard)) if os.path.isfile(shard) else "elsewhere"

        return fingerprint_of(parts())

    def _samples(self) -> Iterator[tuple[str, int | None, Any]]:
        from webdataset.tariterators import tarfile_samples

        for shard, shard_id in zip(self.shards, self._shard_ids, strict=True):
            errors: list[Exception] = []

            def note(error: Exception, errors: list[Exception] = errors) -> bool:
                errors.append(error)
                return True  # go on with whatever can still be read

            for sample in tarfile_samples([{"url": shard}], handler=note):
                yield f"{shard_id}/{sample['__key__']}", self._label(sample), self._image(sample)
            if errors:
                seen = f"{type(errors[0]).__name__}: {errors[0].args[0] if errors[0].args else ''}"
                yield shard_id, None, partial(refuse, f"missing or damaged shard: {seen}")

    def _image(self, sample: dict[str, Any]) -> Any:
        if self.image_key is not None:
            keys = [self.image_key] if self.image_key in sample else []
        else:
            keys = [key for key in sample if f".{key.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        if keys:
            return sample[keys[0]]
        has = ", ".join(key for key in sample if not key.startswith("__"))
        return partial(refuse, f"no image in this sample: it has {has}")

    def _label(self, sample: dict[str, Any]) -> int | None:
        try:
            if "cls" in sample:
                return self._class_index(sample["cls"].decode().strip())
            if "json" in sample:
                facts = json.loads(sample["json"])
                values = [facts[key] for key in self.label_keys if key in facts]
                return self._class_index(values[0]) if values else None
        except (ValueError, TypeError):
            if not self._warned_of_labels:
                warnings.warn(
                    f"Some samples of {self.name} have a class that is neither an index nor one of "
                    "class_names; they count as unlabelled.",
                    stacklevel=2,
                )
            self._warned_of_labels = True
        return None

    def _class_index(self, value: Any) -> int | None:
        names = self.class_names or []
        if isinstance(value, str) and names.count(value) == 1 and not value.isdecimal():
            return names.index(value)
        label = int(value)
        if label != float(value) or (names and label >= len(names)):
            raise ValueError(f"class {value!r}; want an index of {len(names)} classes")
        return label if label >= 0 else None


def _expanded(shards: Sequence[str]) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError(
            "WebDataset shards want the webdataset library: "
            "pip install 'vit-sae-plugin[webdataset]'"
        ) from error
    urls = []
    for shard in shards:
        try:
            urls += expand_urls(str(shard))
        except (AssertionError, ValueError) as error:  # a variable not set, braces not closed
            raise ValueError(f"the shards {str(shard)!r} can't be expanded: {error}") from None
    found: list[str] = []
    for url in urls:
        is_local = "://" not in url and not url.startswith("pipe:")
        is_pattern = is_local and has_magic(url) and not os.path.exists(url)
        found += sorted(map(_as_path, glob(url))) if is_pattern else [url]
    return found


def _as_path(name: str) -> str:
    """A file's own name must not be taken for a URL: one can be called "pipe:rm x;.tar"."""
    return os.path.join(os.curdir, name) if urlparse(name).scheme else name


def check_only_local_files(shards: str) -> None:
    """Refuse shards that webdataset would open by starting a program.

    It runs ``pipe:`` in a shell and reads every URL through a pipe from ``curl`` and the like, so
    what a file names may be nothing but local files. The test is webdataset's own: the URL's
    scheme, after braces, ``::`` and variables are expanded.

    Raises:
        ValueError: a shard is standard input, or has a scheme other than ``file``.
    """
    for shard in _expanded([shards]):
        if shard == "-" or urlparse(shard).scheme not in ("", "file"):
            raise ValueError(f"{_shown(shard)} is no local file")


def _shown(shard: str) -> str:
    return repr(shard if len(shard) <= 80 else f"{shard[:79]}…")


def _short(shard: str) -> str:
    return shard.rstrip("/").rpartition("/")[2]
