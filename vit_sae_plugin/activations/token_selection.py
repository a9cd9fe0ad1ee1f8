"""Which tokens of an image an SAE reads: all, the image's patches, or the class token."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from vit_sae_plugin.hooked_vit.token_layout import TOKEN_KINDS

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout


def selected_positions(
    tokens: TokenLayout, token_kind: str, seqpos_slice: tuple[int | None, ...]
) -> Int[Tensor, " n_selected"]:
    """The positions of a kind that a slice (start, stop, step) of them leaves.

    Args:
        tokens: of a model's blocks, or of a hook.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.
        seqpos_slice: SAELens's setting of that name: the arguments of ``slice``;
            ``(None,)`` leaves every token. With ``"all"`` it counts positions on the token axis.

    Raises:
        ValueError: there is no such token, or the slice leaves none.
    """
    positions = tokens.positions(token_kind)
    chosen = positions[slice(*seqpos_slice)]
    if len(chosen) == 0:
        raise ValueError(
            f"seqpos_slice is {tuple(seqpos_slice)}, which leaves none of the {len(positions)} "
            f"tokens of kind {token_kind!r}; want one that leaves some"
        )
    return chosen


@lru_cache(maxsize=64)
def selected_index(
    tokens: TokenLayout, token_kind: str, seqpos_slice: tuple[int | None, ...]
) -> slice | Tensor:
    """``selected_positions`` as an index: a slice where one will do, for it copies nothing."""
    positions = selected_positions(tokens, token_kind, seqpos_slice)
    start, stop = int(positions[0]), int(positions[-1]) + 1
    is_range = torch.equal(positions, torch.arange(start, max(start, stop)))
    return slice(start, stop) if is_range else positions


def canonical_selection(
    tokens: TokenLayout, token_kind: str, seqpos_slice: tuple[int | None, ...]
) -> tuple[str, tuple[int | None, ...]]:
    """The simplest (token kind, slice) that selects the same tokens.

    SAELens says ``seqpos_slice=(1, None)`` where this package says ``token_kind="patches"``.
    """
    positions = selected_positions(tokens, token_kind, seqpos_slice)
    for kind in TOKEN_KINDS:
        if kind == "cls" and not tokens.has("class"):
            continue
        if torch.equal(positions, tokens.positions(kind)):
            return kind, (None,)
    return token_kind, tuple(seqpos_slice)
