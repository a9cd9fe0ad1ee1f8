"""Attention's inside: q, k, v, scores, pattern, z and the heads' results of fused attention.

The models compute attention in one fused call. Here it is computed again, unfused, only as far
as live hook points need it; the model's own output is replaced only if a hook changed a value.
The recomputation has no attention dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.forward_run import Scope
from vit_sae_plugin.hooked_vit.tower_description import AttentionDescription, BlockDescription

_SCORES = ("attn.hook_attn_scores", "attn.hook_pattern")
_INSIDE = (
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    *_SCORES,
    "attn.hook_z",
    "attn.hook_result",
)


def attach_attention(
    scope: Scope, block: BlockDescription, attention: AttentionDescription, n_heads: int
) -> None:
    """Attach the live ``attn.*`` points of one block."""
    if not scope.live(*_INSIDE):
        return
    inside = AttentionInside(scope, attention, n_heads)
    if attention.intercepted:
        scope.within(block.attn, lambda: Interception(inside))
    if attention.packed is not None:
        scope.after(inside.packed_path(attention.packed), inside.recompute_packed)
        return
    inside.attach_projections()
    if scope.live("attn.hook_z") or (scope.live(*_SCORES) and not attention.intercepted):
        scope.before(attention.z or attention.out_proj, inside.on_heads_out)
    if scope.live("attn.hook_result"):
        scope.after(attention.out_proj, inside.on_projected)


class AttentionInside:
    """The values of one block's attention during one forward pass.

    Args:
        scope: the run, seen from the block.
        attention: where the projections are.
        n_heads: number of heads.
    """

    def __init__(self, scope: Scope, attention: AttentionDescription, n_heads: int) -> None:
        self.scope = scope
        self.attention = attention
        self.n_heads = n_heads
        self.heads: dict[str, Tensor] = {}

    def attach_projections(self) -> None:
        """Attach to the projection modules: one for q, k and v together, or one for each."""
        attention, scope = self.attention, self.scope
        if attention.added_biases is not None:
            return  # never called: see Interception
        needed = scope.live(*_SCORES) and not attention.intercepted
        if attention.qkv is not None:
            if needed or scope.live("attn.hook_q", "attn.hook_k", "attn.hook_v"):
                scope.after(attention.qkv, lambda out, _: self.on_qkv(out))
            return
        for letter, path in (("q", attention.q), ("k", attention.k), ("v", attention.v)):
            if path is not None and (needed or scope.live(f"attn.hook_{letter}")):
                scope.after(path, lambda out, _, letter=letter: self.on_projection(letter, out))

    def split(self, flat: Tensor) -> Tensor:
        """``[batch, token, head * d]`` to ``[batch, token, head, d]``."""
        return flat.view(*flat.shape[:-1], self.n_heads, -1)

    def on_projection(self, letter: str, out: Tensor) -> Tensor | None:
        value, changed = self.scope.fire_checked(f"attn.hook_{letter}", self.split(out))
        self.heads[letter] = value
        return value.flatten(-2) if changed else None

    def on_qkv(self, out: Tensor) -> Tensor | None:
        stacked = out.view(*out.shape[:-1], 3, self.n_heads, -1)
        any_changed = False
        for index, letter in enumerate("qkv"):
            value = stacked.select(-3, index)
            self.heads[letter], changed = self.scope.fire_checked(f"attn.hook_{letter}", value)
            any_changed |= changed
        if not any_changed:
            return None
        return torch.stack([self.heads[letter] for letter in "qkv"], dim=-3).flatten(-3)

    def on_heads_out(self, flat: Tensor) -> Tensor | None:
        z, changed = self.split(flat), False
        if self.scope.live(*_SCORES) and not self.attention.intercepted:
            pattern, changed = self.fire_pattern()
            if changed:
                z = self.mix_values(pattern)
        z, z_changed = self.scope.fire_checked("attn.hook_z", z)
        return z.flatten(-2) if changed or z_changed else None

    def on_projected(self, out: Tensor, flat: Tensor) -> Tensor | None:
        out_proj = self.scope.module(self.attention.out_proj)
        with self.scope.run.paused():
            result, bias = results_of_heads(out_proj, self.split(flat))
        result, changed = self.scope.fire_checked("attn.hook_result", result)
        if not changed:
            return None
        summed = result.sum(dim=-2)
        return summed if bias is None else summed + bias

    def normed(self, letter: str, norm: str | None) -> Tensor:
        """Queries or keys as they are multiplied, ``[batch, head, token, d_head]``."""
        value = self.heads[letter].transpose(1, 2)
        if norm is None:
            return value
        with self.scope.run.paused():
            return self.scope.module(norm)(value)

    def fire_pattern(self) -> tuple[Tensor, bool]:
        """Scores and pattern ``[batch, head, query, key]``; whether a hook changed either."""
        q, k = self.normed("q", self.attention.q_norm), self.normed("k", self.attention.k_norm)
        scale = q.shape[-1] ** -0.5 if self.attention.scale is None else self.attention.scale
        return self.fire_scores(q @ k.transpose(-1, -2) * scale)

    def fire_scores(self, scores: Tensor) -> tuple[Tensor, bool]:
        """The pattern of these scores; whether a hook changed either."""
        scores, changed = self.scope.fire_checked("attn.hook_attn_scores", scores)
        # In at least 32 bit, as the fused kernels do for 16-bit models.
        wide = torch.promote_types(scores.dtype, torch.float32)
        pattern = scores.softmax(dim=-1, dtype=wide).to(scores.dtype)
        pattern, pattern_changed = self.scope.fire_checked("attn.hook_pattern", pattern)
        return pattern, changed or pattern_changed

    def mix_values(self, pattern: Tensor) -> Tensor:
        """The heads' outputs z, ``[batch, token, head, d_head]``."""
        return (pattern @ self.heads["v"].transpose(1, 2)).transpose(1, 2)

    def packed_path(self, path: str) -> str:
        """The attention module itself, inside of adapters: they merge their weights into its own
        for the length of its forward pass."""
        while hasattr(self.scope.module(path), "base_layer"):
            path = f"{path}.base_layer"
        return path

    def recompute_packed(self, output: Tensor, x: Tensor) -> Tensor | None:
        """All of attention from its input, for modules that call no projection modules."""
        scope, attention = self.scope, self.attention
        module: Any = scope.module(self.packed_path(attention.packed or ""))
        qkv = functional.linear(x, module.in_proj_weight, module.in_proj_bias)
        changed = self.on_qkv(qkv) is not None
        if scope.live(*_SCORES):
            pattern, pattern_changed = self.fire_pattern()
            changed |= pattern_changed
            z = self.mix_values(pattern)
        elif changed or scope.live("attn.hook_z", "attn.hook_result"):
            z = functional.scaled_dot_product_attention(
                self.normed("q", attention.q_norm),
                self.normed("k", attention.k_norm),
                self.heads["v"].transpose(1, 2),
                scale=attention.scale,
            ).transpose(1, 2)
        else:
            return None
        z, z_changed = scope.fire_checked("attn.hook_z", z)
        with scope.run.paused():
            flat = z.flatten(-2)
            if attention.z is not None:
                flat = scope.module(attention.z)(flat)
            out_proj: Any = scope.module(attention.out_proj)
            if isinstance(module, nn.MultiheadAttention):
                # It never calls its out_proj, but uses its weights.
                out_proj = partial(functional.linear, weight=out_proj.weight, bias=out_proj.bias)
            new = out_proj(flat) if changed or z_changed else None
        replaced = self.on_projected(output, flat) if scope.live("attn.hook_result") else None
        return new if replaced is None else replaced


class Interception(TorchFunctionMode):
    """Within it, an attention module's own calls of torch are seen: the projection whose weight it
    uses without calling the module, and the step from queries and keys to the pattern.

    That step is as the module makes it, with rotary positions and biases, of whatever kind.
    """

    def __init__(self, inside: AttentionInside) -> None:
        super().__init__()
        self.inside = inside

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, inside = kwargs or {}, self.inside
        if not inside.scope.run.is_current():
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and inside.scope.live(*_SCORES):
            return self._fused(*args, **kwargs)
        if func in _SOFTMAX and args[0].ndim == 4:
            scores = inside.scope.fire("attn.hook_attn_scores", args[0])
            return inside.scope.fire("attn.hook_pattern", func(scores, *args[1:], **kwargs))
        output = func(*args, **kwargs)
        if func is functional.linear and inside.attention.added_biases is not None:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            projection: Any = inside.scope.module(inside.attention.qkv or "")
            if weight is projection.weight:
                changed = inside.on_qkv(output)
                return output if changed is None else changed
        return output

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if is_causal or enable_gqa:
            raise UnsupportedTowerError(
                f"the attention has is_causal={is_causal}, enable_gqa={enable_gqa}; scores and "
                "pattern can be hooked only of attention among all tokens, with a key a query head"
            )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = query @ key.transpose(-1, -2) * factor
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        pattern, changed = self.inside.fire_scores(scores)
        if changed:
            return pattern @ value
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, scale=scale
        )


_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


def results_of_heads(out_proj: nn.Module, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """What each head adds to the attention's output, and the bias that is added once.

    Args:
        out_proj: the projection of the concatenated heads.
        z: the heads' outputs, ``[batch, token, head, d_head]``.

    Returns:
        ``[batch, token, head, d_model]`` and ``[d_model]``; summed over heads, plus the bias, they
        are ``out_proj``'s output.
    """
    n_heads, d_head = z.shape[-2:]
    if isinstance(out_proj, nn.Linear) and type(out_proj).forward is nn.Linear.forward:
        weight = out_proj.weight.view(-1, n_heads, d_head)
        return torch.einsum("...hd,mhd->...hm", z, weight), out_proj.bias
    # An adapter: call the module itself with all heads but one silenced, one after another.
    bias = out_proj(z.new_zeros(n_heads * d_head))
    alone = z.unsqueeze(-3) * torch.eye(n_heads, dtype=z.dtype, device=z.device).unsqueeze(-1)
    return out_proj(alone.flatten(-2)) - bias, bias
