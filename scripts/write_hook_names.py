"""Write docs/hook_names.md from the hooks that a model really has.

    python scripts/write_hook_names.py            # write it
    python scripts/write_hook_names.py --check    # exit with 1 if it would change

Names and shapes are read from a pass through ``shapes-clip``; what each is, in words, is written
here, and a hook without words is an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vit_sae_plugin import HookedViT

PAGE = Path(__file__).parents[1] / "docs" / "hook_names.md"

WORDS = {
    "hook_embed": "patches through the patch embedding, behind class and register tokens",
    "hook_pos_embed": "the position embedding that is added",
    "hook_full_embed": "what enters block 0, after any norm in front of the blocks",
    "hook_resid_pre": "the residual stream in front of the block",
    "hook_attn_in": "what attention reads, before its norm",
    "ln1.hook_scale": "the first norm's divisor",
    "ln1.hook_normalized": "normalised, before scale and shift",
    "attn.hook_q": "queries, before any rotation",
    "attn.hook_k": "keys, before any rotation",
    "attn.hook_v": "values",
    "attn.hook_attn_scores": "scores, before softmax",
    "attn.hook_pattern": "attention, each query's row adding up to 1",
    "attn.hook_z": "each head's mix of values",
    "attn.hook_result": "each head's part of the output (by name, or with `cfg.use_attn_result`)",
    "hook_attn_out": "what attention adds to the stream, after LayerScale",
    "hook_resid_mid": "the stream between attention and MLP",
    "hook_mlp_in": "what the MLP reads, before its norm",
    "ln2.hook_scale": "the second norm's divisor",
    "ln2.hook_normalized": "normalised, before scale and shift",
    "mlp.hook_pre": "the hidden layer before its activation function",
    "mlp.hook_post": "the hidden layer after it",
    "hook_mlp_out": "what the MLP adds to the stream, after LayerScale",
    "hook_resid_post": "the residual stream behind the block: **where SAEs usually sit**",
    "ln_final.hook_scale": "the final norm's divisor",
    "ln_final.hook_normalized": "normalised; of one token where only the pooled one is",
    "hook_image_embed": "the image's embedding, pooled and projected: **what MSAE reads**",
}
INTRODUCTION = """# Hook names
TransformerLens's names, wherever it has one; this page is written by
`python scripts/write_hook_names.py` from the hooks a model really has. `{i}` counts blocks from 0;
tokens are the class token, register tokens, then patches row by row. Families that lack a hook are
listed in [Towers](towers.md); asking for one says why it is missing.

| name | shape | what it holds |
| --- | --- | --- |
"""
ENDING = """
`model.hook_width(name)` is the width of a hook's rows, heads flattened; SAEs can be trained on any
hook that holds vectors, so on all but scores and patterns. Short forms work on a cache, as in
TransformerLens: `cache["pattern", 5]`, `cache["resid_post", 10]`.

```python
from vit_sae_plugin import HookedViT

model = HookedViT.from_pretrained("shapes-clip")
names = list(model.hook_dict)
width = model.hook_width("blocks.2.hook_resid_post")
```
"""


def symbolic_shapes(model: HookedViT) -> dict[str, str]:
    """Hook of block 0, or outside of the blocks → its shape in words."""
    cfg = model.cfg
    n_images = 3
    pixels = torch.zeros(n_images, 3, *cfg.image_size)
    cfg.use_attn_result = True
    _, cache = model.run_with_cache(pixels)
    sizes = {
        n_images: "batch",
        cfg.n_tokens: "token",
        cfg.n_heads: "head",
        cfg.d_head: "d_head",
        cfg.d_mlp: "d_mlp",
        cfg.d_model: "d_model",
        1: "1",
    }
    found = {}
    for name, value in cache.items():
        if name.startswith("blocks.") and not name.startswith("blocks.0."):
            continue
        axes = [sizes[size] for size in value.shape]
        if name == "hook_image_embed":
            axes[-1] = "d_embed"
        if axes[-2:] == ["token", "token"]:
            axes[-2:] = ["query", "key"]
        found[name] = f"[{', '.join(axes)}]"
    return found


def page(model: HookedViT) -> str:
    """The whole page."""
    lines = []
    for name, shape in symbolic_shapes(model).items():
        words = WORDS[name.removeprefix("blocks.0.")]
        lines.append(f"| `{name.replace('blocks.0.', 'blocks.{i}.')}` | `{shape}` | {words} |\n")
    return INTRODUCTION + "".join(lines) + ENDING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    text = page(HookedViT.from_pretrained("shapes-clip"))
    if args.check:
        sys.exit(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
