"""A vision transformer computed by hand, in the open, from the weights of a model of each family.

It shares no code with the package. ``edit(name, value)`` is called wherever ``HookedViT`` has a
hook point and may return another value, so that reading and editing can be compared hook by hook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Edit = Callable[[str, Tensor], Tensor]
Map = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def unedited(name: str, value: Tensor) -> Tensor:
    return value


@dataclass
class Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass
class Block:
    ln1: nn.LayerNorm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    ln2: nn.LayerNorm
    fc1: Linear
    act: Map
    fc2: Linear
    up: Linear | None = None
    scale1: Tensor | float = 1.0
    scale2: Tensor | float = 1.0
    q_norm: Map = _same
    k_norm: Map = _same
    inner_norm: Map = _same


@dataclass
class HandMade:
    """``head`` takes the last residual stream and the edited final norm."""

    n_heads: int
    patch_embed: Map
    prefix: list[Tensor]
    positions: Tensor
    blocks: list[Block]
    ln_final: nn.LayerNorm
    head: Callable[[Tensor, Map, Edit], Tensor]
    ln_pre: Map = _same
    prefix_without_position: list[Tensor] = field(default_factory=list)

    def __call__(self, pixels: Tensor, edit: Edit = unedited) -> Tensor:
        patches = self.patch_embed(pixels)
        if patches.ndim == 4 and patches.shape[1] == self.positions.shape[-1]:
            patches = patches.flatten(2).transpose(1, 2)
        patches = patches.reshape(len(pixels), -1, patches.shape[-1])
        front = [row.reshape(1, -1, row.shape[-1]) for row in self.prefix]
        late = [row.reshape(1, -1, row.shape[-1]) for row in self.prefix_without_position]
        embed = torch.cat(
            [*(row.expand(len(pixels), -1, -1) for row in (*front, *late)), patches], 1
        )
        n_front, n_late = (sum(row.shape[1] for row in rows) for rows in (front, late))
        pos = self.positions.reshape(1, -1, self.positions.shape[-1])
        zeros = torch.zeros(1, n_late, pos.shape[-1])
        pos = torch.cat([pos[:, :n_front], zeros, pos[:, n_front:]], 1).repeat(len(pixels), 1, 1)
        x = self.ln_pre(edit("hook_embed", embed) + edit("hook_pos_embed", pos))
        x = edit("hook_full_embed", x)
        for layer, block in enumerate(self.blocks):
            x = self.run_block(
                block, x, lambda name, value, layer=layer: edit(f"blocks.{layer}.{name}", value)
            )
        return self.head(x, lambda y: norm(self.ln_final, y, "ln_final", edit), edit)

    def run_block(self, block: Block, x: Tensor, edit: Edit) -> Tensor:
        x = edit("hook_resid_pre", x)
        normed = norm(block.ln1, edit("hook_attn_in", x.clone()), "ln1", edit)
        q, k, v = (
            edit(f"attn.hook_{letter}", proj(normed).unflatten(-1, (self.n_heads, -1)))
            for letter, proj in (("q", block.q), ("k", block.k), ("v", block.v))
        )
        d_head = q.shape[-1]
        # One head and one image at a time, so that no axis can be mixed up.
        scores = torch.stack(
            [
                torch.stack(
                    [
                        block.q_norm(q[b, :, h]) @ block.k_norm(k[b, :, h]).T / d_head**0.5
                        for h in range(self.n_heads)
                    ]
                )
                for b in range(len(x))
            ]
        )
        pattern = edit("attn.hook_pattern", edit("attn.hook_attn_scores", scores).softmax(-1))
        z = torch.stack([pattern[:, h] @ v[:, :, h] for h in range(self.n_heads)], dim=2)
        z = edit("attn.hook_z", z)
        inner = block.inner_norm(z.flatten(2)).unflatten(-1, (self.n_heads, -1))
        results = []
        for h in range(self.n_heads):
            columns = block.o.weight[:, h * d_head : (h + 1) * d_head]
            results.append(inner[:, :, h] @ columns.T)
        result = edit("attn.hook_result", torch.stack(results, dim=2))
        out = result.sum(2)
        out = out if block.o.bias is None else out + block.o.bias
        mid = edit("hook_resid_mid", x + edit("hook_attn_out", out * block.scale1))
        normed = norm(block.ln2, edit("hook_mlp_in", mid.clone()), "ln2", edit)
        post = block.act(edit("mlp.hook_pre", block.fc1(normed)))
        post = edit("mlp.hook_post", post if block.up is None else post * block.up(normed))
        mlp_out = edit("hook_mlp_out", block.fc2(post) * block.scale2)
        return edit("hook_resid_post", mid + mlp_out)


def norm(module: nn.LayerNorm, x: Tensor, name: str, edit: Edit) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    scale = edit(f"{name}.hook_scale", (x.square().mean(-1, keepdim=True) + module.eps).sqrt())
    return edit(f"{name}.hook_normalized", x / scale) * module.weight + module.bias


def linear(module: Any) -> Linear:
    return Linear(module.weight, module.bias)


def thirds(weight: Tensor, bias: Tensor | None) -> list[Linear]:
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return [Linear(w, b) for w, b in zip(weight.chunk(3), biases, strict=True)]


def gamma(module: nn.Module) -> Tensor | float:
    return next(module.parameters(), 1.0)


def by_hand(model: Any) -> HandMade:
    """The hand-made transformer with the weights of a model of any tested family."""
    kind = type(model).__name__
    if kind in ("CLIP", "CustomTextCLIP"):
        if hasattr(model.visual, "trunk"):
            inner = timm_by_hand(model.visual.trunk, classifies=False)
            head = inner.head
            inner.head = lambda x, ln, edit: edit(
                "hook_image_embed", model.visual.head(head(x, ln, unedited))
            )
            return inner
        return open_clip_by_hand(model.visual)
    if kind == "VisionTransformer":
        return timm_by_hand(model, classifies=model.num_classes > 0)
    return transformers_by_hand(model, kind)


def open_clip_by_hand(visual: Any) -> HandMade:
    def head(x: Tensor, ln: Map, edit: Edit) -> Tensor:
        def pool(y: Tensor) -> Tensor:
            return y[:, 0] if visual.pool_type == "tok" else y[:, 1:].mean(1)

        pooled = ln(pool(x)) if visual.final_ln_after_pool else pool(ln(x))
        return edit("hook_image_embed", pooled @ visual.proj)

    def block(module: Any) -> Block:
        q, k, v = thirds(module.attn.in_proj_weight, module.attn.in_proj_bias)
        return Block(
            ln1=module.ln_1,
            q=q,
            k=k,
            v=v,
            o=linear(module.attn.out_proj),
            ln2=module.ln_2,
            fc1=linear(module.mlp.c_fc),
            act=functional.gelu,
            fc2=linear(module.mlp.c_proj),
            scale1=gamma(module.ls_1),
            scale2=gamma(module.ls_2),
            q_norm=getattr(module.attn, "ln_q", _same),
            k_norm=getattr(module.attn, "ln_k", _same),
            inner_norm=getattr(module.attn, "ln_inner", _same),
        )

    return HandMade(
        n_heads=4,
        patch_embed=visual.conv1,
        prefix=[visual.class_embedding],
        positions=visual.positional_embedding,
        ln_pre=visual.ln_pre,
        blocks=[block(module) for module in visual.transformer.resblocks],
        ln_final=visual.ln_post,
        head=head,
    )


def timm_by_hand(model: Any, classifies: bool) -> HandMade:
    def head(x: Tensor, ln: Map, edit: Edit) -> Tensor:
        norm_first = isinstance(model.norm, nn.LayerNorm)
        pooled = model.pool(ln(x)) if norm_first else ln(model.pool(x))
        pooled = edit("hook_image_embed", pooled)
        return model.head(pooled) if classifies else pooled

    def block(module: Any) -> Block:
        q, k, v = thirds(module.attn.qkv.weight, module.attn.qkv.bias)
        return Block(
            ln1=module.norm1,
            q=q,
            k=k,
            v=v,
            o=linear(module.attn.proj),
            ln2=module.norm2,
            fc1=linear(module.mlp.fc1),
            act=functional.gelu,
            fc2=linear(module.mlp.fc2),
            scale1=gamma(module.ls1),
            scale2=gamma(module.ls2),
            q_norm=module.attn.q_norm,
            k_norm=module.attn.k_norm,
            inner_norm=module.attn.norm,
        )

    prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
    return HandMade(
        n_heads=model.blocks[0].attn.num_heads,
        patch_embed=model.patch_embed,
        prefix=[] if model.no_embed_class else prefix,
        prefix_without_position=prefix if model.no_embed_class else [],
        positions=model.pos_embed,
        ln_pre=model.norm_pre,
        blocks=[block(module) for module in model.blocks],
        ln_final=model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm,
        head=head,
    )


def transformers_by_hand(model: Any, kind: str) -> HandMade:
    for inner in ("vision_model", "vit", "dinov2"):
        tower = getattr(model, inner, None)
        if tower is not None:
            break
    else:
        tower = model
    embeddings = tower.embeddings
    clip_like = "CLIP" in kind or "Siglip" in kind
    layers = tower.layers if "ViT" in kind else None
    if layers is None:
        layers = tower.encoder.layers if clip_like else tower.encoder.layer
    n_heads = tower.config.num_attention_heads
    common = {
        "n_heads": n_heads,
        "blocks": [transformers_block(layer) for layer in layers],
        "ln_final": tower.post_layernorm if clip_like else tower.layernorm,
    }
    if clip_like:
        return HandMade(
            patch_embed=embeddings.patch_embedding,
            prefix=[embeddings.class_embedding] if "CLIP" in kind else [],
            positions=embeddings.position_embedding.weight,
            ln_pre=tower.pre_layrnorm if "CLIP" in kind else _same,
            head=clip_head(model) if "CLIP" in kind else siglip_head(tower),
            **common,
        )
    return HandMade(
        patch_embed=embeddings.patch_embeddings,
        prefix=[embeddings.cls_token],
        prefix_without_position=([embeddings.register_tokens] if "Registers" in kind else []),
        positions=embeddings.position_embeddings,
        head=plain_head(model, tower, kind),
        **common,
    )


def transformers_block(layer: Any) -> Block:
    names = {name for name, _ in layer.named_children()}
    attn = layer.self_attn if "self_attn" in names else layer.attention
    ln1, ln2 = (module for module in layer.children() if isinstance(module, nn.LayerNorm))
    gated = hasattr(layer.mlp, "gate_proj")
    return Block(
        ln1=ln1,
        q=linear(attn.q_proj),
        k=linear(attn.k_proj),
        v=linear(attn.v_proj),
        o=linear(attn.out_proj if hasattr(attn, "out_proj") else attn.o_proj),
        ln2=ln2,
        fc1=linear(layer.mlp.gate_proj if gated else layer.mlp.fc1),
        act=functional.silu if gated else layer.mlp.activation_fn,
        fc2=linear(layer.mlp.down_proj if gated else layer.mlp.fc2),
        up=linear(layer.mlp.up_proj) if gated else None,
        scale1=layer.layer_scale1.lambda1 if "layer_scale1" in names else 1.0,
        scale2=layer.layer_scale2.lambda1 if "layer_scale2" in names else 1.0,
    )


def clip_head(model: Any) -> Callable[[Tensor, Map, Edit], Tensor]:
    project = getattr(model, "visual_projection", _same)
    return lambda x, ln, edit: edit("hook_image_embed", project(ln(x[:, 0])))


def siglip_head(tower: Any) -> Callable[[Tensor, Map, Edit], Tensor]:
    return lambda x, ln, edit: edit("hook_image_embed", tower.head(ln(x)))


def plain_head(model: Any, tower: Any, kind: str) -> Callable[[Tensor, Map, Edit], Tensor]:
    def head(x: Tensor, ln: Map, edit: Edit) -> Tensor:
        normed = ln(x)
        pooled = normed[:, 0]
        if kind == "ViTModel" and tower.pooler is not None:
            pooled = torch.tanh(tower.pooler.dense(pooled))
        if kind == "Dinov2ForImageClassification":
            pooled = torch.cat([pooled, normed[:, 1:].mean(1)], dim=1)
        pooled = edit("hook_image_embed", pooled)
        return model.classifier(pooled) if hasattr(model, "classifier") else pooled

    return head
