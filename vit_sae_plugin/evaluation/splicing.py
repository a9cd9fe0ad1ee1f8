"""Run a model with chosen tokens of one hook replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations import token_selection

if TYPE_CHECKING:
    from vit_sae_plugin.activations.activation_source import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT

TOKEN_GROUPS = ("all", "cls", "patches")


def run_spliced(
    model: HookedViT,
    source: ActivationSource,
    pixels: Float[Tensor, "batch 3 height width"],
    acts_btd: Float[Tensor, "batch token d_in"] | float,
) -> Float[Tensor, "batch d_embed"]:
    """The model's output with the SAE's tokens replaced; every other token stays as it is.

    Args:
        model: on any device, of any precision.
        source: the hook and the tokens that the SAE reads.
        pixels: preprocessed images.
        acts_btd: what to put there, heads flattened, as ``source.activations`` gave it; or one
            number for all of them, such as 0.
    """
    hook = replace_selected(source, model.cfg, acts_btd)
    return model.run_with_hooks(pixels, fwd_hooks=[(source.hook_name, hook)])


def replace_selected(
    source: ActivationSource, cfg: Any, acts_btd: Tensor | float
) -> Callable[..., Tensor]:
    """A forward hook that puts ``acts_btd`` where ``source.select`` reads."""

    def hook_fn(value: Tensor, hook: Any = None) -> Tensor:
        return source.replace(cfg, value, acts_btd)

    return hook_fn


def selected_positions(source: ActivationSource, cfg: Any, hook_value: Tensor) -> Tensor:
    """Positions on the hook's own token axis that ``source.select`` reads."""
    if source.token_kind == "all" and tuple(source.seqpos_slice) == (None,):
        return torch.arange(hook_value.shape[1])
    return token_selection.selected_positions(cfg.tokens, source.token_kind, source.seqpos_slice)


def token_groups(
    source: ActivationSource, cfg: Any, hook_value: Tensor
) -> dict[str, slice | Tensor]:
    """Which of the selected tokens are which, as indices into them: all, cls, patches.

    Pooled hooks such as ``hook_image_embed`` have one row an image, neither class token nor patch.
    """
    if hook_value.ndim == 2:
        return {"all": slice(None), "cls": slice(0), "patches": slice(0)}
    positions = selected_positions(source, cfg, hook_value)
    n_prefix = cfg.n_prefix_tokens
    is_patch = (positions >= n_prefix) & (positions < n_prefix + cfg.grid[0] * cfg.grid[1])
    is_cls = (positions == 0) & (n_prefix > 0)
    return {"all": slice(None), "cls": _indices(is_cls), "patches": _indices(is_patch)}


def _indices(chosen: Tensor) -> slice | Tensor:
    """A slice where one will do, for it copies nothing."""
    indices = chosen.nonzero().flatten()
    if len(indices) == 0:
        return slice(0)
    first, stop = int(indices[0]), int(indices[-1]) + 1
    return slice(first, stop) if stop - first == len(indices) else indices
