"""Images in a folder, with or without a sub-folder for each class."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vit_sae_plugin.datasets.image_decoding import (
    DEFAULT_LIMITS,
    DecodingLimits,
    refuse,
)
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
    fingerprint_of,
    printable_id,
    valid_text,
)

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif .heic "
    ".heif .ico".split()
)


class FolderImages(ImageSource):
    """All images below a folder, sub-folders in order of their names' bytes.

    A file is an image by its ending (any case), or listed as skipped if it turns out not to be
    one. Links are followed, and each real folder is read once: at its own place if it has one
    below ``root``, else where the first link leads to it. What can never be an image is listed too:
    a folder named like one (it is not entered), a link that leads back to a folder around it or
    to one that is read elsewhere, a folder that may not be read. Hidden sub-folders (".name") are
    ignored.

    Args:
        root: the folder.
        class_folders: each sub-folder of ``root`` is a class, whose index is the sub-folder's place
            in the order; empty ones count, so that splits with the same folders agree. Images
            right in ``root`` have no label. False: no labels at all.
        class_names: names for the classes, by index, or from sub-folder to name. Names may be
            equal; the classes stay apart. Default: the sub-folders' own names.
        name: for reports; default the folder's name.
        suffixes: endings that make a file an image.
        limits: sizes beyond which an image is refused.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        NoReadableImagesError: no file below it has an image's ending.
        ValueError: ``class_names`` do not fit the sub-folders.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        class_folders: bool = True,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        name: str | None = None,
        suffixes: frozenset[str] | set[str] = IMAGE_SUFFIXES,
        limits: DecodingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.root = os.path.abspath(root)
        if not os.path.exists(self.root):
            raise FileNotFoundError(f"there is no folder {self.root!r}; want one of images")
        if not os.path.isdir(self.root):
            raise NotADirectoryError(
                f"{self.root!r} is a file; want a folder of images (for shards, write "
                "'wds:shards-{000..010}.tar')"
            )
        self.name = (
            valid_text(name) if name else printable_id(os.path.basename(self.root) or self.root)
        )
        self.limits = limits
        listing = _Listing(self.root, class_folders, frozenset(s.casefold() for s in suffixes))
        # One block of bytes, not a million strings: worker processes share it untouched.
        self._paths, self._ends = bytes(listing.paths), listing.ends
        self._labels = listing.labels
        self._problems = listing.problems
        self.n_images = len(self._ends)
        if self.n_images == 0:
            raise NoReadableImagesError(_nothing_found(self.root, listing.other_endings))
        has_labels = max(self._labels) >= 0
        self.class_folder_names = listing.class_folders if has_labels else []
        self.class_names = _named(self.class_folder_names, class_names)

    def relative_path(self, index: int) -> str:
        """The file's path from the root, as ``os`` functions want it (see ``os.fsdecode``)."""
        if not 0 <= index < len(self._ends):
            raise IndexError(
                f"index is {index}; want 0 to {len(self._ends) - 1}, those of {self.name}"
            )
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._paths[start : self._ends[index]])

    def record(self, index: int) -> ImageRecord:
        path = self.relative_path(index)
        label = self._labels[index]
        return ImageRecord(
            index=index,
            id=printable_id(path),
            label=label if label >= 0 else None,
            content=(
                partial(refuse, self._problems[index])
                if index in self._problems
                else os.path.join(self.root, path)
            ),
            limits=self.limits,
        )

    def labels(self) -> np.ndarray:
        return np.array(self._labels, dtype=np.int64)

    def fingerprint(self) -> str:
        """Over relative paths, file sizes and labels; where the folder lies does not matter."""
        return fingerprint_of(self._fingerprint_parts())

    def _fingerprint_parts(self) -> Iterator[str | bytes]:
        yield "folder"
        for index in range(len(self._ends)):
            path = self.relative_path(index)
            try:
                n_bytes = os.stat(os.path.join(self.root, path)).st_size
            except OSError:
                n_bytes = -1
            if index in self._problems:
                n_bytes = -1  # a folder's size says nothing about its content
            yield os.fsencode(path)
            yield f"{n_bytes} {self._labels[index]}"


class _Listing:
    """What one walk through the folder finds, packed."""

    def __init__(self, root: str, class_folders: bool, suffixes: frozenset[str]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.paths = bytearray()
        self.ends = array("q")
        self.labels = array("i")
        self.problems: dict[int, str] = {}
        self.class_folders: list[str] = []
        self.other_endings: Counter[str] = Counter()
        self._walk(class_folders)

    def _walk(self, class_folders: bool) -> None:
        # A stack rather than recursion: folders may be nested deeper than Python's call stack.
        around = [_identity(self.root)]
        read = set(around)
        stack = [self._entries("", -1)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                around.pop()
                continue
            path, is_folder, label = found
            if not is_folder:
                self._add(path, label)
                continue
            if os.path.splitext(path)[1].casefold() in self.suffixes:
                self._add(path, label, "a folder, not a file")
                continue
            if class_folders and len(stack) == 1:
                label = len(self.class_folders)
                self.class_folders.append(path)
            identity = _identity(os.path.join(self.root, path))
            if identity in around:
                self._add(path, label, "link loop")
            elif identity in read or (
                os.path.islink(os.path.join(self.root, path)) and identity in self._own_folders
            ):
                self._add(path, label, "link to a folder that is read elsewhere")
            else:
                if identity is not None:
                    read.add(identity)
                around.append(identity)
                stack.append(self._entries(path, label))

    @cached_property
    def _own_folders(self) -> set[tuple[int, int] | None]:
        """Identities of the folders that are reached without a link; asked for at the first link.

        Where a link comes before the folder it leads to, the images still belong to the folder.
        """
        identities = set()
        folders = [self.root]
        while folders:
            with suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and not entry.name.startswith(".")
                        and os.path.splitext(entry.name)[1].casefold() not in self.suffixes
                    ):
                        folders.append(entry.path)
                        identities.add(_identity(entry.path))
        return identities - {None}

    def _entries(self, folder: str, label: int) -> Iterator[tuple[str, bool, int]]:
        """Path, whether it is a folder, and label of what lies in ``folder``, in order."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                inside = sorted((os.fsencode(e.name), _is_folder(e)) for e in entries)
        except OSError as error:
            why = "no permission to read it" if isinstance(error, PermissionError) else "unreadable"
            self._add(folder or ".", label, f"{why}: a folder")
            return
        for raw_name, is_folder in inside:
            name = os.fsdecode(raw_name)
            path = os.path.join(folder, name)
            ending = os.path.splitext(name)[1].casefold()
            if is_folder and not name.startswith("."):
                yield path, True, label
            elif not is_folder and ending in self.suffixes:
                yield path, False, label
            elif not is_folder:
                self.other_endings[ending or "none"] += 1

    def _add(self, path: str, label: int, problem: str | None = None) -> None:
        if problem is not None:
            self.problems[len(self.ends)] = problem
        self.paths += os.fsencode(path)
        self.ends.append(len(self.paths))
        self.labels.append(label)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: left to be listed when it is read
        return False


def _identity(folder: str) -> tuple[int, int] | None:
    """What tells two real folders apart; None if it cannot be read."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _named(folders: list[str], names: Sequence[str] | Mapping[str, str] | None) -> list[str] | None:
    if isinstance(names, Mapping):
        unknown = sorted(set(names) - set(folders))
        if unknown:
            raise ValueError(
                f"class_names has {unknown[:5]}; want names of class sub-folders: "
                f"{folders[:5]}{'…' if len(folders) > 5 else ''}"
            )
        return [valid_text(names.get(folder, printable_id(folder))) for folder in folders]
    if names is not None:
        if isinstance(names, str) or len(names) != len(folders):
            raise ValueError(
                f"class_names has {len(names)} names; want {len(folders)}, one for each class "
                f"sub-folder, in order: {folders[:5]}{'…' if len(folders) > 5 else ''}"
            )
        return [valid_text(name) for name in names]
    return [printable_id(folder) for folder in folders] or None


def _nothing_found(root: str, other_endings: Counter[str]) -> str:
    seen = ", ".join(f"{n} {ending}" for ending, n in other_endings.most_common(5))
    return (
        f"{root!r} holds 0 images; want files that end like images "
        f"({' '.join(sorted(IMAGE_SUFFIXES))}), but it holds "
        + (f"files that end otherwise: {seen}" if seen else "no files")
    )
