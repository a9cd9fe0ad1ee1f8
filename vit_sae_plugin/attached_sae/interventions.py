"""Changes of latents: keep only some, remove, set, scale, add; everywhere or in places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""From latents ``[batch, token, d_sae]`` to other latents of that shape."""

Where: TypeAlias = "str | Sequence[tuple[int, int]]"
"""``"all"``, ``"patches"``, ``"cls"``, or patches as (row, column)."""


@dataclass(frozen=True)
class LatentEdit:
    """One change of some latents. Made by ``keep_only``, ``remove``, ``set_to``,
    ``scale`` and ``add``; changes that follow one another by ``in_order``.

    What AttachedSAE and HookedSAEViT take as an edit; or call ``on`` for a plain function.
    """

    change: Literal["keep_only", "remove", "set_to", "scale", "add"]
    """What is done to the latents."""
    latents: tuple[int, ...]
    """Their indices."""
    amount: float = 0.0
    """The value, factor or summand."""
    where: Where = "all"
    """Tokens in which it is done."""

    def on(self, layout: TokenLayout, d_sae: int) -> Edit:
        """The change as a function of latents ``[batch, token, d_sae]``.

        Args:
            layout: of the tokens that the SAE reads.
            d_sae: how many latents it has.

        Raises:
            ValueError: a latent or a token isn't there.
        """
        for latent in self.latents:
            if not 0 <= latent < d_sae:
                raise ValueError(f"latent is {latent}; want 0 to {d_sae - 1}")
        tokens = positions(layout, self.where)
        chosen = torch.tensor(self.latents, dtype=torch.long)

        def edit(latents: Float[Tensor, "batch token d_sae"]) -> Tensor:
            index = chosen.to(latents.device)
            there = tokens if isinstance(tokens, slice) else tokens.to(latents.device)
            part = latents[:, there]
            new = self._changed(part, index)
            if isinstance(there, slice):
                return new
            return latents.index_copy(1, there, new)

        return edit

    def _changed(self, part: Tensor, index: Tensor) -> Tensor:
        if self.change == "keep_only":
            return torch.zeros_like(part).index_copy(-1, index, part[..., index])
        now = part[..., index]
        if self.change in ("remove", "set_to"):
            now = torch.full_like(now, self.amount)
        elif self.change == "scale":
            now = now * self.amount
        else:
            now = now + self.amount
        return part.index_copy(-1, index, now)


@dataclass(frozen=True)
class EditsInOrder:
    """Several changes, one after another."""

    edits: tuple[LatentEdit, ...]
    """The first is made first."""

    def on(self, layout: TokenLayout, d_sae: int) -> Edit:
        """As ``LatentEdit.on``."""
        steps = [edit.on(layout, d_sae) for edit in self.edits]

        def edit(latents: Tensor) -> Tensor:
            for step in steps:
                latents = step(latents)
            return latents

        return edit


AnyEdit: TypeAlias = LatentEdit | EditsInOrder | Edit


def keep_only(latents: Iterable[SupportsIndex], where: Where = "all") -> LatentEdit:
    """Silence all latents but these. Outside ``where`` nothing changes."""
    return LatentEdit("keep_only", _indices(latents), where=where)


def remove(latents: Iterable[SupportsIndex], where: Where = "all") -> LatentEdit:
    """Silence these latents."""
    return LatentEdit("remove", _indices(latents), where=where)


def set_to(latents: Iterable[SupportsIndex], value: float, where: Where = "all") -> LatentEdit:
    """Give these latents one value in every token, also where they were silent."""
    return LatentEdit("set_to", _indices(latents), value, where)


def scale(latents: Iterable[SupportsIndex], factor: float, where: Where = "all") -> LatentEdit:
    """Multiply these latents: 0 silences them, 2 doubles them where they are active."""
    return LatentEdit("scale", _indices(latents), factor, where)


def add(latents: Iterable[SupportsIndex], amount: float, where: Where = "all") -> LatentEdit:
    """Add to these latents in every token, also where they were silent."""
    return LatentEdit("add", _indices(latents), amount, where)


def in_order(*edits: LatentEdit) -> EditsInOrder:
    """Make several changes, the first one first."""
    return EditsInOrder(edits)


def positions(layout: TokenLayout, where: Where) -> slice | Tensor:
    """Places in a layout: a slice for all of them, else their positions.

    Raises:
        ValueError: there is no such token.
    """
    if isinstance(where, str):
        return slice(None) if where == "all" else layout.positions(where)
    n_rows, n_columns = layout.grid
    number_of = {number: at for at, number in enumerate(layout.patch_numbers) if number >= 0}
    found = []
    for row, column in where:
        at = number_of.get(row * n_columns + column)
        if not (0 <= row < n_rows and 0 <= column < n_columns) or at is None:
            raise ValueError(
                f"where holds patch ({row}, {column}); want rows 0 to {n_rows - 1} and columns 0 "
                f"to {n_columns - 1}, and patches that the SAE reads"
            )
        found.append(at)
    return torch.tensor(sorted(set(found)), dtype=torch.long)


def _indices(latents: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Different indices in order, as Python, NumPy or pandas hold them."""
    return tuple(dict.fromkeys(latent.__index__() for latent in latents))
