"""An SAE that takes and gives a model's own activations, whatever it was trained on."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics

MAX_LATENT_VALUES = 2**26
"""Latents held at a time (256 MiB in float32): batches are encoded in parts no larger than this."""


class ModelSpaceSAE:
    """Wraps an SAE so that centring, scaling and head axes are dealt with on both sides.

    Every metric is about what the *model* sees, so inputs are scaled on the way in and
    reconstructions are scaled back on the way out. The statistics are those of the training data,
    never of the data evaluated.

    Args:
        sae: any SAELens SAE (a training SAE works too).
        statistics: mean and scale of its training rows. Default: those in its metadata
            (``input_statistics``), or none.
        input_scaling: factor on its input. Default: the metadata's ``input_scaling``, or 1.
        d_head: width of a head; wanted by an SAE that SAELens reshapes for ``hook_z``.
    """

    def __init__(
        self,
        sae: SAE[Any],
        *,
        statistics: EmbeddingStatistics | None = None,
        input_scaling: float | None = None,
        d_head: int | None = None,
    ):
        metadata = sae.cfg.metadata
        if statistics is None and metadata.input_statistics is not None:
            statistics = EmbeddingStatistics.from_metadata(metadata.input_statistics)
        if input_scaling is None:
            input_scaling = metadata.input_scaling
        if statistics is not None and len(statistics.mean) != sae.cfg.d_in:
            raise ValueError(
                f"the statistics are {len(statistics.mean)} wide, but the SAE's d_in is "
                f"{sae.cfg.d_in}"
            )
        if sae.hook_z_reshaping_mode and d_head is None:
            raise ValueError("this SAE splits its input into heads: say d_head, the head's width")
        self.sae = sae
        self.statistics = statistics
        self.input_scaling = 1.0 if input_scaling is None else float(input_scaling)
        self.d_head = d_head
        self.takes_k = "k" in inspect.signature(sae.encode).parameters

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.sae.cfg.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.cfg.d_sae

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "... d_in"], k: int | None = None) -> Tensor:
        """Activations of the model → latents ``[..., d_sae]``, dense.

        Args:
            k: latents to keep for each row. SAEs whose ``encode`` takes ``k`` get it; of any other
                SAE's latents the k largest in magnitude are kept, with their sign. Default: the
                SAE's own rule.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"rows are {x.shape[-1]} wide, but the SAE's d_in is {self.d_in}")
        x = x.to(self.sae.W_dec)  # first, for scaling float16 could overflow
        if self.statistics is not None:
            x = self.statistics.standardize(x)
        x = x * self.input_scaling
        if self.sae.hook_z_reshaping_mode:
            x = x.unflatten(-1, (-1, self.d_head))
        latents = self.sae.encode(x) if k is None or not self.takes_k else self._encode_k(x, k)
        latents = latents.to_dense() if latents.is_sparse else latents
        return latents if k is None or self.takes_k else keep_top_k(latents, k)

    def _encode_k(self, x: Tensor, k: int) -> Tensor:
        encode: Any = self.sae.encode
        return encode(x, k=k)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """Latents → reconstruction in the model's space."""
        x_hat = self.sae.decode(latents)
        if self.sae.hook_z_reshaping_mode:
            x_hat = x_hat.flatten(-2, -1)
        x_hat = x_hat / self.input_scaling
        return x_hat if self.statistics is None else self.statistics.restore(x_hat)


def keep_top_k(latents: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """Zero all but the k latents largest in magnitude of each row; those keep their sign."""
    if k < 1:
        raise ValueError(f"k is the number of latents to keep, at least 1; got {k}")
    if k >= latents.shape[-1]:
        return latents
    kept = latents.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(latents).scatter_(-1, kept, latents.gather(-1, kept))
