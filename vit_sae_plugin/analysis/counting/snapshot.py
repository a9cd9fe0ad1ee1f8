"""An unfinished analysis on disk, so that it can go on after an interruption."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from vit_sae_plugin.analysis.atlas.atlas_folder import SNAPSHOT_MARK
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.atomic_files import delete_folder, write_folder_atomically
from vit_sae_plugin.fingerprints import check_file_hashes, file_hashes

_STATE, _IMAGES, _SKIPPED = "state.safetensors", "images.parquet", "skipped_images.csv"


@dataclass
class Snapshot:
    """Where an unfinished analysis stands."""

    settings: dict[str, Any]
    """What it was started with; to go on, all of it must be the same."""
    threshold: float
    """The threshold of its counts."""
    typical_activation: float | None
    """What the threshold is relative to, if it is."""
    next_batch: int
    """Number of the first batch not yet taken in."""
    skipped_images: pd.DataFrame
    """Images that could not be read so far."""


def save_snapshot(folder: Path, snapshot: Snapshot, builder: AtlasBuilder | None = None) -> None:
    """Keep an analysis's state in its folder; the former one is replaced in one step.

    Args:
        builder: None: there is no state yet, no image has been taken in.
    """

    def write(aside: Path) -> None:
        if builder is not None:
            builder.settle()
            state = {name: t.contiguous().cpu() for name, t in builder.state_dict().items()}
            save_file(state, aside / _STATE)
            builder.image_table().to_parquet(aside / _IMAGES)
        snapshot.skipped_images.to_csv(aside / _SKIPPED, index=False)
        described = {**vars(snapshot), "files": file_hashes(aside)}
        del described["skipped_images"]
        mark = aside / Path(SNAPSHOT_MARK).name
        mark.write_text(json.dumps(described, indent=1), encoding="utf-8")

    write_folder_atomically((folder / SNAPSHOT_MARK).parent, write)


def read_snapshot(folder: Path) -> Snapshot | None:
    """The unfinished analysis in a folder; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    mark = folder / SNAPSHOT_MARK
    if not mark.is_file():
        return None
    described = json.loads(mark.read_text(encoding="utf-8"))
    check_file_hashes(mark.parent, described.pop("files"))
    try:
        skipped = pd.read_csv(mark.parent / _SKIPPED)
    except pd.errors.EmptyDataError:
        skipped = pd.DataFrame()
    return Snapshot(**described, skipped_images=skipped)


def load_state(folder: Path, builder: AtlasBuilder) -> None:
    """Put the saved state into a builder made with the same settings."""
    unfinished = (folder / SNAPSHOT_MARK).parent
    builder.load_state_dict(load_file(unfinished / _STATE))
    builder.load_image_table(pd.read_parquet(unfinished / _IMAGES))


def remove_snapshot(folder: Path) -> None:
    """Delete the unfinished analysis, if there is one."""
    if (folder / SNAPSHOT_MARK).is_file():
        delete_folder((folder / SNAPSHOT_MARK).parent)
