"""Which tokens of an image an SAE reads: all, the image's patches, or the class token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit import HookedViTConfig

TokenKind = Literal["all", "patches", "cls"]
TOKEN_KINDS: tuple[str, ...] = get_args(TokenKind)


def token_positions(cfg: HookedViTConfig, token_kind: str) -> Int[Tensor, " n_selected"]:
    """Where the tokens of a kind stand on the token axis.

    ``"all"`` is every token the blocks see, ``"patches"`` those on the patch grid in row-major
    order, ``"cls"`` the class token. Register tokens (in front) and prompt tokens (behind) belong
    to ``"all"`` only.

    Args:
        cfg: of the :class:`HookedViT`; ``n_prefix_tokens``, ``grid`` and ``n_tokens`` are read.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.

    Raises:
        ValueError: the kind is unknown, or the model has no class token.
    """
    check_token_kind(token_kind)
    if token_kind == "all":
        return torch.arange(cfg.n_tokens)
    if token_kind == "patches":
        n_rows, n_columns = cfg.grid
        return cfg.n_prefix_tokens + torch.arange(n_rows * n_columns)
    if cfg.n_prefix_tokens == 0:
        raise ValueError(
            f"token_kind is 'cls', but {cfg.model_name or 'this model'} has no class token; "
            "want 'all' or 'patches'"
        )
    return torch.zeros(1, dtype=torch.long)


def check_token_kind(token_kind: str) -> None:
    """Raise a ValueError unless ``token_kind`` is one that :func:`token_positions` knows."""
    if token_kind not in TOKEN_KINDS:
        raise ValueError(f"token_kind is {token_kind!r}; want 'all', 'patches' or 'cls'")


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
        if kind == "cls" and cfg.n_prefix_tokens == 0:
            continue
        if torch.equal(positions, token_positions(cfg, kind)):
            return kind, (None,)
    return token_kind, tuple(seqpos_slice)
