"""The same tokens of two models, one of which may have prompts that the other lacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Int
from torch import Tensor

from vit_sae_plugin.activations.activation_source import ActivationSource

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit import HookedViT, HookedViTConfig
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout


@dataclass
class MatchedSource(ActivationSource):
    """An SAE's input on a model that it was not trained on: tokens are found by what they are.

    An adapted model may have prompts anywhere among its tokens. The class token, the registers and
    each patch are found by role and place, wherever they stand; prompts are never read.
    """

    wanted: TokenLayout | None = None
    """The tokens that the SAE reads, as they stand in the model it was trained on."""

    @classmethod
    def of(cls, source: ActivationSource, layout: TokenLayout) -> Self:
        """The tokens of a source, but for prompts, on any model that has them.

        Args:
            source: what the SAE reads in its own model.
            layout: of those tokens.
        """
        unprompted = [at for at, role in enumerate(layout.roles) if role != "prompt"]
        values = {field.name: getattr(source, field.name) for field in fields(ActivationSource)}
        return cls(**values, wanted=layout.select(unprompted))

    def check_model(self, model: HookedViT) -> None:
        """Raise unless the model has the hook and the patches; other weights are the point.

        Raises:
            ValueError: it has another grid, or lacks a token.
        """
        model.hook_width(self.hook_name)
        cfg, wanted = model.cfg, self._wanted()
        if cfg.grid != wanted.grid:
            raise ValueError(
                f"the SAE reads patches of a grid {wanted.grid}, but {model.model_name} has "
                f"{cfg.grid}; want models of one grid"
            )
        if not wanted.has("image"):
            matching_positions(wanted, cfg.tokens)

    def layout(self, cfg: HookedViTConfig, hook_value: Tensor) -> TokenLayout:
        """The tokens wanted, in the order in which the SAE's own model has them."""
        return self._wanted()

    def _chosen(self, cfg: HookedViTConfig, hook_value: Tensor) -> slice | Tensor:
        at_hook = cfg.tokens.at_hook(hook_value.shape)
        return matching_positions(self._wanted(), at_hook)

    def _wanted(self) -> TokenLayout:
        if self.wanted is None:
            raise ValueError("this source names no tokens; make it by MatchedSource.of")
        return self.wanted


def matching_positions(wanted: TokenLayout, layout: TokenLayout) -> Int[Tensor, " n"]:
    """Where the tokens of one layout stand in another: patches by number, others by role.

    Raises:
        ValueError: one of them isn't there.
    """
    place_of = {key: place for place, key in enumerate(_keys(layout))}
    found = [place_of.get(key) for key in _keys(wanted)]
    if None in found:
        role, number = _keys(wanted)[found.index(None)]
        raise ValueError(
            f"the SAE reads {role} token {number}, which is none of {layout}; want a model with "
            "the same class token, registers and patches"
        )
    return torch.tensor(found, dtype=torch.long)


def _keys(layout: TokenLayout) -> list[tuple[str, int]]:
    """Role and number of each token: a patch's own, of others how many of the role came before."""
    n_before: Counter[str] = Counter()
    keys: list[tuple[str, int]] = []
    for role, patch in zip(layout.roles, layout.patch_numbers, strict=True):
        keys.append((role, patch if role == "patch" else n_before[role]))
        n_before[role] += 1
    return keys
