"""Centring and scaling of embeddings: one mean and one scale for each modality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class EmbeddingStatistics:
    """Statistics of one modality's training split (MSAE, arXiv 2502.20578, section 4).

    An SAE trained on standardised embeddings sees ``(x − mean) · scale``, whose mean norm is √d.
    Every later use of that SAE takes these same statistics, never those of the evaluation data.
    """

    mean: Float[Tensor, "d"]
    """Mean of the raw embeddings."""
    scale: float
    """√d ÷ mean norm of the centred embeddings."""
    modality: str = "image"
    """What was embedded: ``"image"`` or ``"text"``."""
    n_rows: int = 0
    """Number of rows they were computed from."""

    @classmethod
    def from_rows(
        cls, rows: Tensor | Iterable[Tensor], modality: str = "image"
    ) -> EmbeddingStatistics:
        """Statistics of ``[n, d]`` rows, or of batches of them, in float64 and constant memory.

        Batches are walked twice (the scale is that of *centred* rows), so an iterator that can be
        walked only once is refused.

        Raises:
            ValueError: no rows, rows that aren't finite, or rows that are all the same.
        """
        batches: Iterable[Tensor] = [rows] if isinstance(rows, Tensor) else rows
        if iter(batches) is batches:
            raise ValueError(
                "EmbeddingStatistics.from_rows walks the batches twice: "
                "give it a list or another re-iterable object, not an iterator"
            )
        n_rows, total = 0, None
        for batch in batches:
            batch_sum = batch.to(torch.float64).sum(0)
            total = batch_sum if total is None else total + batch_sum
            n_rows += len(batch)
        if total is None or n_rows == 0:
            raise ValueError("there are no embeddings; want one or more to take statistics of")
        mean = total / n_rows
        norm_sum = sum(
            (batch.to(torch.float64) - mean).norm(dim=-1).sum().item() for batch in batches
        )
        mean_norm = norm_sum / n_rows
        if not math.isfinite(mean_norm):
            raise ValueError("the embeddings hold NaN or infinite values: drop those rows first")
        if mean_norm == 0:
            raise ValueError(
                f"all {n_rows} embeddings are the same; want different ones, for their scale"
            )
        scale = math.sqrt(len(mean)) / mean_norm
        return cls(mean.to(torch.float32), scale, modality, n_rows)

    def standardize(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Raw embeddings → what the SAE sees."""
        return (rows - self.mean.to(rows)) * self.scale

    def restore(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What the SAE sees, or reconstructs → raw embeddings."""
        return rows / self.scale + self.mean.to(rows)

    def to_metadata(self) -> dict[str, Any]:
        """As JSON-able values, for an SAE's metadata (key ``input_statistics``)."""
        return {
            "modality": self.modality,
            "scale": self.scale,
            "mean": self.mean.tolist(),
            "n_rows": self.n_rows,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> EmbeddingStatistics:
        """The inverse of ``to_metadata``.

        Raises:
            ValueError: the metadata hold no such values, or they aren't finite.
        """
        try:
            statistics = cls(
                mean=torch.tensor(metadata["mean"], dtype=torch.float32),
                scale=float(metadata["scale"]),
                modality=str(metadata["modality"]),
                n_rows=int(metadata["n_rows"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                "input_statistics in the SAE's metadata can't be read "
                f"({type(error).__name__}: {error}); want mean, scale, modality and n_rows"
            ) from None
        mean, scale = statistics.mean, statistics.scale
        if mean.ndim != 1 or not (mean.isfinite().all() and 0 < scale < math.inf):
            raise ValueError(
                f"input_statistics in the SAE's metadata hold a mean of shape {list(mean.shape)} "
                f"and scale {scale}; want finite means [d_in] and a scale above 0"
            )
        return statistics


def fold_statistics(sae: Any, statistics: EmbeddingStatistics) -> None:
    """Fold standardisation into an SAE's weights, in place: it then takes and gives raw embeddings.

    Its reconstructions become those in raw units. What its latents become is the architecture's
    affair: they stay the same, and decoder rows shrink by ``scale``, unless it keeps decoder rows
    at norm 1 (``patchsae`` in training), where the latents are divided by ``scale``. The metadata's
    ``input_statistics`` are removed, for they no longer apply. (An affine map, so SAELens's own
    folding of a whitening does it.)

    Raises:
        ValueError: the statistics are of another width.
    """
    d_in = len(statistics.mean)
    if d_in != sae.cfg.d_in:
        raise ValueError(f"the statistics are {d_in} wide; want the SAE's d_in, {sae.cfg.d_in}")
    identity = torch.eye(d_in, dtype=torch.float32)
    sae.fold_activation_whitening(
        mean=statistics.mean,
        whitening_matrix=identity * statistics.scale,
        unwhitening_matrix=identity / statistics.scale,
    )
    sae.cfg.metadata.input_statistics = None
