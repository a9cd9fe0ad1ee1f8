"""What the pages of a report show, as plain values, and how it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import ImageColor

from vit_sae_plugin.analysis import LatentAtlas, LatentName
from vit_sae_plugin.analysis.atlas.latent_tables import Partners
from vit_sae_plugin.analysis.pictures.overlays import COLORS
from vit_sae_plugin.concepts.latent_tree import LatentTree
from vit_sae_plugin.report.patch_masks import mask_string, preview_grid, preview_string
from vit_sae_plugin.report.reference_masks import ReferenceMasks

_PREVIEWS = 5
_LEADING_LABELS, _CLASSES_TO_SHOW = 3, 10
_LATENTS_AT_ONCE = 1024


def write_data(path: Path, key: str, data: Any) -> None:
    """Write data as a script that hands it to the page.

    Everything is ASCII, and nothing in it can end the script or begin another one: names of files
    and classes come from the user's data.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    path.write_text(f"report.receive({json.dumps(key)},{text});\n", encoding="ascii")


def number(value: Any) -> float | int | None:
    """A number short enough to be written many times; None where it is missing."""
    if value is None or value is pd.NA:
        return None
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.5g}")


def index_data(
    atlas: LatentAtlas,
    latents: Sequence[int],
    explained: list[dict[str, Any]],
    *,
    n_chosen: int,
    names: Mapping[int, LatentName],
    title: str,
    weights: str,
    has_patches: bool,
    has_masking: bool,
    has_tree: bool,
    extension: str,
    latents_in_a_file: int,
    previews_in_a_file: int,
) -> dict[str, Any]:
    """What every page loads: one entry for each latent, column by column."""
    info, table = atlas.info, atlas.latents.loc[list(latents)]
    leading = leading_labels(atlas, latents)
    by_count, by_rate = _top_class_columns(atlas, latents)
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
            "weights": weights,
            "hook": info.sae_metadata.get("hook_name"),
            "tokens": info.sae_metadata.get("token_kind"),
            "architecture": info.architecture,
            "threshold": info.threshold,
            "dense_frequency": info.dense_frequency,
            "n_live": int((~atlas.latents["is_dead"]).sum()),
            "hashes": {
                "model": info.model_sha256,
                "SAE": info.sae_sha256,
                "data": info.data_sha256,
            },
        },
        "dead": np.flatnonzero(atlas.latents["is_dead"].to_numpy()).tolist(),
        "has_patches": has_patches,
        "has_masking": has_masking,
        "has_tree": has_tree,
        "colours": [list(ImageColor.getrgb(colour)) for colour in COLORS],
        "grid": list(info.grid),
        "preview_grid": list(preview_grid(info.grid)),
        "classes": _all_class_names(atlas),
        "aggregations": list(atlas.references),
        "extension": extension,
        "latents_in_a_file": latents_in_a_file,
        "previews_in_a_file": previews_in_a_file,
        "edges": [number(edge) for edge in atlas.histogram_edges],
        "explained": explained,
        "n_chosen": n_chosen,
        "names": {str(latent): asdict(names[latent]) for latent in sorted(names)},
        "latents": {
            "id": list(latents),
            "frequency": _column(table["frequency"]),
            "token_frequency": _column(table["token_frequency"]),
            "mean": _column(table["mean_activation"]),
            "max": _column(table["max_activation"]),
            "entropy": _column(table["label_entropy"]),
            "std": _column(table["label_std"]),
            "n_active_images": _column(table["n_active_images"]),
            "dense": [int(flag) for flag in table["is_dense"]],
            "classes": [[c for c, _ in some] for some in leading],
            "class_shares": [[number(share) for _, share in some] for some in leading],
            "top_class": by_count,
            "top_class_by_rate": by_rate,
        },
        "measures": {
            str(name): _column(atlas.columns[name].loc[list(latents)]) for name in atlas.columns
        },
    }


def tree_data(tree: LatentTree) -> dict[str, Any]:
    """What the page of the tree shows: of each latent that has a parent which, and how closely."""
    has = tree.table[tree.table["parent"].notna()]
    parents = {int(parent) for parent in has["parent"]}
    active = tree.table.loc[sorted(parents | set(has.index)), "n_active"]
    return {
        "settings": tree.settings,
        "active": {str(latent): int(n) for latent, n in active.items()},
        "latents": {
            str(latent): {"parent": int(p), "p_parent": number(above), "p_child": number(below)}
            for latent, p, above, below in zip(
                has.index, has["parent"], has["p_parent"], has["p_child"], strict=True
            )
        },
    }


def previews(atlas: LatentAtlas, latents: Sequence[int], masks: ReferenceMasks) -> list[Any]:
    """The first reference images of some latents, each with a small mask."""
    found = []
    for latent, images in zip(latents, _references(atlas, latents)[0].tolist(), strict=True):
        marked = ((i, masks.get(latent, i)) for i in images if i >= 0)
        first = islice(((i, one) for i, one in marked if one is not None), _PREVIEWS)
        found.append([[i, preview_string(one.shares)] for i, one in first])
    return found


def latent_details(
    atlas: LatentAtlas, latents: Sequence[int], masks: ReferenceMasks
) -> dict[str, Any]:
    """What only a latent's own page shows, for some latents.

    Read from the atlas's arrays: its tables, made to be looked at, take ten times as long.
    """
    images: dict[str, list[Any]] = {}
    details: dict[str, Any] = {}
    top_classes = _top_classes(atlas, latents, _CLASSES_TO_SHOW)
    for latent, classes in zip(latents, top_classes, strict=True):
        tables = atlas.references
        found = {int(i) for table in tables.values() for i in table.image[latent] if i >= 0}
        marked = {i: one for i in sorted(found) if (one := masks.get(latent, i)) is not None}
        references: dict[str, list[list[Any]]] = {}
        for name, table in tables.items():
            pairs = zip(table.image[latent].tolist(), table.value[latent].tolist(), strict=True)
            references[name] = [[index, number(value)] for index, value in pairs if index in marked]
        used = list(marked)
        known = atlas.images.loc[used]
        for index, id_, label in zip(used, known["id"], known["label"], strict=True):
            images[str(index)] = [str(id_), None if pd.isna(label) else int(label)]
        total = int(atlas.class_counts[:, latent].sum(dtype=np.int64))
        details[str(latent)] = {
            "references": references,
            "masks": {
                str(i): [mask_string(one.shares), number(one.largest)] for i, one in marked.items()
            },
            "classes": [
                [c, count, number(count / atlas.class_n_images[c]), number(count / total)]
                for c, count in classes
            ],
            "histogram": atlas.histogram[latent].tolist(),
            "similar": _pairs(atlas.similar_partners, latent),
            "coactive": _pairs(atlas.coactive_partners, latent),
        }
    return {"images": images, "latents": details}


def _references(atlas: LatentAtlas, latents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Reference images of each latent and their values, under the first aggregation that has any.

    A latent that is active, but never above the threshold, has none by count.
    """
    first, *others = atlas.references.values()
    images, values = first.image[list(latents)], first.value[list(latents)]
    for table in others:
        none = images[:, 0] < 0
        images[none], values[none] = (a[list(latents)][none] for a in (table.image, table.value))
    return images, values


def leading_labels(
    atlas: LatentAtlas, latents: Sequence[int], n: int = _LEADING_LABELS
) -> list[list[tuple[int, float]]]:
    """For each latent the classes that lead among its reference images, with their shares.

    At most ``n``, by their share of the reference images' summed activation, which the label
    entropy is made of. Counts over the whole data set would favour large classes.
    """
    images, values = _references(atlas, latents)
    labels = atlas.images["label"].reindex(images.ravel()).astype("Int64").fillna(-1)
    leading = []
    for label, value in zip(labels.to_numpy(int).reshape(images.shape), values, strict=True):
        classes, place = np.unique(label[label >= 0], return_inverse=True)
        sums = np.bincount(place, weights=value[label >= 0], minlength=len(classes))
        shares = sums / max(float(np.nansum(value)), float(np.finfo(np.float32).tiny))
        order = np.argsort(-sums, kind="stable")[:n]
        leading.append([(int(classes[i]), float(shares[i])) for i in order])
    return leading


def _top_classes(
    atlas: LatentAtlas, latents: Sequence[int], n: int
) -> Iterator[list[tuple[int, int]]]:
    """For each latent the classes that lead by count, then those that lead only by rate.

    As ``LatentAtlas.top_classes`` finds them, ``n`` each way.
    """
    n_images = np.maximum(atlas.class_n_images, 1)[:, None]
    for start in range(0, len(latents), _LATENTS_AT_ONCE):
        counts = atlas.class_counts[:, list(latents[start : start + _LATENTS_AT_ONCE])]
        by_count, by_rate = (
            np.argsort(-keys.astype(np.float64), axis=0, kind="stable")[:n].T.tolist()
            for keys in (counts, counts / n_images)
        )
        for column, (some, others) in enumerate(zip(by_count, by_rate, strict=True)):
            union = dict.fromkeys([*some, *others])
            yield [(c, int(counts[c, column])) for c in union if counts[c, column] > 0]


def _top_class_columns(
    atlas: LatentAtlas, latents: Sequence[int]
) -> tuple[list[int | None], list[int | None]]:
    """For each latent the class with the largest count, and that with the largest rate."""
    if not atlas.n_classes:
        return [None] * len(latents), [None] * len(latents)
    n_images = np.maximum(atlas.class_n_images, 1)[:, None]
    by_count: list[int | None] = []
    by_rate: list[int | None] = []
    for start in range(0, len(latents), _LATENTS_AT_ONCE):
        counts = atlas.class_counts[:, list(latents[start : start + _LATENTS_AT_ONCE])]
        has_any = np.asarray(counts.any(axis=0))
        for found, keys in ((by_count, counts), (by_rate, counts / n_images)):
            top = keys.argmax(axis=0).tolist()
            found.extend(c if there else None for c, there in zip(top, has_any, strict=True))
    return by_count, by_rate


def _all_class_names(atlas: LatentAtlas) -> list[str]:
    n_named = len(atlas.info.class_names or ())
    return [atlas.class_name(i) for i in range(max(n_named, atlas.n_classes))]


def _column(values: pd.Series) -> list[float | int | None]:
    return [number(value) for value in values]


def _pairs(partners: Partners, latent: int) -> list[list[Any]]:
    pairs = zip(partners.latent[latent].tolist(), partners.score[latent].tolist(), strict=True)
    return [[other, number(score)] for other, score in pairs if other >= 0]
