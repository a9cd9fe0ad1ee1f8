"""The half of an attached SAE that needs no model: rows in, latents out, and back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics

MAX_LATENT_VALUES = {"cpu": 2**24, "cuda": 2**28}
"""Latents held at a time: as many rows are encoded at once as fit."""

_KEEPS_STATE = ("layer_norm", "constant_norm_rescale")
"""Normalisations of SAELens's whose ``decode`` uses up what ``encode`` left behind."""


class RowCoder:
    """An SAE that takes and gives rows as the model holds them, whatever it was trained on.

    Centring, scaling, precision and head axes are dealt with on both sides. The statistics are
    those of the training data, never of the rows at hand.

    Args:
        sae: any SAELens SAE or transcoder (a training SAE works too).
        statistics: mean and scale of its training rows. Default: those in its metadata
            (``input_statistics``), or none.
        d_head: width of a head; wanted by an SAE that SAELens reshapes for ``hook_z``.

    Raises:
        ValueError: the statistics are of another width than the SAE; ``d_head`` is missing.
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
                f"the statistics are {len(statistics.mean)} wide; want {sae.cfg.d_in}, the SAE's "
                "d_in"
            )
        if sae.hook_z_reshaping_mode and d_head is None:
            raise ValueError("this SAE splits its input into heads; want d_head, a head's width")
        self.sae = sae
        self.statistics = statistics
        self.input_scaling = 1.0 if input_scaling is None else float(input_scaling)
        self.d_head = d_head
        self.takes_k = "k" in inspect.signature(sae.encode).parameters

    @property
    def d_in(self) -> int:
        """Width of a row that is read."""
        return self.sae.cfg.d_in

    @property
    def d_out(self) -> int:
        """Width of a row that is given; only a transcoder's differs from ``d_in``."""
        return int(getattr(self.sae.cfg, "d_out", self.d_in))

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.cfg.d_sae

    @property
    def device(self) -> torch.device:
        """Where the SAE is."""
        return self.sae.W_dec.device

    def standardize(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """The model's rows → what the SAE was trained on, on its device and in its precision.

        Raises:
            ValueError: the rows are of another width than the SAE.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(f"rows are {x.shape[-1]} wide; want {self.d_in}, the SAE's d_in")
        x = x.to(self.sae.W_dec)  # first, for scaling float16 could overflow
        if self.statistics is not None:
            x = self.statistics.standardize(x)
        if self.input_scaling != 1:
            x = x * self.input_scaling
        return x.unflatten(-1, (-1, self.d_head)) if self.sae.hook_z_reshaping_mode else x

    def restore(self, x_hat: Tensor) -> Float[Tensor, "*rows d_out"]:
        """What the SAE's ``decode`` gives → rows as the model holds them."""
        if self.sae.hook_z_reshaping_mode:
            x_hat = x_hat.flatten(-2, -1)
        if self.input_scaling != 1:
            x_hat = x_hat / self.input_scaling
        return x_hat if self.statistics is None else self.statistics.restore(x_hat)

    def encode(
        self, x: Float[Tensor, "*rows d_in"], k: int | None = None
    ) -> Float[Tensor, "*rows d_sae"]:
        """The model's rows → latents, dense.

        Args:
            x: rows of the model's, on any device.
            k: latents to keep for each row. SAEs whose ``encode`` takes ``k`` get it; of any other
                SAE's latents the k largest in magnitude are kept, with their sign. Default: the
                SAE's own rule.

        Raises:
            ValueError: the rows are of another width than the SAE; ``k`` is below 1.
        """
        inputs, encode = self.standardize(x), self.sae.encode
        if k is not None and self.takes_k:
            latents = encode(inputs, k=k)  # type: ignore[call-arg]
            return latents.to_dense() if latents.is_sparse else latents
        latents = encode(inputs)
        latents = latents.to_dense() if latents.is_sparse else latents
        return latents if k is None else keep_top_k(latents, k)

    def encode_parts(
        self, acts_btd: Float[Tensor, "batch token d_in"]
    ) -> Iterator[tuple[slice, Float[Tensor, "part token d_sae"]]]:
        """Latents of a few images at a time, as memory allows, each with its place in the batch.

        The latents of a whole batch can be far larger than its activations.
        """
        for part in self.parts(len(acts_btd), acts_btd.shape[1]):
            yield part, self.encode(acts_btd[part])

    def decode(self, latents: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_out"]:
        """Latents → reconstruction, as the model holds it.

        An SAE that normalises each row (``keeps_state``) must have encoded those same rows last.
        """
        return self.restore(self.sae.decode(latents))

    @torch.no_grad()
    def decoder_matrix(self) -> Float[Tensor, "d_sae d_out"] | None:
        """The matrix that takes a change of latents to the change of what ``decode`` gives.

        So a few latents' part in a reconstruction costs a few rows of a product. None where there
        is none: an SAE that normalises each row, or whose decoder isn't affine in its latents.
        """
        if self.keeps_state:
            return None
        matrix = self.sae.W_dec.detach().clone()
        if self.statistics is not None:
            matrix /= self.statistics.scale
        matrix /= self.input_scaling
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand(2, self.d_sae, generator=generator).to(matrix)
        if self.sae.hook_z_reshaping_mode:
            self.encode(torch.zeros(2, self.d_in))  # SAELens notes the shape of what it splits
        change = self.decode(probe) - self.decode(torch.zeros_like(probe))
        close = torch.allclose(change, probe @ matrix, rtol=1e-3, atol=1e-4 * float(change.std()))
        return matrix if close else None

    def skip(self, x: Float[Tensor, "*rows d_in"]) -> Tensor | float:
        """What a transcoder with a skip connection adds to its decoder's output; else 0."""
        weights = getattr(self.sae, "W_skip", None)
        return 0.0 if weights is None else x.to(weights) @ weights.T

    @property
    def keeps_state(self) -> bool:
        """Whether ``decode`` uses up what the last ``encode`` left behind (each row's norm)."""
        return self.sae.cfg.normalize_activations in _KEEPS_STATE

    def parts(self, n_items: int, rows_per_item: int = 1) -> Iterator[slice]:
        """Slices of items (images, or rows) whose latents fit into memory at once.

        Args:
            n_items: how many there are.
            rows_per_item: rows of each, such as the tokens of an image.
        """
        at_once = MAX_LATENT_VALUES["cuda" if self.device.type == "cuda" else "cpu"]
        step = max(1, at_once // (max(1, rows_per_item) * self.d_sae))
        for start in range(0, n_items, step):
            yield slice(start, min(start + step, n_items))


def keep_top_k(latents: Float[Tensor, "*rows d_sae"], k: int) -> Float[Tensor, "*rows d_sae"]:
    """Zero all but the k latents largest in magnitude of each row; those keep their sign."""
    if k < 1:
        raise ValueError(f"k is {k}; want 1 or more latents to keep")
    if k >= latents.shape[-1]:
        return latents
    kept = latents.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(latents).scatter_(-1, kept, latents.gather(-1, kept))
