"""The tree of HookPoints, with TransformerLens's names, that ``HookedViT`` holds beside the model.

The tree holds no weights of the model: its nodes only say where a value is offered to hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint

from vit_sae_plugin.hooked_vit.tower_description import BlockDescription, TowerDescription
from vit_sae_plugin.hooked_vit.weight_views import AttentionWeights, MLPWeights, NormWeights


class NormHooks(NormWeights, nn.Module):
    """``ln1``, ``ln2``, ``ln_final``: the scale, and the value before the learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()


class AttentionHooks(AttentionWeights, nn.Module):
    """``attn``: queries, keys, values, scores, pattern, heads' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint()


class MLPHooks(MLPWeights, nn.Module):
    """``mlp``: before and after the activation function."""

    def __init__(self, block: BlockDescription) -> None:
        super().__init__()
        if block.mlp_in is not None:
            self.hook_pre = HookPoint()
        if block.mlp_proj is not None:
            self.hook_post = HookPoint()


class BlockHooks(nn.Module):
    """``blocks.{i}``, its points in the order in which they fire."""

    def __init__(self, block: BlockDescription) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.hook_attn_in = HookPoint()
        self.ln1 = NormHooks()
        if block.attention is not None:
            self.attn = AttentionHooks()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_in = HookPoint()
        self.ln2 = NormHooks()
        self.mlp = MLPHooks(block)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()


def plant_hook_tree(root: nn.Module, tower: TowerDescription, n_layers: int) -> None:
    """Give ``root`` its HookPoints, in the order in which they fire."""
    if tower.embedding is not None:
        root.hook_embed = HookPoint()
        if tower.embedding.pos_embed is not None:
            root.hook_pos_embed = HookPoint()
    root.hook_full_embed = HookPoint()
    root.blocks = nn.ModuleList(BlockHooks(tower.block) for _ in range(n_layers))
    if tower.ln_final is not None:
        root.ln_final = NormHooks()
    root.hook_image_embed = HookPoint()


def place_hook_tree(
    root: Any, bare_model: nn.Module, tower: TowerDescription, block_paths: Sequence[str]
) -> None:
    """Tell the nodes that offer weights which parts of the wrapped model they stand for."""
    block = tower.block
    for path, hooks in zip(block_paths, root.blocks, strict=True):
        hooks.ln1.place(bare_model, f"{path}.{block.ln1}", block)
        hooks.ln2.place(bare_model, f"{path}.{block.ln2}", block)
        hooks.mlp.place(bare_model, path, block)
        if block.attention is not None:
            hooks.attn.place(bare_model, path, block)
            hooks.attn.n_heads = tower.n_heads
    if tower.ln_final is not None:
        root.ln_final.place(bare_model, tower.ln_final)


def missing_reasons(tower: TowerDescription) -> dict[str, str]:
    """Why optional hooks of the vocabulary do not exist, by hook name (``blocks.*.…``)."""
    reasons = {}
    block = tower.block
    if tower.embedding is None:
        reasons["hook_embed"] = "the tower description has no embedding"
    if tower.embedding is None or tower.embedding.pos_embed is None:
        reasons["hook_pos_embed"] = "no position embedding is added to the patches"
    if block.attention is None:
        for short in ("q", "k", "v", "attn_scores", "pattern", "z", "result"):
            reasons[f"blocks.*.attn.hook_{short}"] = block.attention_missing
    if block.mlp_in is None:
        reasons["blocks.*.mlp.hook_pre"] = "its MLP has no single layer in front of an activation"
    if block.mlp_proj is None:
        reasons["blocks.*.mlp.hook_post"] = "the tower description names no last MLP layer"
    if tower.ln_final is None:
        reasons["ln_final.hook_scale"] = "it has no norm after the last block"
        reasons["ln_final.hook_normalized"] = reasons["ln_final.hook_scale"]
    return {**reasons, **tower.notes}


def is_live(module: Any) -> bool:
    """Whether a point of the tree does something: it has a hook, or an SAE is spliced in there."""
    return bool(
        not isinstance(module, HookPoint)
        or module._forward_hooks
        or module._backward_hooks
        or module._forward_pre_hooks
        or module._backward_pre_hooks
    )
