"""Which of an SAE's tokens lies where on the patch grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.activations.token_selection import selected_positions
from vit_sae_plugin.hooked_vit import HookedViTConfig


@dataclass(frozen=True)
class PatchLayout:
    """The patch grid, and the place of each token on it."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    patch_of_token: Int[Tensor, " token"]
    """Patch number (row-major) of each token of the SAE's input; −1: not a patch."""

    @classmethod
    def of(cls, source: ActivationSource, cfg: HookedViTConfig, n_tokens: int) -> PatchLayout:
        """The layout of the tokens that a source gives.

        Args:
            source: what the SAE reads.
            cfg: of the model.
            n_tokens: number of tokens the source gave; 1 for pooled embeddings.
        """
        n_rows, n_columns = cfg.grid
        n_patches = n_rows * n_columns
        positions = selected_positions(cfg.tokens, source.token_kind, source.seqpos_slice)
        if len(positions) == n_tokens:
            patch = positions - cfg.n_prefix_tokens
            patch = torch.where((patch >= 0) & (patch < n_patches), patch, -1)
        elif n_tokens == n_patches:
            patch = torch.arange(n_patches)  # a hook in front of where the class token is added
        else:
            patch = torch.full((n_tokens,), -1)
        return cls((n_rows, n_columns), patch)

    @property
    def has_patches(self) -> bool:
        return bool((self.patch_of_token >= 0).any())

    def on_grid(self, tokens: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch row column"]:
        """Put token values on the grid; NaN where a patch is not among the tokens."""
        n_rows, n_columns = self.grid
        patch = self.patch_of_token.to(tokens.device)
        values = tokens.new_full((*tokens.shape[:-1], n_rows * n_columns), torch.nan)
        values[..., patch[patch >= 0]] = tokens[..., patch >= 0]
        return values.view(*tokens.shape[:-1], n_rows, n_columns)
