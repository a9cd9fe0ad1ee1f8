"""``docs/towers.md``: every family compared with its library's own intermediates, as one table.

Written anew by ``python -m tests.hooked_vit.test_towers_table``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.hooked_vit.conftest import Case, build_case
from tests.hooked_vit.test_arithmetic import own_hidden_states
from tests.hooked_vit.test_every_hook import AFTER, BEFORE, BLOCK_HOOKS
from tests.hooked_vit.test_forward import bare_output
from tests.tiny_models import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "towers.md"
REWRITE = "python -m tests.hooked_vit.test_towers_table"

MODELS = {
    "open_clip": "open_clip `CLIP`",
    "open_clip_custom_text": "open_clip `CustomTextCLIP`, with LayerScale",
    "open_clip_own_attention": "… with open_clip's own attention (norms inside)",
    "open_clip_pooled_norm": "… whose final norm sees the pooled token",
    "open_clip_timm": "… around a timm `VisionTransformer`",
    "open_clip_eva": "… around a timm `Eva` (EVA02-CLIP)",
    "open_clip_coca": "open_clip `CoCa`",
    "open_clip_visual": "open_clip `VisionTransformer` alone (`clip.visual`)",
    "transformers_clip": "transformers `CLIPModel`",
    "transformers_clip_vision": "transformers `CLIPVisionModel`",
    "transformers_clip_projection": "transformers `CLIPVisionModelWithProjection`",
    "transformers_siglip": "transformers `SiglipModel` (SigLIP2 of fixed size too)",
    "transformers_siglip_vision": "transformers `SiglipVisionModel`",
    "transformers_vit": "transformers `ViTModel`",
    "transformers_vit_classifier": "transformers `ViTForImageClassification`",
    "transformers_deit": "transformers `DeiTModel`, `DeiTForImageClassification`",
    "transformers_deit_taught": "transformers `DeiTForImageClassificationWithTeacher`",
    "transformers_mae": "transformers `ViTMAEModel` that masks nothing",
    "transformers_beit": "transformers `BeitModel`",
    "transformers_beit_classifier": "transformers `BeitForImageClassification`",
    "transformers_dinov2": "transformers `Dinov2Model`",
    "transformers_dinov2_gated": "… with a gated MLP",
    "transformers_dinov2_registers": "transformers `Dinov2WithRegistersModel`",
    "transformers_dinov2_classifier": "transformers `Dinov2ForImageClassification`",
    "transformers_dinov3": "transformers `DINOv3ViTModel`",
    "transformers_dinov3_gated": "… with a gated MLP",
    "timm": "timm `VisionTransformer` (ViT, DeiT, DINO, MAE, …)",
    "timm_registers": "… with registers, mean pooling",
    "timm_siglip": "… with attention pooling (SigLIP, SigLIP2)",
    "timm_clip": "… with a norm in front of the blocks (CLIP)",
    "timm_distilled": "timm `VisionTransformerDistilled` (DeiT)",
    "timm_eva02": "timm `Eva`: EVA02 (rotary)",
    "timm_dinov3": "timm `Eva`: DINOv3 (rotary)",
    "timm_beit": "timm `Beit`: BEiT, BEiT v2",
    "timm_relpos": "timm `VisionTransformerRelPos` (`vit_relpos_*`)",
    "torchvision": "torchvision `VisionTransformer` (`vit_b_16`)",
}
"""What each tested family stands for, in the order of the table."""

HEAD = f"""# Towers
The vision transformers that `HookedViT` recognises. This page is written by a test, which builds a
small model of each and compares it with its library: *output* is bit for bit the bare model's, and
*streams* are `blocks.*.hook_resid_post` against what the library itself reports behind each block
(`forward_intermediates`, `hidden_states`; torchvision reports nothing, so its blocks are called one
by one). Every other hook of each family, read and edited, is compared with a forward pass written
by hand (`tests/hooked_vit/hand_made.py`). To write it anew:
`{REWRITE}`.

- *other tokens*: what stands beside the patches, which come in row-major order.
- *token alone*: whether `model.embed_residual(residual, per_token=True)` gives each token an
  embedding (or logits) of its own.
- *missing*: hooks that the family does not have; asking for one says why.

"""
FOOT = """
**Limits.** `hook_image_embed` of a model that ends in a classifier is in front of it; of one that
ends in two (distilled DeiTs) it is the class token's, so an edit moves half of the logits. MAE's
encoder by itself leaves out patches at random and shuffles the others at each call; here it gets
all of them, in row-major order, by its argument `noise`. Scores and patterns of rotary towers and
of those with biases of relative position (BEiT, `vit_relpos_*`) are taken where the model calls
`softmax` or `scaled_dot_product_attention`, so `hook_q` and `hook_k` are in front of the rotation,
and attention by other kernels (flash attention called directly) has no pattern. Query heads that
share keys have no hooks inside of attention; nor have gated (`timm`) and differential attention.

Of the 279 models of timm 1.0.31 in the modules `vision_transformer`, `vision_transformer_relpos`,
`vision_transformer_hybrid`, `eva`, `beit` and `deit`, 266 are recognised; the other 13 have blocks
with norms behind what is added, or with attention and MLP side by side.

TransformerLens's own bridges of ViT and DeiT (`TransformerBridge.boot_transformers`) are wrapped as
the models inside of them.

**Refused, by what they are**: hierarchical transformers (Swin, MViT, Hiera), for their tokens merge
from stage to stage; convolutional towers (RN50, ConvNeXt); NaFlex models, which cut each image into
a grid of its own; blocks whose norms come behind what is added, or whose attention and MLP run side
by side. A vision transformer of your own needs a `TowerDescription`: see `examples/custom_vit.py`;
`model.check()` then compares every hook with a plain pass.
"""


def measured_row(case: Case) -> str:
    cfg, tower = case.hooked.cfg, case.hooked.tower
    with torch.no_grad():
        output, cache = case.hooked.run_with_cache(case.pixels)
        assert torch.equal(output, bare_output(case)), case.family
        for layer, states in enumerate(own_hidden_states(case)):
            assert torch.equal(cache[f"blocks.{layer}.hook_resid_post"], states), case.family
    beside = [role for role in cfg.tokens.roles if role != "patch"]
    tokens = (
        ", ".join(
            f"{beside.count(role)} {role}{'s' * (beside.count(role) > 1)}"
            for role in dict.fromkeys(beside)
        )
        or "none"
    )
    every = [*BEFORE, *(f"blocks.0.{hook}" for hook in BLOCK_HOOKS), *AFTER]
    missing = [name for name in every if name not in case.hooked.hook_dict]
    short = ", ".join(f"`{name.removeprefix('blocks.0.')}`" for name in missing) or "none"
    alone = "yes" if tower.pooling else "no"
    return f"| {MODELS[case.family]} | equal | equal | {tokens} | {alone} | {short} |"


def page() -> str:
    assert MODELS.keys() == FAMILIES.keys()
    columns = ["family", "output", "streams", "other tokens", "token alone", "missing"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [measured_row(build_case(family)) for family in MODELS]
    return HEAD + "\n".join(lines) + "\n" + FOOT


def test_the_table_of_towers_is_what_is_measured():
    assert PAGE.read_text(encoding="utf-8") == page(), f"docs/towers.md is stale: run {REWRITE}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
