"""Which tokens of an image an SAE reads: all, the image's patches, or the class token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from vit_sae_plugin.hooked_vit.token_layout import TOKEN_KINDS, TokenKind, check_token_kind

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit import HookedViTConfig

__all__ = [
    "TOKEN_KINDS",
    "TokenKind",
    "canonical_selection",
    "check_token_kind",
    "sliced_positions",
    "token_positions",
]


def token_positions(cfg: HookedViTConfig, token_kind: str) -> Int[Tensor, " n_selected"]:
    """Where the tokens of a kind stand on the token axis of a model's blocks.

    Args:
        cfg: of the :class:`HookedViT`.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.

    Raises:
        ValueError: the kind is unknown, or the model has no such token.
    """
    return cfg.tokens.positions(token_kind)


def sliced_positions(
    cfg: HookedViTConfig, token_kind: str, seqpos_slice: tuple[int | None, ...]
) -> Int[Tensor, " n_selected"]:
    """The positions of a kind that a slice (start, stop, step) of them leaves.

    Args:
        cfg: of the :class:`HookedViT`.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.
        seqpos_slice: SAELens's setting of that name: the arguments of :class:`slice`;
            ``(None,)`` leaves every token. With ``"all"`` it counts positions on the token axis.

    Raises:
        ValueError: as :func:`token_positions`; or the slice leaves no token.
    """
    positions = token_positions(cfg, token_kind)
    chosen = positions[slice(*seqpos_slice)]
    if len(chosen) == 0:
        raise ValueError(
            f"seqpos_slice {tuple(seqpos_slice)} leaves none of the {len(positions)} tokens of "
            f"kind {token_kind!r}"
        )
    return chosen


def canonical_selection(
    cfg: HookedViTConfig, token_kind: str, seqpos_slice: tuple[int | None, ...]
) -> tuple[str, tuple[int | None, ...]]:
    """The simplest (token kind, slice) that selects the same tokens.

    SAELens says ``seqpos_slice=(1, None)`` where this package says ``token_kind="patches"``.
    """
    positions = sliced_positions(cfg, token_kind, seqpos_slice)
    for kind in TOKEN_KINDS:
        if kind == "cls" and not cfg.tokens.has("class"):
            continue
        if torch.equal(positions, token_positions(cfg, kind)):
            return kind, (None,)
    return token_kind, tuple(seqpos_slice)
