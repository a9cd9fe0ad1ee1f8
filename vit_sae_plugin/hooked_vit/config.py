"""What a vision tower looks like: sizes, token layout, device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vit_sae_plugin.hooked_vit.token_layout import TokenLayout


@dataclass
class HookedViTConfig:
    """Sizes and token layout of the wrapped vision tower.

    Read from the model when it is wrapped; ``device`` and ``dtype`` follow ``model.to(...)``.
    """

    model_name: str
    """The name ``from_pretrained`` was given, or the class of the wrapped model."""

    n_layers: int
    """Number of transformer blocks."""

    d_model: int
    """Width of the residual stream."""

    n_heads: int
    """Attention heads per block."""

    d_head: int
    """Width of one head's query, key and value."""

    d_mlp: int
    """Width of the MLP's hidden layer (0: the description names no hidden layer)."""

    d_embed: int
    """Width of ``hook_image_embed``: the pooled and projected image embedding."""

    image_size: tuple[int, int]
    """Height and width of the input image, in pixels."""

    patch_size: tuple[int, int]
    """Height and width of one patch, in pixels."""

    tokens: TokenLayout
    """Which token of the blocks is what; the grid of patches."""

    device: torch.device
    """Where the tower's weights are."""

    dtype: torch.dtype
    """The tower's number format; pixels are cast to it."""

    normalization_type: str = "LN"
    """``"LN"`` or ``"RMS"``; read by TransformerLens's ``ActivationCache``."""

    use_attn_result: bool = False
    """Whether ``run_with_cache`` without a filter keeps ``attn.hook_result``, which is as large as
    ``n_heads`` residual streams; asked for by name or by a function it is kept anyway."""

    attn_only: bool = False
    """Always false: every block has an MLP. Read by TransformerLens's ``ActivationCache``."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.tokens.grid

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return self.tokens.n_prefix_tokens

    @property
    def n_tokens(self) -> int:
        """The length of the blocks' token axis."""
        return len(self.tokens)
