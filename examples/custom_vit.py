"""Hook a vision transformer of your own: say where it keeps its parts, and that is all.

Run with ``python examples/custom_vit.py``; it needs no network and takes a few seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vit_sae_plugin import HookedViT
from vit_sae_plugin.hooked_vit import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
)


class MyAttention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, n_tokens, width = x.shape
        qkv = self.to_qkv(x).view(batch, n_tokens, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v)  # fused: no pattern to be seen here
        return self.to_out(heads.transpose(1, 2).reshape(batch, n_tokens, width))


class MyBlock(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm_a = nn.LayerNorm(width)
        self.attention = MyAttention(width, n_heads)
        self.norm_b = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_a(x))
        return x + self.mlp(self.norm_b(x))


class MyViT(nn.Module):
    """A small classifier: 32x32 pixels, patches of 8, one class token."""

    def __init__(self, width: int = 48, n_heads: int = 4, n_layers: int = 3, n_classes: int = 10):
        super().__init__()
        self.patchify = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.class_token = nn.Parameter(torch.randn(width))
        self.positions = nn.Parameter(torch.randn(17, width))
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(MyBlock(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patchify(pixels).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(pixels), 1, -1)
        x = self.dropout(torch.cat([first, patches], dim=1) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


# Paths inside a block are relative to the block, all others to the model.
TOWER = TowerDescription(
    blocks="layers",
    block=BlockDescription(
        ln1="norm_a",
        attn="attention",
        attention=AttentionDescription(qkv="attention.to_qkv", out_proj="attention.to_out"),
        attn_out="attention",  # what is added to the stream; with a LayerScale, that module
        ln2="norm_b",
        mlp_in="mlp.0",
        mlp_proj="mlp.2",
        mlp_out="mlp",
    ),
    embedding=EmbeddingDescription(
        patch_embed="patchify",
        prefix=("class_token",),
        pos_embed="positions",
        embedded="dropout",  # its input is the sum of patches, class token and positions
    ),
    ln_final="norm",
    classifier="head",
    n_heads=4,
    image_size=(32, 32),
    patch_size=(8, 8),
    n_prefix_tokens=1,
)


def main() -> None:
    torch.manual_seed(0)
    bare = MyViT().eval()
    model = HookedViT.from_module(bare, tower=TOWER)
    pixels = torch.randn(4, 3, 32, 32)

    with torch.no_grad():
        logits, cache = model.run_with_cache(pixels)
        print(f"{len(cache)} hooks; output unchanged: {torch.equal(logits, bare(pixels))}")
        for name in ("blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern", "hook_image_embed"):
            print(f"  {name:28} {tuple(cache[name].shape)}")

        def only_the_class_token(pattern: Tensor, hook: object) -> Tensor:
            """Let every token attend to the class token alone."""
            edited = torch.zeros_like(pattern)
            edited[..., 0] = 1.0
            return edited

        edited = model.run_with_hooks(
            pixels, fwd_hooks=[("blocks.1.attn.hook_pattern", only_the_class_token)]
        )
        print(f"one attention pattern edited: logits move by {(edited - logits).norm():.2f}")

        residual = model(pixels, stop_at_layer=2)
        print(f"stopped in front of block 2: {tuple(residual.shape)}")


if __name__ == "__main__":
    main()
