"""The mean and scale by which an SAE's input was standardised, if they are not in its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.tensor_files import read_tensors

AS_THEY_ARE = "none"


def statistics_metadata(
    mean: Any, scale: Any, d_in: int, modality: str = "image"
) -> dict[str, Any]:
    """Metadata ``input_statistics``: the SAE reads ``(x − mean) · scale``.

    Args:
        mean: one number for each input, or one for all.
        scale: one number.
        d_in: the SAE's width.
        modality: what was embedded, ``"image"`` or ``"text"``.

    Raises:
        ValueError: another shape, or numbers that can't standardise anything.
    """
    means = torch.as_tensor(mean, dtype=torch.float32).flatten()
    if len(means) not in (1, d_in):
        raise ValueError(f"the inputs' mean has {len(means)} numbers; want {d_in}")
    scales = torch.as_tensor(scale, dtype=torch.float64).flatten()
    if len(scales) != 1:
        raise ValueError(f"the inputs' scale has {len(scales)} numbers; want 1")
    factor = float(scales)
    if not 0 < factor < float("inf") or not bool(means.isfinite().all()):
        raise ValueError(f"the inputs' scale is {factor}; want a positive number and a finite mean")
    if modality not in ("image", "text"):
        raise ValueError(f"modality is {modality!r}; want 'image' or 'text'")
    return {
        "modality": modality,
        "scale": factor,
        "mean": means.expand(d_in).tolist(),
        "n_rows": 0,
    }


def stated_statistics(
    stated: Any, d_in: int, why: str, modality: str = "image"
) -> dict[str, Any] | None:
    """What the user states of statistics that a file lacks.

    Args:
        stated: ``{"mean": …, "scale": …}`` (or ``"std"``, which divides), the path of a file with
            tensors of these names, or ``"none"``: rows are given to the SAE as they are.
        d_in: the SAE's width.
        why: the reason that they are needed, for the message.
        modality: what was embedded.

    Returns:
        Metadata ``input_statistics``, or None for ``"none"``.

    Raises:
        ValueError: nothing is stated, or not enough.
    """
    if stated is None:
        raise ValueError(
            f"{why}; state input_statistics={{'mean': …, 'scale': …}} (or 'std'), or a file with "
            f"them, or input_statistics='{AS_THEY_ARE}' to give it rows as they are"
        )
    if stated == AS_THEY_ARE:
        return None
    if isinstance(stated, (str, Path)):
        stated = read_tensors(Path(stated).expanduser())
    if (
        not isinstance(stated, Mapping)
        or "mean" not in stated
        or not stated.keys()
        & {
            "scale",
            "std",
        }
    ):
        raise ValueError(
            f"input_statistics has no 'mean' and 'scale' (or 'std'); want both, or '{AS_THEY_ARE}'"
        )
    scale = stated["scale"] if "scale" in stated else _inverse(stated["std"])
    return statistics_metadata(stated["mean"], scale, d_in, modality)


def _inverse(std: Any) -> Tensor:
    return 1 / torch.as_tensor(std, dtype=torch.float64)
