"""The folder an atlas is saved in, format version 2.

======================================  ===========================================================
``atlas.json``                          schema version, hashes of model, SAE and data, settings
``latents.parquet``                     one row for each latent: ``LatentAtlas.latents``
``images.parquet``                      index, id and label of every reference image
``reference_images.safetensors``        ``<aggregation>/image``, ``/value``, ``/peak_patch``,
                                        each ``[d_sae, k]``; −1 and NaN are missing
``histograms.safetensors``              ``counts [d_sae, n_bins]``, ``edges [n_bins + 1]``
``class_counts.safetensors``            ``counts [n_classes, d_sae]``, ``n_images [n_classes]``
``partners.safetensors``                ``coactive/latent``, ``/score``, ``similar/latent``, …
``skipped_images.csv``                  images that could not be read
======================================  ===========================================================

The folder appears under its name only when complete.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from vit_sae_plugin.analysis.coactivation import Partners
from vit_sae_plugin.analysis.latent_atlas import SCHEMA_VERSION, AtlasInfo, LatentAtlas
from vit_sae_plugin.analysis.reference_images import ReferenceTable

_FILES = (
    "latents.parquet",
    "images.parquet",
    "reference_images.safetensors",
    "histograms.safetensors",
    "class_counts.safetensors",
    "partners.safetensors",
    "skipped_images.csv",
)
_INFO = "atlas.json"


def save_atlas(atlas: LatentAtlas, folder: Path) -> Path:
    """Write an atlas; an earlier one in the folder is replaced, other files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".writing-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    atlas.latents.to_parquet(staging / "latents.parquet")
    atlas.images.to_parquet(staging / "images.parquet")
    atlas.skipped_images.to_csv(staging / "skipped_images.csv", index=False)
    tensors = {
        "reference_images": {
            f"{name}/{part}": getattr(table, part)
            for name, table in atlas.references.items()
            for part in ("image", "value", "peak_patch")
        },
        "histograms": {"counts": atlas.histogram, "edges": atlas.histogram_edges},
        "class_counts": {"counts": atlas.class_counts, "n_images": atlas.class_n_images},
        "partners": {
            f"{kind}/{part}": getattr(partners, part)
            for kind, partners in (
                ("coactive", atlas.coactive_partners),
                ("similar", atlas.similar_partners),
            )
            for part in ("latent", "score")
        },
    }
    for name, arrays in tensors.items():
        contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        path = staging / f"{name}.safetensors"
        save_file(contiguous, path, metadata=_hashes(atlas.info))
        # safetensors lets nobody else read what it writes
        shutil.copymode(staging / "latents.parquet", path)
    info = json.dumps(asdict(atlas.info), indent=1, ensure_ascii=False)
    (staging / _INFO).write_text(info, encoding="utf-8")

    # the description goes first and comes last: without it the folder is no atlas
    (folder / _INFO).unlink(missing_ok=True)
    for name in (*_FILES, _INFO):
        os.replace(staging / name, folder / name)
    staging.rmdir()
    atlas.folder = folder
    return folder


def load_atlas(folder: Path) -> LatentAtlas:
    """Read what :func:`save_atlas` wrote."""
    info = read_info(folder)
    references = load_file(folder / "reference_images.safetensors")
    histograms = load_file(folder / "histograms.safetensors")
    classes = load_file(folder / "class_counts.safetensors")
    partners = load_file(folder / "partners.safetensors")
    return LatentAtlas(
        info=info,
        latents=pd.read_parquet(folder / "latents.parquet"),
        references={
            name: ReferenceTable(
                references[f"{name}/image"],
                references[f"{name}/value"],
                references[f"{name}/peak_patch"],
            )
            for name in info.aggregations
        },
        images=pd.read_parquet(folder / "images.parquet"),
        histogram=histograms["counts"],
        histogram_edges=histograms["edges"],
        class_counts=classes["counts"],
        class_n_images=classes["n_images"],
        coactive_partners=Partners(partners["coactive/latent"], partners["coactive/score"]),
        similar_partners=Partners(partners["similar/latent"], partners["similar/score"]),
        skipped_images=_read_csv(folder / "skipped_images.csv"),
        folder=folder,
    )


def holds_atlas(folder: Path) -> bool:
    """Whether a complete atlas lies in the folder."""
    return (folder / _INFO).is_file()


def read_info(folder: Path) -> AtlasInfo:
    """What the atlas in a folder was made from.

    Raises:
        ValueError: no atlas there, or one of another schema version.
    """
    path = folder / _INFO
    if not path.is_file():
        raise ValueError(f"{folder} holds no atlas ({_INFO} is missing); make one with analyze()")
    values = json.loads(path.read_text(encoding="utf-8"))
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"the atlas in {folder} has schema version {version!r}; this release reads version "
            f"{SCHEMA_VERSION}: run analyze() again"
        )
    values["grid"] = tuple(values["grid"])
    return AtlasInfo(**{f.name: values[f.name] for f in fields(AtlasInfo)})


def _hashes(info: AtlasInfo) -> dict[str, str]:
    return {
        "schema_version": str(info.schema_version),
        "model_sha256": info.model_sha256,
        "sae_sha256": info.sae_sha256,
        "data_sha256": info.data_sha256,
    }


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
