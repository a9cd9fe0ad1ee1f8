"""The hooks of a whole tower, attached for one pass: embedding, blocks, final norm, classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vit_sae_plugin.hooked_vit.block_hooks import attach_block
from vit_sae_plugin.hooked_vit.embedding_hooks import attach_embedding
from vit_sae_plugin.hooked_vit.forward_run import ForwardRun, Scope, StopForward
from vit_sae_plugin.hooked_vit.hook_names import Reach
from vit_sae_plugin.hooked_vit.norm_hooks import attach_norm
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription


def attach_tower(
    run: ForwardRun,
    tower: TowerDescription,
    block_paths: Sequence[str],
    reach: Reach,
    residual: Tensor | None,
) -> None:
    """Attach what the live points need, and let the pass begin and end where it should.

    Args:
        run: the forward pass.
        tower: where the model keeps its parts.
        block_paths: the path of each block.
        reach: the blocks to run.
        residual: the residual stream to begin with, where ``reach`` has a start.
    """
    start, stop = reach
    if residual is not None:
        _begin(run, tower, block_paths, start or 0, residual)
    root = Scope(run)
    if tower.embedding is not None:
        attach_embedding(root, tower.embedding)
    if run.live("hook_full_embed"):
        run.before(block_paths[0], lambda x: run.fire("hook_full_embed", x))
    for layer in range(start or 0, len(block_paths) if stop is None else stop):
        attach_block(run, tower, layer, block_paths[layer])
    if stop is not None:
        _end(run, block_paths, stop)
        return
    if tower.ln_final is not None:
        attach_norm(root, "ln_final", tower.ln_final)
    if tower.classifier is not None and run.live("hook_image_embed"):
        run.before(tower.classifier, lambda x: run.fire("hook_image_embed", x))


def _begin(
    run: ForwardRun,
    tower: TowerDescription,
    block_paths: Sequence[str],
    start: int,
    residual: Tensor,
) -> None:
    """Bypass the blocks in front of ``start``, and put the residual stream where they end."""
    if start == 0:
        run.before(block_paths[0], lambda _: residual)
        return
    for path in block_paths[: start - 1]:
        run.bypass(path, lambda x: x, tower.block.returns_tuple)
    run.bypass(block_paths[start - 1], lambda _: residual, tower.block.returns_tuple)


def _end(run: ForwardRun, block_paths: Sequence[str], stop: int) -> None:
    """Leave the model with the residual stream, once all hooks in front of it have run."""

    def leave(residual: Tensor, *_: Tensor) -> None:
        raise StopForward(run, residual)

    if stop == 0:
        run.before(block_paths[0], leave)
    else:
        run.after(block_paths[stop - 1], leave)
