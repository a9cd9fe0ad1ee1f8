"""Checkpoints that all processes that share an SAE's latents write together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import override

from vit_sae_plugin.training.checkpoints import CheckpointFolder
from vit_sae_plugin.training.ranks.process_group import Ranks


class SharedCheckpoints(CheckpointFolder):
    """``CheckpointFolder`` of a run whose weights lie with several processes.

    The first makes the folder, hashes it when all have written, and puts it in place; the others
    write into it in between.

    Args:
        path: the folder of checkpoints, on a disk that all see.
        ranks: the processes.
        write_part: what the others do with the folder, while the first does all of ``save``.
    """

    takes_all_processes = True

    def __init__(self, path: Path, ranks: Ranks, write_part: Callable[[Path], None]) -> None:
        super().__init__(path)
        self.ranks = ranks
        self.write_part = write_part

    @override
    def newest_intact(self) -> Path | None:
        """As ``CheckpointFolder.newest_intact``; the first process alone looks."""
        return super().newest_intact() if self.ranks.is_first else None

    @override
    def save(
        self,
        step: int,
        write_files: Callable[[Path], None],
        state: dict[str, Any],
        keep: bool = False,
    ) -> Path:
        """As ``CheckpointFolder.save``, by all processes."""
        if not self.ranks.is_first:
            self.write_part(Path(self.ranks.from_first(None)))
            return self.folder_of(step)

        def write(folder: Path) -> None:
            self.ranks.from_first(str(folder.resolve()))
            write_files(folder)

        return super().save(step, write, state, keep)
