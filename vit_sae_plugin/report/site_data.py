"""What the pages of a report show, as plain values, and how it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.report.patch_masks import preview_grid

if TYPE_CHECKING:
    from vit_sae_plugin.report.reference_pictures import MarkedPicture

_PREVIEWS = 5
_CLASSES_TO_SEARCH = 3
Pictures = Mapping[tuple[int, int], "MarkedPicture"]


def write_data(path: Path, key: str, data: Any) -> None:
    """Write data as a script that hands it to the page.

    Everything is ASCII, and nothing in it can end the script or begin another one: names of files
    and classes come from the user's data.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    path.write_text(f"report.receive({json.dumps(key)},{text});\n", encoding="ascii")


def number(value: Any) -> float | int | None:
    """A number short enough to be written many times; None where it is missing."""
    if value is None or pd.isna(value):
        return None
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.5g}")


def index_data(
    atlas: LatentAtlas,
    latents: Sequence[int],
    pictures: Pictures,
    explained: list[dict[str, Any]],
    *,
    names: Mapping[int, str],
    title: str,
    extension: str,
    latents_in_a_file: int,
) -> dict[str, Any]:
    """What every page loads: one entry for each latent, column by column."""
    info, table = atlas.info, atlas.latents.loc[list(latents)]
    reference = atlas.references[atlas.default_aggregation]
    previews = []
    for latent in latents:
        indices = [int(i) for i in reference.image[latent] if i >= 0][:_PREVIEWS]
        previews.append([[i, pictures[latent, i].preview] for i in indices])
    return {
        "title": title,
        "facts": {
            "data": info.data_name,
            "n_images": info.n_images,
            "n_skipped_images": info.n_skipped_images,
            "d_sae": info.d_sae,
            "n_dead": int(atlas.latents["is_dead"].sum()),
            "n_dense": int(atlas.latents["is_dense"].sum()),
            "model": info.sae_metadata.get("model_name"),
            "hook": info.sae_metadata.get("hook_name"),
            "tokens": info.sae_metadata.get("token_kind"),
            "architecture": info.architecture,
            "threshold": info.threshold,
            "hashes": [info.model_sha256, info.sae_sha256, info.data_sha256],
        },
        "grid": list(info.grid),
        "preview_grid": list(preview_grid(info.grid)),
        "classes": _all_class_names(atlas),
        "aggregations": list(atlas.references),
        "extension": extension,
        "latents_in_a_file": latents_in_a_file,
        "edges": [number(edge) for edge in atlas.histogram_edges],
        "explained": explained,
        "latents": {
            "id": list(latents),
            "name": [names.get(latent) for latent in latents],
            "frequency": _column(table["frequency"]),
            "token_frequency": _column(table["token_frequency"]),
            "mean": _column(table["mean_activation"]),
            "max": _column(table["max_activation"]),
            "entropy": _column(table["label_entropy"]),
            "std": _column(table["label_std"]),
            "n_active_images": _column(table["n_active_images"]),
            "dense": [int(flag) for flag in table["is_dense"]],
            "classes": [
                [int(c) for c in atlas.top_classes(latent, _CLASSES_TO_SEARCH).index]
                for latent in latents
            ],
            "previews": previews,
        },
    }


def latent_details(
    atlas: LatentAtlas, latents: Sequence[int], pictures: Pictures
) -> dict[str, Any]:
    """What only a latent's own page shows, for some latents."""
    images: dict[str, list[Any]] = {}
    details: dict[str, Any] = {}
    for latent in latents:
        marked: dict[str, list[Any]] = {}
        references: dict[str, list[list[Any]]] = {}
        for name in atlas.references:
            rows = atlas.reference_images(latent, name)
            references[name] = [
                [int(i), number(v)] for i, v in zip(rows["image"], rows["value"], strict=True)
            ]
            for row in rows.itertuples():
                label = None if pd.isna(row.label) else int(row.label)
                images[str(row.image)] = [str(row.id), label]
                picture = pictures[latent, int(row.image)]
                marked[str(row.image)] = [picture.mask, number(picture.largest)]
        classes = atlas.top_classes(latent)
        details[str(latent)] = {
            "references": references,
            "masks": marked,
            "classes": [
                [int(c), int(row["count"]), number(row["count_per_image"]), number(row["share"])]
                for c, row in classes.iterrows()
            ],
            "histogram": [int(count) for count in atlas.histogram[latent]],
            "similar": _pairs(atlas.similar(latent)["cosine"]),
            "coactive": _pairs(atlas.coactive(latent)["jaccard"]),
        }
    return {"images": images, "latents": details}


def _all_class_names(atlas: LatentAtlas) -> list[str]:
    n_named = len(atlas.info.class_names or ())
    return [atlas.class_name(i) for i in range(max(n_named, atlas.n_classes))]


def _column(values: pd.Series) -> list[float | int | None]:
    return [number(value) for value in values]


def _pairs(scores: pd.Series) -> list[list[Any]]:
    return [[int(latent), number(score)] for latent, score in scores.items()]
