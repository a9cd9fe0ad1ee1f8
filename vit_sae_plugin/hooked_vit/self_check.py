"""Whether a tower description tells the truth: hooks compared with a pass without hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.hook_names import layer_of

if TYPE_CHECKING:
    import pandas as pd

Run = Callable[[dict[str, Callable[[Tensor], Tensor]]], Tensor]


def check_first_block(model: Any, run: Run) -> None:
    """Check the description by one image's way through the first block.

    Args:
        model: a ``HookedViT`` in evaluation mode, fed with images of its own size.
        run: gives the residual stream behind the first block, with these functions at the hook
            points of these names.

    Raises:
        UnsupportedTowerError: there are other tokens than ``n_prefix_tokens``, ``image_size`` and
            ``patch_size`` say; or the block's parts do not add up to its output.
    """
    seen: dict[str, Tensor] = {}
    names = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")
    post = run({f"blocks.0.{name}": _keep(seen, name) for name in names})
    cfg, block = model.cfg, model.tower.block
    if post.ndim != 3 or post.shape[1:] != (cfg.n_tokens, cfg.d_model):
        rows, columns = cfg.grid
        raise UnsupportedTowerError(
            f"the blocks see {tuple(post.shape)}, but the tower description says {cfg.n_tokens} "
            f"tokens of width {cfg.d_model}: n_prefix_tokens={cfg.n_prefix_tokens}, {rows} x "
            f"{columns} patches by image_size and patch_size, "
            f"{len(model.tower.suffix_roles)} suffix_roles; want what the model has"
        )
    for sum_name, addend, path in (
        ("hook_resid_mid", "hook_attn_out", f"attn_out={block.attn_out!r}"),
        ("hook_resid_post", "hook_mlp_out", f"mlp_out={block.mlp_out!r}"),
    ):
        before = seen["hook_resid_pre" if addend == "hook_attn_out" else "hook_resid_mid"]
        total = post if sum_name == "hook_resid_post" else seen[sum_name]
        if before.shape != seen[addend].shape:
            off = torch.inf
        else:
            off = _difference(*_unprompted(model, before + seen[addend], total))
        if off > _tolerance(total):
            raise UnsupportedTowerError(
                f"in block 0 the stream with {addend} added differs from {sum_name} by {off:.1%} "
                f"of it, so {path} (or ln1={block.ln1!r}, ln2={block.ln2!r}) of the tower "
                "description is wrong; want the module whose output is added to the stream (a "
                "LayerScale, where there is one). model.check() compares every hook"
            )
    if block.attention is None:
        return
    off = _difference(run({"blocks.0.attn.hook_pattern": torch.clone}), post)
    if off > _tolerance(post):
        raise UnsupportedTowerError(
            f"attention computed from its parts differs by {off:.1%} of the stream from what block "
            f"0 computes, so the description of its attention or n_heads={cfg.n_heads} is wrong; "
            "want those of the model, or attention=None. model.check() compares every hook"
        )


def check_every_hook(
    model: Any, pixels: Tensor | None = None, layers: list[int] | None = None
) -> pd.DataFrame:
    """One row a hook: its value, and what becomes of the output when it is replaced.

    Args:
        model: a ``HookedViT`` in evaluation mode.
        pixels: ``[batch, channel, height, width]`` (None: one image of noise).
        layers: blocks to check (None: all).

    Returns:
        Indexed by hook, in the order in which they fire, with the columns ``shape``; ``added_off``:
        for what is a sum (``resid_mid``, ``resid_post``; prompt tokens left out), by how much the
        sum of the hooks in front of it differs, as a share; ``copied_off``: by how much the output
        differs from the plain pass's, as a share, when the value is replaced by its copy, so that
        all behind it is computed from it; ``reaches_output``: whether the output changes when the
        value does; and ``fine``.

    Raises:
        ValueError: the model is in training mode.
    """
    import pandas as pd

    if model.bare_model.training:
        raise ValueError("the model is in training mode, where dropout hides mistakes; want eval()")
    if pixels is None:
        noise = torch.randn(model.blank_pixels(1).shape, generator=torch.Generator().manual_seed(0))
        pixels = noise.to(model.cfg.device, model.cfg.dtype)
    chosen = set(range(model.cfg.n_layers) if layers is None else layers)
    names = [name for name in model.hook_dict if layer_of(name) in {None, *chosen}]
    rows = []
    with torch.no_grad():
        plain = model(pixels)
        cache = model.run_with_cache(pixels, names_filter=names, return_cache_object=False)[1]
        for name in names:
            copied = model.run_with_hooks(pixels, fwd_hooks=[(name, lambda v, hook: v.clone())])
            scaled = model.run_with_hooks(pixels, fwd_hooks=[(name, lambda v, hook: _tilted(v))])
            added_off = _added_off(model, name, cache)
            copied_off = _difference(copied, plain)
            reaches = _difference(scaled, plain) > 0
            limit = _tolerance(plain)
            fine = copied_off <= limit and reaches and not (added_off or 0) > limit
            shape = tuple(cache[name].shape)
            rows.append((name, shape, added_off, copied_off, reaches, fine))
    columns = ["hook", "shape", "added_off", "copied_off", "reaches_output", "fine"]
    return pd.DataFrame(rows, columns=columns).set_index("hook")


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def keep(value: Tensor) -> Tensor:
        seen[name] = value.clone()
        return value

    return keep


def _tilted(value: Tensor) -> Tensor:
    """The value with each entry changed in another proportion, so that no norm undoes it."""
    factors = torch.linspace(0.5, 1.5, value.numel(), device=value.device, dtype=value.dtype)
    return value * factors.view(value.shape)


def _unprompted(model: Any, *streams: Tensor) -> tuple[Tensor, ...]:
    """Streams without their prompt tokens: between two blocks others may take their place, so what
    leaves a block there need not be the sum of what it computed."""
    kept = [i for i, role in enumerate(model.cfg.tokens.roles) if role != "prompt"]
    return streams if len(kept) == len(model.cfg.tokens) else tuple(s[:, kept] for s in streams)


def _added_off(model: Any, name: str, cache: dict[str, Tensor]) -> float | None:
    parent, _, short = name.rpartition(".")
    parts = {
        "hook_resid_mid": ("hook_resid_pre", "hook_attn_out"),
        "hook_resid_post": ("hook_resid_mid", "hook_mlp_out"),
    }.get(short)
    if parts is None:
        return None
    one, other = (cache[f"{parent}.{part}"] for part in parts)
    if one.shape != other.shape:
        return torch.inf
    return _difference(*_unprompted(model, one + other, cache[name]))


def _difference(value: Tensor, wanted: Tensor) -> float:
    norm = wanted.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((value.double() - wanted.double()).norm() / norm)


def _tolerance(value: Tensor) -> float:
    """Rounding of 32-bit products on any device (TF32 too), or of 16-bit ones."""
    if torch.is_autocast_enabled(value.device.type) or value.dtype in _SIXTEEN_BIT:
        return 0.05
    return 3e-3


_SIXTEEN_BIT: tuple[Any, ...] = (torch.float16, torch.bfloat16)
