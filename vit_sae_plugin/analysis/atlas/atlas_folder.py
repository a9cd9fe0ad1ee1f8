"""The folder an atlas is saved in, format version 2.

- ``atlas.json``: schema version, hashes of model, SAE, data and of the files below, settings
- ``latents.parquet``: one row for each latent: ``LatentAtlas.latents``
- ``images.parquet``: index, id and label of every reference image
- ``reference_images.safetensors``: ``<aggregation>/image``, ``/value``, ``/peak_patch``, each
  ``[d_sae, k]``; −1 and NaN are missing
- ``histograms.safetensors``: ``counts [d_sae, n_bins]``, ``edges [n_bins + 1]``
- ``class_counts.safetensors``: ``counts [n_classes, d_sae]``, ``n_images [n_classes]``
- ``partners.safetensors``: ``coactive/latent``, ``/score``, ``similar/latent``, …
- ``skipped_images.csv``: images that could not be read
- ``names.json``: names and notes of latents, where they have any; see
  ``vit_sae_plugin.analysis.atlas.latent_names``

``atlas.json`` is written last; where its hashes don't fit the files, writing was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from vit_sae_plugin.analysis.atlas.atlas_info import SCHEMA_VERSION, AtlasInfo
from vit_sae_plugin.atomic_files import is_aside, write_into_folder
from vit_sae_plugin.field_types import check_values
from vit_sae_plugin.fingerprints import check_file_hashes, file_hashes, values_sha256

_FRAMES = {"latents": "parquet", "images": "parquet", "skipped_images": "csv"}
_ARRAYS = ("reference_images", "histograms", "class_counts", "partners")
_FILES = (
    *(f"{name}.{kind}" for name, kind in _FRAMES.items()),
    *(f"{name}.safetensors" for name in _ARRAYS),
)
_INFO = "atlas.json"

SNAPSHOT_MARK = "unfinished/snapshot.json"
"""An unfinished analysis is in the folder, perhaps beside the atlas that it is to replace."""


def write_atlas(
    folder: Path,
    info: AtlasInfo,
    frames: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write an atlas; an earlier one in the folder is replaced, other files stay.

    Args:
        frames: ``latents``, ``images`` and ``skipped_images``.
        arrays: the arrays of each ``.safetensors`` file.

    Raises:
        ValueError: the folder holds something else.
    """
    check_atlas_folder(folder)
    hashes = {name: value for name, value in asdict(info).items() if name.endswith("_sha256")}
    known = {name: value for name, value in hashes.items() if value is not None}
    metadata = {"schema_version": str(info.schema_version), **known}

    def write(aside: Path) -> None:
        for name, kind in _FRAMES.items():
            _write_frame(frames[name], aside / f"{name}.{kind}")
        for name in _ARRAYS:
            contiguous = {key: np.ascontiguousarray(value) for key, value in arrays[name].items()}
            save_file(contiguous, aside / f"{name}.safetensors", metadata=metadata)
        described = {**asdict(info), "files": file_hashes(aside, _FILES)}
        described["sha256"] = values_sha256(described)
        text = json.dumps(described, indent=1, ensure_ascii=False)
        (aside / _INFO).write_text(text, encoding="utf-8")

    write_into_folder(folder, write, last=_INFO)


def read_atlas(
    folder: Path,
) -> tuple[AtlasInfo, dict[str, pd.DataFrame], dict[str, dict[str, np.ndarray]]]:
    """What ``write_atlas`` was given.

    Raises:
        ValueError: no atlas there, one of another schema version, or a damaged one.
    """
    info = read_info(folder)
    described = _described(folder)
    if info.request is not None or "files" in described:  # else of an earlier release
        check_file_hashes(folder, described.get("files"))
    frames = {name: _read_frame(folder / f"{name}.{kind}") for name, kind in _FRAMES.items()}
    arrays = {name: load_file(folder / f"{name}.safetensors") for name in _ARRAYS}
    return info, frames, arrays


def holds_atlas(folder: Path) -> bool:
    """Whether an atlas lies in the folder."""
    return (folder / _INFO).is_file()


def check_atlas_folder(folder: Path) -> None:
    """Check that an atlas can be written here: a new or empty folder, or that of an earlier one.

    Raises:
        ValueError: otherwise.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"can't write an atlas to {folder}: {existing} is a file; name a folder")
    if existing != folder or any((folder / name).exists() for name in (_INFO, SNAPSHOT_MARK)):
        return
    others = sorted(path.name for path in folder.iterdir() if not is_aside(path))
    if others:
        raise ValueError(
            f"{folder} holds files that are no atlas, such as {others[0]}; choose a new or empty "
            "folder, since an atlas replaces files"
        )


def read_info(folder: Path) -> AtlasInfo:
    """What the atlas in a folder was made from.

    Raises:
        ValueError: no atlas there, or one of another schema version.
    """
    values = _described(folder)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"the atlas in {folder} has schema version {version!r}; this release reads version "
            f"{SCHEMA_VERSION}: run analyze() again"
        )
    missing = [f.name for f in fields(AtlasInfo) if f.default is MISSING and f.name not in values]
    if missing:
        raise ValueError(f"{folder / _INFO} is damaged: it says no {missing[0]}; make it anew")
    try:
        check_values(values, AtlasInfo)
    except ValueError as error:
        raise ValueError(f"{folder / _INFO} is damaged: {error}; make the atlas anew") from None
    values["grid"] = tuple(values["grid"])
    return AtlasInfo(**{f.name: values[f.name] for f in fields(AtlasInfo) if f.name in values})


def _described(folder: Path) -> dict[str, Any]:
    path = folder / _INFO
    if not path.is_file():
        raise ValueError(f"{folder} holds no atlas ({_INFO} is missing); make one with analyze()")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; make the atlas anew") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} is damaged: it holds no object; make the atlas anew")
    kept = described.pop("sha256", None)  # earlier releases kept none
    if kept is not None and kept != values_sha256(described):
        raise ValueError(f"{path} is damaged: its contents have changed; make the atlas anew")
    return described


def _write_frame(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)


def _read_frame(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
