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
    mlp_norm: Map = _same
    turn: Map = _same
    """Rotary positions, on one head's ``[token, d_head]``."""
    bias: Tensor | None = None
    """Added to the scores, ``[head, query, key]``."""


@dataclass
class HandMade:
    """``head`` takes the last residual stream and the edited final norm."""

    n_heads: int
    patch_embed: Map
    prefix: list[Tensor]
    positions: Tensor | None
    blocks: list[Block]
    ln_final: nn.LayerNorm
    head: Callable[[Tensor, Map, Edit], Tensor]
    ln_pre: Map = _same
    prefix_without_position: list[Tensor] = field(default_factory=list)

    def __call__(self, pixels: Tensor, edit: Edit = unedited) -> Tensor:
        patches = self.patch_embed(pixels)
        if patches.ndim == 4 and patches.shape[1] == self.blocks[0].ln1.weight.shape[-1]:
            patches = patches.flatten(2).transpose(1, 2)
        patches = patches.reshape(len(pixels), -1, patches.shape[-1])
        front = [row.reshape(1, -1, row.shape[-1]) for row in self.prefix]
        late = [row.reshape(1, -1, row.shape[-1]) for row in self.prefix_without_position]
        embed = torch.cat(
            [*(row.expand(len(pixels), -1, -1) for row in (*front, *late)), patches], 1
        )
        n_front, n_late = (sum(row.shape[1] for row in rows) for rows in (front, late))
        x = edit("hook_embed", embed)
        if self.positions is not None:
            pos = self.positions.reshape(1, -1, self.positions.shape[-1])
            zeros = torch.zeros(1, n_late, pos.shape[-1])
            pos = torch.cat([pos[:, :n_front], zeros, pos[:, n_front:]], 1)
            x = x + edit("hook_pos_embed", pos.repeat(len(pixels), 1, 1))
        x = self.ln_pre(x)
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
                        block.turn(block.q_norm(q[b, :, h]))
                        @ block.turn(block.k_norm(k[b, :, h])).T
                        / d_head**0.5
                        for h in range(self.n_heads)
                    ]
                )
                for b in range(len(x))
            ]
        )
        scores = scores if block.bias is None else scores + block.bias
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
        post = block.mlp_norm(post if block.up is None else post * block.up(normed))
        post = edit("mlp.hook_post", post)
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
    kind, library = type(model).__name__, type(model).__module__.split(".")[0]
    if library == "torchvision":
        return torchvision_by_hand(model)
    if kind == "VisionTransformer" and library == "open_clip":
        return open_clip_by_hand(model)
    if kind in ("CLIP", "CustomTextCLIP", "CoCa"):
        if hasattr(model.visual, "trunk"):
            inner = timm_by_hand(model.visual.trunk, classifies=False)
            head = inner.head
            inner.head = lambda x, ln, edit: edit(
                "hook_image_embed", model.visual.head(head(x, ln, unedited))
            )
            return inner
        return open_clip_by_hand(model.visual)
    if library == "timm":
        return timm_by_hand(model, classifies=model.num_classes > 0)
    return transformers_by_hand(model, kind)


def open_clip_by_hand(visual: Any) -> HandMade:
    def head(x: Tensor, ln: Map, edit: Edit) -> Tensor:
        def pool(y: Tensor) -> Tensor:
            return y[:, 0] if visual.pool_type == "tok" else y[:, 1:].mean(1)

        if visual.attn_pool is not None:
            x, ln = visual.attn_pool(x), visual.ln_post
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
        n_prefix = model.num_prefix_tokens

        def pool(y: Tensor) -> Tensor:
            if hasattr(model, "pool"):
                return model.pool(y)
            return y[:, n_prefix:].mean(1) if model.global_pool == "avg" else y[:, 0]

        normed = ln(x) if norm_first else x
        pooled = pool(normed) if norm_first else ln(pool(x))
        pooled = edit("hook_image_embed", pooled)
        if classifies and hasattr(model, "head_dist"):
            return (model.head(pooled) + model.head_dist(normed[:, 1])) / 2
        return model.head(pooled) if classifies else pooled

    def block(module: Any) -> Block:
        attn = module.attn
        if getattr(attn, "qkv", None) is None:
            q, k, v = (linear(getattr(attn, f"{letter}_proj")) for letter in "qkv")
        else:
            bias = attn.qkv.bias
            if getattr(attn, "q_bias", None) is not None:
                bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
            q, k, v = thirds(attn.qkv.weight, bias)
        gated = hasattr(module.mlp, "fc1_g")
        table = getattr(
            getattr(attn, "rel_pos", None) or attn, "relative_position_bias_table", None
        )
        return Block(
            ln1=module.norm1,
            q=q,
            k=k,
            v=v,
            o=linear(module.attn.proj),
            ln2=module.norm2,
            fc1=linear(module.mlp.fc1_g if gated else module.mlp.fc1),
            act=functional.silu if gated else functional.gelu,
            up=linear(module.mlp.fc1_x) if gated else None,
            fc2=linear(module.mlp.fc2),
            mlp_norm=module.mlp.norm,
            scale1=layer_scale(module, 1),
            scale2=layer_scale(module, 2),
            q_norm=getattr(attn, "q_norm", _same),
            k_norm=getattr(attn, "k_norm", _same),
            inner_norm=getattr(attn, "norm", _same),
            turn=timm_turn(model),
            bias=None if table is None else relative_bias(table, model.patch_embed.grid_size),
        )

    tokens = (getattr(model, f"{name}_token", None) for name in ("cls", "dist", "reg"))
    prefix = [token for token in tokens if token is not None]
    late = getattr(model, "no_embed_class", False)
    return HandMade(
        n_heads=model.blocks[0].attn.num_heads,
        patch_embed=model.patch_embed,
        prefix=[] if late else prefix,
        prefix_without_position=prefix if late else [],
        positions=getattr(model, "pos_embed", None),
        ln_pre=getattr(model, "norm_pre", _same),
        blocks=[block(module) for module in model.blocks],
        ln_final=model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm,
        head=head,
    )


def layer_scale(module: Any, half: int) -> Tensor | float:
    if hasattr(module, f"ls{half}"):
        return gamma(getattr(module, f"ls{half}"))
    own = getattr(module, f"gamma_{half}")
    return 1.0 if own is None else own


def timm_turn(model: Any) -> Map:
    """Rotary positions of timm, from the sines and cosines of each patch."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return _same
    sines, cosines = rope.get_embed(shape=model.patch_embed.grid_size).chunk(2, -1)
    return turned(sines, cosines, in_halves=model.blocks[0].attn.rotate_half)


def turned(sines: Tensor, cosines: Tensor, in_halves: bool) -> Map:
    """Rotate each patch's pairs of entries: neighbours, or an entry of each half."""
    n_patches, d_head = sines.shape
    index = torch.arange(d_head)
    if in_halves:
        partner = (index + d_head // 2) % d_head
        sign = torch.where(index < d_head // 2, -1.0, 1.0)
    else:
        partner = index ^ 1
        sign = torch.where(index % 2 == 0, -1.0, 1.0)

    def turn(x: Tensor) -> Tensor:
        front, patches = x[:-n_patches], x[-n_patches:]
        rotated = patches * cosines + sign.to(x) * patches[:, partner] * sines
        return torch.cat([front, rotated])

    return turn


def relative_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """BEiT's biases ``[head, query, key]``: a row of the table for each offset of two patches,
    and its last three for what involves the class token."""
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    bias = torch.zeros(table.shape[1], len(places) + 1, len(places) + 1, dtype=table.dtype)
    bias[:, 0, 1:] = table[-3].unsqueeze(1)
    bias[:, 1:, 0] = table[-2].unsqueeze(1)
    bias[:, 0, 0] = table[-1]
    for i, (y, x) in enumerate(places):
        for j, (other_y, other_x) in enumerate(places):
            offset = (y - other_y + rows - 1) * (2 * columns - 1) + x - other_x + columns - 1
            bias[:, i + 1, j + 1] = table[offset]
    return bias


def dinov3_turn(config: Any) -> Map:
    """DINOv3's rotary positions, from its paper: angles of a patch's centre, in -1 to 1."""
    n, d_head = (
        config.image_size // config.patch_size,
        config.hidden_size // config.num_attention_heads,
    )
    centre = 2 * (torch.arange(n) + 0.5) / n - 1
    frequency = config.rope_theta ** -(torch.arange(d_head // 4) * 4 / d_head)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    angles = (
        2
        * torch.pi
        * torch.cat([y.reshape(-1, 1) * frequency, x.reshape(-1, 1) * frequency], dim=1)
    )
    angles = torch.cat([angles, angles], dim=1)
    return turned(angles.sin(), angles.cos(), in_halves=True)


def torchvision_by_hand(model: Any) -> HandMade:
    def block(module: Any) -> Block:
        attn = module.self_attention
        q, k, v = thirds(attn.in_proj_weight, attn.in_proj_bias)
        return Block(
            ln1=module.ln_1,
            q=q,
            k=k,
            v=v,
            o=linear(attn.out_proj),
            ln2=module.ln_2,
            fc1=linear(module.mlp[0]),
            act=functional.gelu,
            fc2=linear(module.mlp[3]),
        )

    return HandMade(
        n_heads=4,
        patch_embed=model.conv_proj,
        prefix=[model.class_token],
        positions=model.encoder.pos_embedding,
        blocks=[block(module) for module in model.encoder.layers],
        ln_final=model.encoder.ln,
        head=lambda x, ln, edit: model.heads(edit("hook_image_embed", ln(x)[:, 0])),
    )


def transformers_by_hand(model: Any, kind: str) -> HandMade:
    for inner in ("vision_model", "vit", "dinov2", "beit", "deit"):
        tower = getattr(model, inner, None)
        if tower is not None:
            break
    else:
        tower = model
    embeddings = tower.embeddings
    clip_like = "CLIP" in kind or "Siglip" in kind
    if kind == "DINOv3ViTModel":
        layers = tower.model.layer
    elif clip_like:
        layers = tower.encoder.layers
    else:
        layers = tower.encoder.layer if "Dinov2" in kind else tower.layers
    by_mean = "Beit" in kind and tower.config.use_mean_pooling
    common = {
        "n_heads": tower.config.num_attention_heads,
        "blocks": [transformers_block(layer, tower.config) for layer in layers],
        "ln_final": tower.post_layernorm if clip_like else getattr(tower, "layernorm", None),
    }
    if kind == "DINOv3ViTModel":
        return HandMade(
            patch_embed=embeddings.patch_embeddings,
            prefix=[],
            prefix_without_position=[embeddings.cls_token, embeddings.register_tokens],
            positions=None,
            head=lambda x, ln, edit: edit("hook_image_embed", ln(x)[:, 0]),
            **{**common, "ln_final": tower.norm},
        )
    if by_mean:
        return HandMade(
            patch_embed=embeddings.patch_embeddings,
            prefix=[embeddings.cls_token],
            positions=embeddings.position_embeddings,
            head=lambda x, ln, edit: model.classifier(
                edit("hook_image_embed", ln(x[:, 1:].mean(1)))
            ),
            **{**common, "ln_final": tower.pooler.layernorm},
        )
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
        prefix=[embeddings.cls_token, *([embeddings.distillation_token] if "DeiT" in kind else [])],
        prefix_without_position=([embeddings.register_tokens] if "Registers" in kind else []),
        positions=embeddings.position_embeddings,
        head=plain_head(model, tower, kind),
        **common,
    )


def transformers_block(layer: Any, config: Any) -> Block:
    names = {name for name, _ in layer.named_children()}
    attn = layer.self_attn if "self_attn" in names else layer.attention
    ln1, ln2 = (module for module in layer.children() if isinstance(module, nn.LayerNorm))
    gated = hasattr(layer.mlp, "gate_proj")
    up = getattr(layer.mlp, "up_proj", None)
    table = getattr(layer, "relative_position_bias", None)
    return Block(
        ln1=ln1,
        q=linear(attn.q_proj),
        k=linear(attn.k_proj),
        v=linear(attn.v_proj),
        o=linear(attn.out_proj if hasattr(attn, "out_proj") else attn.o_proj),
        ln2=ln2,
        fc1=linear(layer.mlp.gate_proj if gated else getattr(layer.mlp, "fc1", None) or up),
        act=getattr(layer.mlp, "act_fn", None)
        or (functional.silu if gated else layer.mlp.activation_fn),
        fc2=linear(getattr(layer.mlp, "fc2", None) or layer.mlp.down_proj),
        up=linear(layer.mlp.up_proj) if gated else None,
        scale1=layer.layer_scale1.lambda1 if "layer_scale1" in names else one(layer, "lambda_1"),
        scale2=layer.layer_scale2.lambda1 if "layer_scale2" in names else one(layer, "lambda_2"),
        turn=dinov3_turn(config) if "dinov3" in config.model_type else _same,
        bias=relative_bias(table.relative_position_bias_table, (4, 4)) if table else None,
    )


def one(layer: Any, name: str) -> Tensor | float:
    return getattr(layer, name, 1.0)


def clip_head(model: Any) -> Callable[[Tensor, Map, Edit], Tensor]:
    project = getattr(model, "visual_projection", _same)
    return lambda x, ln, edit: edit("hook_image_embed", project(ln(x[:, 0])))


def siglip_head(tower: Any) -> Callable[[Tensor, Map, Edit], Tensor]:
    return lambda x, ln, edit: edit("hook_image_embed", tower.head(ln(x)))


def plain_head(model: Any, tower: Any, kind: str) -> Callable[[Tensor, Map, Edit], Tensor]:
    def head(x: Tensor, ln: Map, edit: Edit) -> Tensor:
        normed = ln(x)
        pooled = normed[:, 0]
        if kind in ("ViTModel", "DeiTModel") and tower.pooler is not None:
            pooled = torch.tanh(tower.pooler.dense(pooled))
        if kind == "Dinov2ForImageClassification":
            pooled = torch.cat([pooled, normed[:, 1:].mean(1)], dim=1)
        pooled = edit("hook_image_embed", pooled)
        if hasattr(model, "distillation_classifier"):
            other = model.distillation_classifier(normed[:, 1])
            return (model.cls_classifier(pooled) + other) / 2
        return model.classifier(pooled) if hasattr(model, "classifier") else pooled

    return head
