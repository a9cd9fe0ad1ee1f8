"""Prompt tokens in a vision tower, and the tower's description once they are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from vit_sae_plugin.adaptation.prompts import AppendedPrompt, PromptedBlock
from vit_sae_plugin.hooked_vit import (
    AttentionDescription,
    BlockDescription,
    TowerDescription,
    UnsupportedTowerError,
)
from vit_sae_plugin.hooked_vit.token_layout import TokenRole

_BEFORE_BLOCKS = {
    "open_clip": "visual.ln_pre",
    "open_clip with a timm tower": "visual.trunk.norm_pre",
    "transformers CLIP": "vision_model.pre_layrnorm",
}
"""Family to the module between the sum of the embeddings and the first block."""
_INNER = "block"


def check_vision_prompts(module: nn.Module, tower: TowerDescription) -> None:
    """Check that prompt tokens can be put into a vision tower without changing what else it does.

    Raises:
        UnsupportedTowerError: they would be pooled with the patches, would need positions, or the
            family isn't known here.
    """
    problem = None
    path = _BEFORE_BLOCKS.get(tower.family)
    if path is None or not _has_module(module, path):
        problem = f"this package doesn't know where they enter it (it does of {_known()})"
    elif tower.block.attention is not None and tower.block.attention.intercepted:
        problem = "its attention gives every token a place on the grid, and they have none"
    elif tower.pooling != "class":
        problem = "its embedding isn't that of a class token, so they would be pooled with patches"
    if problem is not None:
        raise UnsupportedTowerError(
            f"prompt tokens can't be put into this model ({tower.family}): {problem}; want an "
            "open_clip or transformers CLIP with a class token, or method 'lora' or 'linear_probe'"
        )


def insert_vision_prompts(
    module: Any, tower: TowerDescription, prompts: Sequence[nn.Module], n_prompts: int
) -> TowerDescription:
    """Put prompt tokens behind the patches, others in front of each block that has its own.

    They stand at the end of the sequence and enter behind the position embeddings, as in MaPLe's
    code (Khattak et al. 2023), which also places VPT's there (Jia et al. 2022 put them behind the
    class token). No token has a position of its own in the blocks, so the place changes no number.

    Args:
        module: the model; changed in place.
        tower: where it keeps its parts.
        prompts: those of block 0, 1, …; behind the last of these blocks they flow on.
        n_prompts: how many tokens each has.

    Returns:
        The description of the tower as it is now.
    """
    check_vision_prompts(module, tower)
    path = _BEFORE_BLOCKS[tower.family]
    parent, _, name = path.rpartition(".")
    setattr(
        module.get_submodule(parent), name, AppendedPrompt(module.get_submodule(path), prompts[0])
    )
    blocks = module.get_submodule(tower.blocks)
    for layer, child in enumerate(list(blocks._modules)):
        following = prompts[layer + 1] if layer + 1 < len(prompts) else None
        block = PromptedBlock(blocks.get_submodule(child), following, -n_prompts)
        blocks._modules[child] = block
    role: TokenRole = "prompt"
    return replace(
        tower,
        block=_described_inside(tower.block),
        suffix_roles=(*tower.suffix_roles, *[role] * n_prompts),
    )


def _described_inside(block: BlockDescription) -> BlockDescription:
    """The description of a block that stands inside of another module."""
    attention = block.attention
    if attention is not None:
        attention = replace(attention, **_inside(attention, _PATHS_OF_ATTENTION))
    names = [entry.name for entry in fields(block) if entry.name in _PATHS_OF_BLOCK]
    return replace(block, **_inside(block, names), attention=attention, summed=_INNER)


_PATHS_OF_BLOCK = "ln1 attn_out ln2 mlp_out attn mlp_in mlp_proj".split()
_PATHS_OF_ATTENTION = "out_proj qkv q k v packed q_norm k_norm z".split()


def _inside(part: BlockDescription | AttentionDescription, names: Sequence[str]) -> dict[str, Any]:
    given = {name: getattr(part, name) for name in names}
    return {name: f"{_INNER}.{path}" for name, path in given.items() if path is not None}


def _has_module(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _known() -> str:
    return ", ".join(_BEFORE_BLOCKS)
