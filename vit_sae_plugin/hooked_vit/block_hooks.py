"""Hooks of one block: the residual stream, the norms, the MLP; attention's inside is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

from torch import Tensor

from vit_sae_plugin.hooked_vit.attention_hooks import attach_attention
from vit_sae_plugin.hooked_vit.forward_run import ForwardRun, Scope
from vit_sae_plugin.hooked_vit.norm_hooks import attach_norm
from vit_sae_plugin.hooked_vit.tower_description import BlockDescription, TowerDescription

Replace = Callable[[Tensor, Tensor], Tensor | None]
Attach = Callable[[Replace], None]


def attach_block(run: ForwardRun, tower: TowerDescription, layer: int, path: str) -> None:
    """Attach what the live points of block ``layer`` need, in the order in which values arise."""
    scope = Scope(run, f"blocks.{layer}.", path)
    block = tower.block
    if scope.live("hook_resid_pre"):
        scope.before("", lambda x: scope.fire("hook_resid_pre", x))
    if scope.live("hook_attn_in"):
        scope.before(block.ln1, lambda x: _fire_on_copy(scope, "hook_attn_in", x))
    attach_norm(scope, "ln1", block.ln1)
    if block.attention is not None:
        attach_attention(scope, block, block.attention, tower.n_heads)
    after_attn, after_mlp = _after_halves(scope, block)
    if scope.live("hook_attn_out"):
        after_attn(lambda out, _: scope.fire("hook_attn_out", out))
    edited_mid = _attach_resid_mid(scope, block.ln2)
    if scope.live("hook_mlp_in"):
        scope.before(block.ln2, lambda x: _fire_on_copy(scope, "hook_mlp_in", x))
    attach_norm(scope, "ln2", block.ln2)
    if block.mlp_in is not None and scope.live("mlp.hook_pre"):
        # A copy: activation functions may work in place, over what a cache holds.
        scope.after(block.mlp_in, lambda out, _: _fire_on_copy(scope, "mlp.hook_pre", out))
    if block.mlp_proj is not None and scope.live("mlp.hook_post"):
        scope.before(block.mlp_proj, lambda x: scope.fire("mlp.hook_post", x))
    if scope.live("hook_mlp_out"):
        after_mlp(lambda out, _: scope.fire("hook_mlp_out", out))
    if edited_mid is not None:
        _attach_mid_correction(scope, block.summed, after_mlp, edited_mid)
    if scope.live("hook_resid_post"):
        scope.after("", lambda out, _: scope.fire("hook_resid_post", out))


def _after_halves(scope: Scope, block: BlockDescription) -> tuple[Attach, Attach]:
    """How to attach to what the attention, and what the MLP, adds to the stream. Some blocks pass
    both through one module, the attention's first."""
    if block.attn_out != block.mlp_out:
        return partial(scope.after, block.attn_out), partial(scope.after, block.mlp_out)

    def after_call(wanted: int, replace: Replace) -> None:
        calls = count()
        scope.after(
            block.attn_out, lambda out, x: replace(out, x) if next(calls) == wanted else None
        )

    return partial(after_call, 0), partial(after_call, 1)


def _fire_on_copy(scope: Scope, name: str, value: Tensor) -> Tensor | None:
    """Fire on a copy, so that what hooks see and what the model goes on with never share memory:
    an edit of a branch's input must not reach the stream, nor the model's work in place a cache.
    """
    seen, changed = scope.fire_checked(name, value.clone())
    return seen.clone() if changed else None


def _attach_resid_mid(scope: Scope, ln2: str) -> dict[str, Tensor] | None:
    """Fire ``hook_resid_mid`` on what enters the second norm; returns where an edit is kept."""
    if not scope.live("hook_resid_mid"):
        return None
    edited: dict[str, Tensor] = {}

    def on_mid(residual: Tensor) -> Tensor:
        mid, changed = scope.fire_checked("hook_resid_mid", residual)
        if changed:
            edited["mid"] = mid
            edited["original"] = residual
        return mid

    scope.before(ln2, on_mid)
    return edited


def _attach_mid_correction(
    scope: Scope, summed: str, after_mlp: Attach, edited: dict[str, Tensor]
) -> None:
    """Carry an edited ``resid_mid`` into the block's output.

    The norm's input reaches only the MLP; the stream itself goes on inside the block, where no
    module passes it, so the block's output is put together again from the edited stream.
    """
    block = scope.module("")

    def keep_mlp_out(out: Tensor, _: Tensor) -> None:
        edited["mlp_out"] = out

    def correct(out: Tensor, _: Tensor) -> Tensor | None:
        if "mid" not in edited:
            return None
        if block.training:
            # Dropout or stochastic depth may act on the MLP's output after it was seen here.
            return out + (edited["mid"] - edited["original"])
        return edited["mid"] + edited["mlp_out"]

    after_mlp(keep_mlp_out)
    scope.after(summed, correct)
