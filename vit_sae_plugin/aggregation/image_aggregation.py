"""The base of all patch-to-image aggregations."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

TOKENS = ("all", "patches", "cls")


class ImageAggregation(nn.Module, ABC):
    """Turns the latents of an image's tokens into one value for each latent.

    Subclasses implement ``reduce``; the base picks the tokens and checks shapes. Every image is
    treated by itself, so results don't depend on the order of images or on how they are batched.

    Args:
        tokens: which of the given tokens count: ``"all"``, ``"patches"`` (without the class and
            register tokens in front), or ``"cls"`` (the first token).
        n_prefix_tokens: how many of the given tokens stand in front of the patches: the model's
            ``n_prefix_tokens`` for latents of all tokens, 0 for latents of patches only. Needed
            unless ``tokens`` is ``"all"``.
    """

    registered_name: ClassVar[str] = ""

    def __init__(self, *, tokens: str = "all", n_prefix_tokens: int | None = None) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise ValueError(f"tokens is {tokens!r}; want 'all', 'patches' or 'cls'")
        if tokens != "all" and n_prefix_tokens is None:
            raise ValueError(
                f"tokens is {tokens!r} and n_prefix_tokens None; want the number of tokens in "
                "front of the patches (0 for latents of patches only)"
            )
        if tokens == "cls" and n_prefix_tokens == 0:
            raise ValueError(
                "tokens is 'cls' and n_prefix_tokens 0; want 1 or more, for a class token"
            )
        self.tokens = tokens
        self.n_prefix_tokens = n_prefix_tokens

    def forward(
        self,
        latents: Float[Tensor, "batch token d_sae"],
        token_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch d_sae"]:
        """Aggregate the tokens of each image.

        Args:
            latents: dense or sparse.
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
        if latents.layout is not torch.strided:
            latents = latents.to_dense()
        return self.reduce(latents[:, start:stop], token_mask)

    @abstractmethod
    def reduce(
        self,
        latents_btd: Float[Tensor, "batch token d_sae"],
        token_mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch d_sae"]:
        """Aggregate dense latents of the tokens that count; a mask of None means all valid."""

    def config(self) -> dict[str, Any]:
        """The rule as plain values: ``make_aggregation`` builds an equal module from it.

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
                f"latents have {n_tokens} tokens and n_prefix_tokens is {n_prefix}; want patches "
                "behind the prefix tokens"
            )
        return start, stop
