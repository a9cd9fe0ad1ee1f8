"""Checkpoints that a crash can't spoil: written aside, hashed, then put in place in one move."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vit_sae_plugin.atomic_files import (
    delete_folder,
    delete_leftovers,
    write_folder_atomically,
)
from vit_sae_plugin.fingerprints import (
    MANIFEST,
    DamagedFileError,
    find_file_damage,
    read_manifest,
    write_manifest,
)
from vit_sae_plugin.training.ranks.process_group import RankLostError

STATE = "run_state.json"
SHARD_FILES = "shard-*.safetensors"
"""Of a checkpoint that several processes wrote, each the part of the weights that it holds."""
N_NEWEST_KEPT = 2
_STEP_FOLDER = "step_*"
_GO_ON = "delete this checkpoint to go on from the one before"


class DamagedCheckpointError(DamagedFileError):
    """No checkpoint of a run is intact."""


class CheckpointFolder:
    """The checkpoints of one run, a folder each, named by their training step.

    Each holds what SAELens saves (so ``SAE.load_from_disk`` opens it), ``run_state.json``, and
    ``manifest.json`` with every other file's size and SHA-256.

    Args:
        path: the folder of checkpoints; made when the first one is saved.
    """

    takes_all_processes = False
    """Whether ``save`` must be called by several processes at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def save(
        self,
        step: int,
        write_files: Callable[[Path], None],
        state: dict[str, Any],
        keep: bool = False,
    ) -> Path:
        """Save a checkpoint, then delete those no longer needed.

        Args:
            step: training steps done.
            write_files: writes the checkpoint's files into the folder it is given.
            state: plain values, kept in ``run_state.json``.
            keep: never delete this checkpoint. Of the others the newest two are kept.
        """

        def write(folder: Path) -> None:
            write_files(folder)
            (folder / STATE).write_text(json.dumps({**state, "keep": keep}))
            write_manifest(folder)

        target = self.folder_of(step)
        write_folder_atomically(target, write)
        self._delete_old()
        return target

    def folder_of(self, step: int) -> Path:
        """The checkpoint made after that many training steps."""
        return self.path / f"step_{step:09d}"

    def newest_intact(self) -> Path | None:
        """The newest checkpoint whose files are all as they were written.

        Warns of each damaged one on the way. None if there is no checkpoint at all.

        Raises:
            DamagedCheckpointError: there are checkpoints, but all are damaged.
        """
        folders = self._folders()
        for folder in folders:
            damage = find_damage(folder)
            if damage is None:
                return folder
            warnings.warn(
                f"checkpoint {folder} is damaged ({damage}); the one before it is used",
                stacklevel=2,
            )
        if folders:
            raise DamagedCheckpointError(
                f"all {len(folders)} checkpoints in {self.path} are damaged; delete them to train "
                "from the beginning"
            )
        return None

    def newest(self) -> Path | None:
        """The newest checkpoint, whose files aren't checked; None if there is none."""
        return next(iter(self._folders()), None)

    def settings(self) -> dict[str, Any] | None:
        """The settings that the newest readable checkpoint was made with; None if none says so.

        Its files aren't checked: that takes as long as reading them.
        """
        for folder in self._folders():
            try:
                return read_state(folder)["settings"]
            except (OSError, ValueError, KeyError):
                continue
        return None

    def delete_leftovers(self) -> None:
        """Delete what interrupted writing left behind. Nobody else may be writing."""
        delete_leftovers(self.path, exclusive=True)

    def _folders(self) -> list[Path]:
        """All checkpoints, the newest first."""
        return sorted(self.path.glob(_STEP_FOLDER), reverse=True)

    def _delete_old(self) -> None:
        disposable = [folder for folder in self._folders() if not _is_kept(folder)]
        for folder in disposable[N_NEWEST_KEPT:]:
            delete_folder(folder)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values that ``CheckpointFolder.save`` was given.

    Raises:
        DamagedCheckpointError: the file holds something else.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is damaged ({error}); {_GO_ON}") from None
    entries = [state] if not isinstance(state, dict) else map(state.get, ("settings", "model"))
    if not all(isinstance(entry, dict | None) for entry in entries) or state is None:
        raise DamagedCheckpointError(f"{path} is damaged: it holds no state; {_GO_ON}")
    return state


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """What fails within fails because the checkpoint holds something else than it should.

    Raises:
        DamagedCheckpointError: instead of the error of whatever met it.
    """
    try:
        yield
    except RankLostError:
        raise
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError) as error:
        raise DamagedCheckpointError(
            f"checkpoint {checkpoint} can't be restored ({type(error).__name__}: {error}); "
            "delete it to go on from the one before"
        ) from error


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    manifest = read_manifest(checkpoint)
    if not isinstance(manifest, dict):
        return f"{MANIFEST} is missing or unreadable"
    if STATE not in manifest:
        return f"{MANIFEST} is incomplete"
    return find_file_damage(checkpoint, manifest)


def _is_kept(checkpoint: Path) -> bool:
    try:
        return bool(read_state(checkpoint)["keep"])
    except (OSError, ValueError, KeyError):
        return False
