"""An unfinished analysis on disk, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from vit_sae_plugin.analysis.atlas_builder import AtlasBuilder

_MANIFEST = "unfinished.json"


@dataclass
class Snapshot:
    """Where an unfinished analysis stands."""

    settings: dict[str, Any]
    """What it was started with; to go on, all of it must be the same."""
    next_batch: int
    """Number of the first batch not yet taken in."""
    skipped_images: pd.DataFrame
    """Images that could not be read so far."""


def save_snapshot(folder: Path, builder: AtlasBuilder, snapshot: Snapshot) -> None:
    """Write the builder's state.

    The files carry the batch number in their names; the manifest that names them is replaced in
    one step, so an interruption leaves either the former snapshot or this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    builder.settle()
    stem = f"unfinished-{snapshot.next_batch:09d}"
    state = {name: tensor.contiguous().cpu() for name, tensor in builder.state_dict().items()}
    save_file(state, folder / f"{stem}.safetensors")
    builder.image_table().to_parquet(folder / f"{stem}.parquet")
    snapshot.skipped_images.to_csv(folder / f"{stem}.csv", index=False)
    manifest = {
        "stem": stem,
        "settings": snapshot.settings,
        "next_batch": snapshot.next_batch,
    }
    for suffix in ("safetensors", "parquet", "csv"):
        _flush(folder / f"{stem}.{suffix}")
    written = folder / f".{_MANIFEST}"
    written.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(written)
    os.replace(written, folder / _MANIFEST)
    _remove_files(folder, keep=stem)


def load_snapshot(folder: Path, builder: AtlasBuilder) -> Snapshot:
    """Put the saved state into a builder made with the same settings."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    stem = manifest["stem"]
    builder.load_state_dict(load_file(folder / f"{stem}.safetensors"))
    builder.load_image_table(pd.read_parquet(folder / f"{stem}.parquet"))
    try:
        skipped = pd.read_csv(folder / f"{stem}.csv")
    except pd.errors.EmptyDataError:
        skipped = pd.DataFrame()
    return Snapshot(manifest["settings"], manifest["next_batch"], skipped)


def snapshot_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the unfinished analysis in a folder; None if there is none."""
    path = folder / _MANIFEST
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else None


def remove_snapshot(folder: Path) -> None:
    """Delete the unfinished analysis, if there is one."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    _remove_files(folder, keep=None)


def _remove_files(folder: Path, keep: str | None) -> None:
    for path in folder.glob("unfinished-*"):
        if path.stem != keep:
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
