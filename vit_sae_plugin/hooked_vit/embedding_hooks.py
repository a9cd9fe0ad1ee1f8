"""``hook_embed`` and ``hook_pos_embed``: the two terms of the sum that models compute in one go."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.forward_run import Scope
from vit_sae_plugin.hooked_vit.tower_description import EmbeddingDescription


def attach_embedding(scope: Scope, embedding: EmbeddingDescription) -> None:
    """Attach both hooks; each value is ``[batch, token, d_model]``, prefix tokens included.

    The patch embeddings are kept as they come; where the model has summed, the two terms are put
    together again from them and the parameters, and the sum is replaced only after an edit. The
    norm that CLIP applies in front of its first block comes later: see ``hook_full_embed``.
    """
    if not scope.live("hook_embed", "hook_pos_embed"):
        return
    kept: dict[str, Tensor] = {}

    def keep_patches(patches: Tensor, _: Tensor) -> None:
        kept["patches"] = patches

    def on_sum(total: Tensor) -> Tensor | None:
        patches = _as_tokens(kept["patches"], total.shape[-1])
        model = scope.run.bare_model
        prefix = [_parameter_rows(model, path) for path in embedding.prefix]
        embed = torch.cat(
            [*(rows.to(total.dtype).expand(len(total), -1, -1) for rows in prefix), patches], dim=1
        )
        pos = None
        if embedding.pos_embed is not None:
            pos = _positions(_parameter_rows(model, embedding.pos_embed), patches, total)
            if pos is None or not torch.allclose(embed + pos, total):
                # The model has resampled its positions for an image of another size or shape.
                pos = total - embed
        embed, embed_changed = scope.fire_checked("hook_embed", embed)
        if pos is None:
            return embed if embed_changed else None
        pos, pos_changed = scope.fire_checked("hook_pos_embed", pos)
        return embed + pos if embed_changed or pos_changed else None

    scope.after(embedding.patch_embed, keep_patches)
    if embedding.embedded_side == "input":
        scope.before(embedding.embedded, on_sum)
    else:
        scope.after(embedding.embedded, lambda total, _: on_sum(total))


def _as_tokens(patches: Tensor, d_model: int) -> Tensor:
    if patches.ndim == 3:
        return patches
    channels_last = patches.shape[-1] == d_model and patches.shape[1] != d_model
    return patches.flatten(1, 2) if channels_last else patches.flatten(2).transpose(1, 2)


def _parameter_rows(model: nn.Module, path: str) -> Tensor:
    parameter: Tensor = reduce(getattr, path.split("."), model)  # type: ignore[arg-type, assignment]
    return parameter.reshape(1, -1, parameter.shape[-1])


def _positions(rows: Tensor, patches: Tensor, total: Tensor) -> Tensor | None:
    """Positions for every token, zero for prefix tokens that have none; None if they don't fit."""
    n_tokens, n_patches = total.shape[1], patches.shape[1]
    n_prefix_with_position = rows.shape[1] - n_patches
    n_prefix_without = n_tokens - rows.shape[1]
    if n_prefix_with_position < 0 or n_prefix_without < 0:
        return None
    rows = rows.to(total.dtype)
    zeros = rows.new_zeros(1, n_prefix_without, rows.shape[-1])
    front, back = rows[:, :n_prefix_with_position], rows[:, n_prefix_with_position:]
    # A copy for each image: a hook that edits in place must not reach the parameter.
    return torch.cat([front, zeros, back], dim=1).expand(len(total), -1, -1).clone()
