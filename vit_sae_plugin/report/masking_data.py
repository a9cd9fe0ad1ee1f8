"""What the page of a masking study shows, read from the folder that the study was saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.fingerprints import short
from vit_sae_plugin.report.site_data import number

_KEY = ["ranking", "mask", "error_term", "k"]


def masking_data(folder: str | Path, atlas: LatentAtlas) -> dict[str, Any]:
    """A saved masking study as plain values.

    Returns:
        ``conditions``, each a list ``[ranking, mask, error_term, k]``; ``overall`` and, label →,
        ``classes``, the ``[accuracy, low, high]`` of each condition and the number of images;
        ``latents``, ranking → label → the latents masked first; ``class_names``, of the study;
        ``facts``.

    Raises:
        ValueError: the folder holds no masking study, or one of another SAE.
    """
    report = EvaluationReport.load(folder)
    missing = {"masking", "masking_by_class", "masking_latents"} - set(report.tables)
    if missing:
        raise ValueError(
            f"{folder} has no table {sorted(missing)[0]!r}; want the folder that "
            "vit-sae eval --suite masking wrote"
        )
    studied = report.settings.get("sae_sha256")
    if studied != atlas.info.sae_sha256:
        raise ValueError(
            f"the masking study in {folder} is of the SAE {short(str(studied))}, but the atlas is "
            f"of {short(atlas.info.sae_sha256)}; want a study of the same SAE"
        )
    overall = report.tables["masking"].reset_index()
    by_class = report.tables["masking_by_class"].reset_index()
    names = by_class.drop_duplicates("label").set_index("label")["class"]
    settings = ("images", "n_images", "n_draws", "error_terms")
    return {
        "conditions": overall[_KEY].to_numpy().tolist(),
        "overall": _accuracies(overall),
        "classes": {
            str(label): _accuracies(rows) for label, rows in by_class.groupby("label", sort=True)
        },
        "class_names": {str(label): str(name) for label, name in names.items()},
        "latents": _latents(report.tables["masking_latents"].reset_index()),
        "facts": {name: report.settings.get(name) for name in settings},
    }


def _accuracies(rows: pd.DataFrame) -> dict[str, Any]:
    values = rows[["accuracy", "low", "high"]].to_numpy(np.float64)
    return {
        "values": [[number(round(value, 4)) for value in row] for row in values],
        "n_images": int(rows["n_images"].iloc[0]),
    }


def _latents(rows: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = {}
    ordered = rows.sort_values(["ranking", "label", "place"])
    for (ranking, label), some in ordered.groupby(["ranking", "label"], sort=False):
        found.setdefault(str(ranking), {})[str(label)] = [int(one) for one in some["latent"]]
    return found
