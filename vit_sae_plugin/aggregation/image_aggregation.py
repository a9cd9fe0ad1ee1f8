"""The base of all patch-to-image aggregations."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TOKENS = ("all", "patches", "cls")


@dataclass
class SparseEntries:
    """The stored values of sparse latents ``[batch, token, d_sae]``; all others are zero."""

    values: Float[Tensor, " n"]
    image: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    shape: tuple[int, int, int]
    n_valid_tokens: Int[Tensor, " batch"]

    @property
    def cell(self) -> Int[Tensor, " n"]:
        """Where each value's (image, latent) stands in a flattened ``[batch, d_sae]``."""
        return self.image * self.shape[2] + self.latent

    def sum_by_cell(self, values: Tensor) -> Float[Tensor, "batch d_sae"]:
        """Sum one value for each entry over the tokens of each image."""
        batch, _, d_sae = self.shape
        total = values.new_zeros(batch * d_sae).index_add_(0, self.cell, values)
        return total.view(batch, d_sae)


class ImageAggregation(nn.Module, ABC):
    """Turns the latents of an image's tokens into one value for each latent.

    Subclasses implement :meth:`reduce`, and may implement :meth:`reduce_sparse` where a shorter
    way exists; the base picks the tokens and checks shapes. Every image is treated by itself, so
    results don't depend on the order of images or on how they are batched.

    Args:
        tokens: which of the given tokens count: ``"all"``, ``"patches"`` (without the class and
            register tokens in front), or ``"cls"`` (the first token).
        n_prefix_tokens: how many of the given tokens stand in front of the patches: the model's
            ``n_prefix_tokens`` for latents of all tokens, 0 for latents of patches only. Needed
            unless ``tokens`` is ``"all"``.
    """

    level: ClassVar[str] = "image"
    registered_name: ClassVar[str] = ""

    def __init__(self, *, tokens: str = "all", n_prefix_tokens: int | None = None) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise ValueError(f"tokens is {tokens!r}; want 'all', 'patches' or 'cls'")
        if tokens != "all" and n_prefix_tokens is None:
            raise ValueError(
                f"tokens={tokens!r} needs n_prefix_tokens, the number of tokens in front of the "
                "patches (0 for latents of patches only)"
            )
        if tokens == "cls" and n_prefix_tokens == 0:
            raise ValueError("tokens='cls', but with n_prefix_tokens=0 there is no class token")
        self.tokens = tokens
        self.n_prefix_tokens = n_prefix_tokens

    def forward(
        self,
        latents: Float[Tensor, "batch token d_sae"],
        token_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch d_sae"]:
        """Aggregate the tokens of each image.

        Args:
            latents: dense, or a sparse COO tensor.
            token_mask: True where a token is valid (padding is False). None: all are.

        Returns:
            Dense ``[batch, d_sae]``. An image without a valid token has no mean, maximum, share
            or k-th largest: NaN. Its count and sum are 0.

        Raises:
            ValueError: the latents are not 3-D, or the mask's shape differs.
        """
        if latents.ndim != 3:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; want [batch, token, d_sae] "
                "(for one vector an image, unsqueeze the token axis)"
            )
        if token_mask is not None and token_mask.shape != latents.shape[:2]:
            raise ValueError(
                f"token_mask has shape {tuple(token_mask.shape)}; want "
                f"{tuple(latents.shape[:2])}, one entry for each token of the latents"
            )
        start, stop = self._token_range(latents.shape[1])
        if token_mask is not None:
            token_mask = token_mask[:, start:stop]
        if latents.layout is torch.strided:
            return self.reduce(latents[:, start:stop], token_mask)
        if latents.layout is not torch.sparse_coo:
            raise ValueError(f"latents have layout {latents.layout}; want dense or sparse COO")
        return self.reduce_sparse(_entries(latents, start, stop, token_mask))

    @abstractmethod
    def reduce(
        self,
        latents_btd: Float[Tensor, "batch token d_sae"],
        token_mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch d_sae"]:
        """Aggregate dense latents of the tokens that count; a mask of None means all valid."""

    def reduce_sparse(self, entries: SparseEntries) -> Float[Tensor, "batch d_sae"]:
        """Aggregate sparse latents: here by :meth:`reduce`, one image at a time."""
        n_images, n_tokens, d_sae = entries.shape
        rows = []
        for image in range(n_images):
            of_image = entries.image == image
            dense = entries.values.new_zeros(1, n_tokens, d_sae)
            dense[0, entries.token[of_image], entries.latent[of_image]] = entries.values[of_image]
            # which tokens are invalid no longer matters, only how many: they were dropped
            valid = torch.zeros(1, n_tokens, dtype=torch.bool, device=dense.device)
            seen = dense[0].any(dim=1)
            n_silent = int(entries.n_valid_tokens[image]) - int(seen.sum())
            silent = (~seen).nonzero().flatten()[:n_silent]
            valid[0] = seen
            valid[0, silent] = True
            rows.append(self.reduce(dense, valid))
        return torch.cat(rows) if rows else entries.values.new_zeros(0, d_sae)

    def config(self) -> dict[str, Any]:
        """The rule as plain values: :func:`make_aggregation` builds an equal module from it.

        Every argument of ``__init__`` must be kept as an attribute of the same name.

        Raises:
            ValueError: the class has no name of its own, so nothing could find it again.
        """
        if "registered_name" not in vars(type(self)):
            raise ValueError(
                f"{type(self).__qualname__} is not registered, so it can't be saved or found "
                'again; put @register_aggregation("a_name") above the class'
            )
        return {"name": self.registered_name, **self._settings()}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self._settings().items())

    def _settings(self) -> dict[str, Any]:
        rule: dict[str, Any] = {}
        for cls in reversed(type(self).__mro__):
            if "__init__" in vars(cls) and issubclass(cls, ImageAggregation):
                for argument in inspect.signature(cls.__init__).parameters.values():
                    if argument.name != "self" and argument.kind is not argument.VAR_KEYWORD:
                        rule[argument.name] = getattr(self, argument.name)
        return {key: value for key, value in rule.items() if value is not None}

    def _token_range(self, n_tokens: int) -> tuple[int, int]:
        n_prefix = self.n_prefix_tokens or 0
        if self.tokens == "all":
            return 0, n_tokens
        start, stop = (0, 1) if self.tokens == "cls" else (n_prefix, n_tokens)
        if n_tokens <= start:
            raise ValueError(
                f"latents have {n_tokens} tokens, but n_prefix_tokens is {n_prefix}, so there are "
                "no patches among them"
            )
        return start, stop


def _entries(latents: Tensor, start: int, stop: int, token_mask: Tensor | None) -> SparseEntries:
    latents = latents.coalesce()
    image, token, latent = latents.indices()
    values = latents.values()
    if values.ndim != 1:
        raise ValueError("latents are a hybrid sparse tensor; want all three axes sparse")
    keep = (token >= start) & (token < stop)
    n_images, d_sae = latents.shape[0], latents.shape[2]
    if token_mask is None:
        n_valid = torch.full((n_images,), stop - start, device=values.device)
    else:
        n_valid = token_mask.sum(dim=1)
        keep &= token_mask[image, (token - start).clamp(0, stop - start - 1)]
    return SparseEntries(
        values[keep],
        image[keep],
        token[keep] - start,
        latent[keep],
        (n_images, stop - start, d_sae),
        n_valid,
    )
