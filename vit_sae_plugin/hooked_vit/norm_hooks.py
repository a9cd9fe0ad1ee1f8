"""``ln1``, ``ln2`` and ``ln_final``: a norm taken apart into scale and normalised value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.forward_run import Scope
from vit_sae_plugin.hooked_vit.weight_views import inside_of_wrappers


def norm_kind(norm: nn.Module) -> str | None:
    """``"LN"``, ``"RMS"``, or None for a module that is neither."""
    if isinstance(norm, nn.RMSNorm) or "rmsnorm" in type(norm).__name__.lower():
        return "RMS"
    if isinstance(norm, nn.LayerNorm):
        return "LN"
    return None


def attach_norm(scope: Scope, name: str, path: str) -> None:
    """Attach ``{name}.hook_scale`` and ``{name}.hook_normalized`` to the norm at ``path``.

    As in TransformerLens: scale is ``sqrt(var + eps)`` (of the raw values for an RMS norm),
    ``[..., 1]``; normalized is the (centred) input divided by it, before factor and shift. Both
    are computed in 32 bit for a 16-bit model. The norm's output is replaced only after an edit.
    """
    if not scope.live(f"{name}.hook_scale", f"{name}.hook_normalized"):
        return

    def take_apart(output: Tensor, x: Tensor) -> Tensor | None:
        norm = inside_of_wrappers(scope.module(path))
        kind = norm_kind(norm)
        if kind is None:
            raise UnsupportedTowerError(
                f"{name!r} is a {type(norm).__name__}; want a LayerNorm or an RMSNorm for its hooks"
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if kind == "LN":
            x = x - x.mean(-1, keepdim=True)
        eps = getattr(norm, "eps", None)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scale = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        scale, scale_changed = scope.fire_checked(f"{name}.hook_scale", scale)
        normalized, changed = scope.fire_checked(f"{name}.hook_normalized", x / scale)
        if not (scale_changed or changed):
            return None
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        scaled = normalized if weight is None else normalized * weight
        return (scaled if bias is None else scaled + bias).to(output.dtype)

    scope.after(path, take_apart)
