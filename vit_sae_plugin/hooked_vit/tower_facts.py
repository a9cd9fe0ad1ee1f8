"""Checks a tower description against the model, and reads sizes from the model's weights."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.norm_hooks import norm_kind
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.weight_views import inside_of_wrappers


def check_tower(module: nn.Module, tower: TowerDescription) -> None:
    """Check that every path leads to a module and that no module serves two blocks.

    Raises:
        UnsupportedTowerError: a path leads nowhere, or a module is used twice.
    """
    blocks = _module_at(module, tower.blocks, "blocks")
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        raise UnsupportedTowerError(
            f"blocks={tower.blocks!r} leads to a {type(blocks).__name__}; want a ModuleList or "
            "Sequential with at least one block"
        )
    owner: dict[int, str] = {}
    for path in block_paths(module, tower):
        for field, inner in _paths_in_block(tower).items():
            full = f"{path}.{inner}" if inner else path
            part = _module_at(module, full, field)
            first = owner.setdefault(id(part), f"{path} {inner}")
            if first.split(" ")[0] != path:
                raise UnsupportedTowerError(
                    f"{full!r} is the same module as {first.replace(' ', '.').rstrip('.')!r}: a "
                    "module used in two places has no hooks of its own; want each block's own "
                    "modules (weights may be shared)"
                )
    for field in ("ln_final", "classifier"):
        path = getattr(tower, field)
        if path is not None:
            _module_at(module, path, field)
    if tower.embedding is not None:
        _module_at(module, tower.embedding.patch_embed, "embedding.patch_embed")
        _module_at(module, tower.embedding.embedded, "embedding.embedded")


def block_paths(module: nn.Module, tower: TowerDescription) -> tuple[str, ...]:
    """The path of each block, in order: some containers name them otherwise than 0, 1, 2."""
    # named_children would leave out a block that stands there twice, which check_tower refuses
    return tuple(f"{tower.blocks}.{name}" for name in module.get_submodule(tower.blocks)._modules)


def _paths_in_block(tower: TowerDescription) -> dict[str, str]:
    block = tower.block
    paths = {"block": "", "ln1": block.ln1, "attn": block.attn, "ln2": block.ln2}
    paths |= {"attn_out": block.attn_out, "mlp_out": block.mlp_out}
    paths |= {"mlp_in": block.mlp_in, "mlp_proj": block.mlp_proj}  # type: ignore[dict-item]
    paths["summed"] = block.summed
    if block.attention is not None:
        for field in fields(block.attention):
            value = getattr(block.attention, field.name)
            if isinstance(value, str) and not (field.name == "out_proj" and value == ""):
                paths[f"attention.{field.name}"] = value
    return {field: path for field, path in paths.items() if path is not None}


def _module_at(module: nn.Module, path: str, field: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise UnsupportedTowerError(
            f"the tower description's {field} is {path!r}; want a module of "
            f"{type(module).__name__} (print(model) shows their paths)"
        ) from None


def read_config(module: nn.Module, tower: TowerDescription, model_name: str) -> HookedViTConfig:
    """The sizes of the tower, from the description and the weights of the first block."""
    blocks: Any = module.get_submodule(tower.blocks)
    block = tower.block
    ln1 = _layer(blocks[0], block.ln1)
    d_model = int(ln1.weight.shape[-1])
    d_mlp = 0
    if block.mlp_proj is not None:
        d_mlp = int(_layer(blocks[0], block.mlp_proj).weight.shape[1])
    elif block.mlp_in is not None:
        d_mlp = int(_layer(blocks[0], block.mlp_in).weight.shape[0])
    d_head = d_model // tower.n_heads
    if block.attention is not None:
        d_head = int(_layer(blocks[0], block.attention.out_proj).weight.shape[1]) // tower.n_heads
    device, dtype = tower_dtype(module, tower)
    return HookedViTConfig(
        model_name=model_name,
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=tower.n_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        d_embed=tower.d_embed or d_model,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        tokens=token_layout(tower),
        device=device,
        dtype=dtype,
        normalization_type=norm_kind(ln1) or "LN",
    )


def token_layout(tower: TowerDescription) -> TokenLayout:
    """Which token of the blocks is what."""
    (height, width), (patch_height, patch_width) = tower.image_size, tower.patch_size
    return TokenLayout.of_grid(
        (height // patch_height, width // patch_width),
        front=tower.roles_in_front(),
        back=tower.suffix_roles,
    )


def _layer(block: nn.Module, path: str) -> Any:
    return inside_of_wrappers(block.get_submodule(path))


def tower_dtype(module: nn.Module, tower: TowerDescription) -> tuple[torch.device, torch.dtype]:
    """Where the tower is, and the number format of the first weights that pixels meet."""
    path = tower.blocks if tower.embedding is None else tower.embedding.patch_embed
    for parameter in module.get_submodule(path).parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    parameter = next(module.parameters())
    return parameter.device, torch.float32
