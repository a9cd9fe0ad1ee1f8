"""Where the files of an SAE are: on this machine, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<inside>.+))?")
_MAX_LOCAL_FILES = 20_000


class HubError(OSError):
    """A file of the Hugging Face hub that can't be had."""


class SourceFiles:
    """The files among which an SAE's are, by their paths relative to a root.

    Args:
        label: what the user named, for messages and metadata.
        names: all files, relative, with ``/``.
        chosen: the file or folder that the user named, relative; empty: the root.
        root: what the names are relative to.
        fetch: from a relative name to a path on this machine.
    """

    def __init__(
        self,
        label: str,
        names: Sequence[str],
        chosen: str,
        root: Path | str,
        fetch: Callable[[str], Path],
    ) -> None:
        self.label = label
        self.names = sorted(names)
        self.chosen = chosen.strip("/")
        self._root = root
        self._fetch = fetch
        self.main_name = ""
        """The file with the weights, once ``main`` has found it; relative."""
        self.main_file = Path()
        """The same on this machine."""

    def main(self, *patterns: str) -> Path:
        """The file with the weights: the one that was named, or the only one like a pattern.

        Args:
            patterns: file names with ``*``; earlier ones are preferred.

        Raises:
            FileNotFoundError: there is none, or no single one.
        """
        if self.chosen in self.names:
            return self._take(self.chosen)
        inside = f"{self.chosen}/" if self.chosen else ""
        names = [name for name in self.names if name.startswith(inside)]
        if self.chosen and not names:
            raise FileNotFoundError(
                f"{self.label}: there is no {self.chosen!r} in the repository; {_some(self.names)}"
            )
        for pattern in patterns:
            found = [name for name in names if fnmatchcase(PurePosixPath(name).name, pattern)]
            if len(found) == 1:
                return self._take(found[0])
            if found:
                raise FileNotFoundError(
                    f"{self.label} holds {len(found)} files named like {pattern}: "
                    f"{_some(found, 'it has')}; name one, as in KIND:…/{found[0]}"
                )
        raise FileNotFoundError(
            f"{self.label} holds no file named like {' or '.join(patterns)}; {_some(names)}"
        )

    def _take(self, name: str) -> Path:
        self.main_name, self.main_file = name, self._fetch(name)
        return self.main_file

    def beside(self, *names: str, levels: int = 0) -> Path | None:
        """The first of these files in the weights' folder, or in one of ``levels`` above it."""
        folder = PurePosixPath(self.main_name).parent
        for _ in range(levels + 1):
            for name in names:
                if (path := str(folder / name)) in self.names:
                    return self._fetch(path)
            folder = folder.parent
        return None

    @property
    def main_path(self) -> str:
        """The weights' file with all the folders it is in, which may say what it is of."""
        return str(PurePosixPath(self._root, self.main_name))


def source_files(
    source: str | Path, *, revision: str | None = None, force_download: bool = False
) -> SourceFiles:
    """The files of a path on this machine, or of ``ORG/REPO[/FILE]`` on the hub.

    What exists on this machine wins.

    Raises:
        FileNotFoundError: there is no such path, and it can't be the name of a repository.
        HubError: the hub can't be reached, or hasn't got it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _files_around(str(source), path)
    if path.is_dir():
        return _files_within(str(source), path)
    found = _REPOSITORY.fullmatch(str(source))
    if found is None or str(source).startswith((".", "~")):
        raise FileNotFoundError(
            f"there is no file or folder {str(source)!r}, and it isn't ORG/REPO[/FILE] of the "
            "Hugging Face hub"
        )
    return _hub_files(found["repo"], found["inside"] or "", revision, force_download)


def _files_around(label: str, file: Path) -> SourceFiles:
    """A file, and those in its folder and in the two above it, where settings may lie."""
    file = file.absolute()
    top = file.parents[min(2, len(file.parents) - 1)]
    names = [
        path.relative_to(top).as_posix()
        for folder in file.parents[:3]
        for path in folder.iterdir()
        if path.is_file()
    ]
    return SourceFiles(label, names, file.relative_to(top).as_posix(), top, lambda name: top / name)


def _files_within(label: str, root: Path) -> SourceFiles:
    names: list[str] = []
    for folder, _subfolders, file_names in os.walk(root):
        names += [Path(folder, name).relative_to(root).as_posix() for name in file_names]
        if len(names) > _MAX_LOCAL_FILES:
            raise FileNotFoundError(
                f"{label} holds more than {_MAX_LOCAL_FILES} files; name the one with the weights"
            )
    return SourceFiles(label, names, "", root.absolute(), lambda name: root / name)


def _hub_files(repo: str, inside: str, revision: str | None, force_download: bool) -> SourceFiles:
    def fetch(name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            from_hub(
                f"{repo}/{name}",
                lambda: hf_hub_download(
                    repo_id=repo, filename=name, revision=revision, force_download=force_download
                ),
            )
        )

    def names() -> list[str]:
        from huggingface_hub import HfApi

        return list(HfApi().list_repo_files(repo_id=repo, revision=revision))

    label = f"{repo}/{inside}" if inside else repo
    try:
        listed = from_hub(repo, names)
    except HubError:
        snapshot = None if force_download else _downloaded(repo, revision)
        if snapshot is None:
            raise
        listed = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
    return SourceFiles(label, listed, inside, repo, fetch)


def _downloaded(repo: str, revision: str | None) -> Path | None:
    """The folder of what was downloaded of a repository earlier, for use without the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id=repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def from_hub(what: str, ask: Callable[[], Any], done: str = "had from") -> Any:
    """Ask the hub; its client's many errors become one.

    Args:
        what: what is asked for, for the message.
        ask: asks.
        done: what can't be done, in words.

    Raises:
        HubError: anything went wrong.
    """
    try:
        return ask()
    # the client's errors, its HTTP library's and the system's have no common class
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise HubError(
            f"{what} can't be {done} the Hugging Face hub ({type(error).__name__}: {first_line}); "
            "check the name, your access and the connection, or go by files on this machine"
        ) from None


def _some(names: Sequence[str], verb: str = "it holds") -> str:
    if not names:
        return f"{verb} nothing"
    shown = ", ".join(names[:8])
    return f"{verb} {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
