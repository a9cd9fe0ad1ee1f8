"""TransformerLens's ``HookedRootModule``, made strict: the one file that depends on that class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from vit_sae_plugin.hooked_vit.hook_names import (
    WHOLE_PASS,
    NamesFilter,
    Reach,
    require_names,
    select_names,
)

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable]]


class StrictHookedRoot(HookedRootModule):
    """Adds to ``HookedRootModule``: only its own hook tree is walked, never the wrapped model's
    modules; unknown and unreached names are errors; caches are ``ActivationCache`` objects."""

    cfg: Any
    missing_hooks: dict[str, str]

    def hook_tree(self) -> list[tuple[str, nn.Module]]:
        """The sub-modules that belong to the hook tree, by name."""
        raise TypeError(f"{type(self).__name__} has no hook_tree(); want its modules by name")

    def setup(self) -> None:
        """List hook points anew. Called again whenever an SAE is put in place of one."""
        self.mod_dict = dict(self.hook_tree())
        self.hook_dict = {n: m for n, m in self.mod_dict.items() if isinstance(m, HookPoint)}
        for name, module in self.mod_dict.items():
            module.name = name  # type: ignore[assignment]

    def add_hook(
        self, name: str | Callable[[str], bool], hook: Callable, *args: Any, **kw: Any
    ) -> None:  # type: ignore[override]
        """As in TransformerLens; raises ``HookNameError`` for a name that does not exist."""
        self._check_hook_names([name])
        super().add_hook(name, hook, *args, **kw)

    def _enable_hook(self, name: str | Callable, hook: Callable, dir: Any) -> None:
        self._check_hook_names([name])
        super()._enable_hook(name, hook, dir)

    def _check_hook_names(
        self, names: Sequence[str | Callable[[str], bool]], reach: Reach = WHOLE_PASS
    ) -> None:
        wanted = [name for name in names if isinstance(name, str)]
        require_names(wanted, self.hook_dict, reach, self.missing_hooks)

    def resolve_reach(
        self, start_at_layer: int | None = None, stop_at_layer: int | None = None
    ) -> Reach:
        """The blocks to run; negative layers count from the end, as in TransformerLens.

        Raises:
            ValueError: there is no such block, or the pass stops in front of where it starts.
        """
        start = self._resolve_layer("start_at_layer", start_at_layer)
        stop = self._resolve_layer("stop_at_layer", stop_at_layer)
        if start is not None and stop is not None and stop < start:
            raise ValueError(
                f"stop_at_layer is {stop_at_layer} and start_at_layer {start_at_layer}; want a "
                "stop that is not in front of the start"
            )
        return Reach(start, stop)

    def _resolve_layer(self, argument: str, layer: int | None) -> int | None:
        if layer is None:
            return None
        n_layers = self.cfg.n_layers
        resolved = layer + n_layers if layer < 0 else layer
        if not 0 <= resolved <= n_layers:
            raise ValueError(
                f"{argument} is {layer}, but the model has {n_layers} blocks; want 0 (in front of "
                f"the first) to {n_layers} (after the last), or None"
            )
        return resolved

    def _reach_of(self, kwargs: dict[str, Any]) -> Reach:
        return self.resolve_reach(kwargs.get("start_at_layer"), kwargs.get("stop_at_layer"))

    def run_with_hooks(  # type: ignore[override]
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Run with temporary hooks ``(name or function of names, hook)``, as in TransformerLens.

        Raises:
            HookNameError: a named hook does not exist, or is not reached.
        """
        reach = self._reach_of(model_kwargs)
        self._check_hook_names([name for name, _ in (*fwd_hooks, *bwd_hooks)], reach)
        return super().run_with_hooks(
            *model_args,
            fwd_hooks=list(fwd_hooks),
            bwd_hooks=list(bwd_hooks),
            reset_hooks_end=reset_hooks_end,
            clear_contexts=clear_contexts,
            **model_kwargs,
        )

    def run_with_cache(  # type: ignore[override]
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Run and keep activations.

        Args:
            model_args: the pixels; a residual stream, with ``start_at_layer``.
            names_filter: a hook name, a list, set or other collection of names, a function from
                name to bool, or None for every hook but ``attn.hook_result`` (which
                ``cfg.use_attn_result = True`` adds). The cache holds exactly these.
            device: where the cache is kept (None: where the values are).
            remove_batch_dim: drop the batch axis of a batch of one.
            incl_bwd: also run ``backward`` and keep gradients as ``name_grad``; the output must
                be a single number.
            return_cache_object: False for a plain dict.
            kwargs: ``start_at_layer``, ``stop_at_layer`` and what else ``forward`` and
                TransformerLens's ``run_with_cache`` accept (``pos_slice``, ``reset_hooks_end``, …).

        Returns:
            The output (the residual stream, with ``stop_at_layer``) and the cache.

        Raises:
            HookNameError: a name does not exist, or is not reached.
            TypeError: ``names_filter`` is none of the above.
        """
        reach = self._reach_of(kwargs)
        names = select_names(names_filter, self.hook_dict, reach, self.missing_hooks)
        if names_filter is None and not self.cfg.use_attn_result:
            names = [name for name in names if not name.endswith(".hook_result")]
        output, cache = super().run_with_cache(
            *model_args,
            names_filter=set(names).__contains__,
            device=None if device is None else torch.device(device),
            remove_batch_dim=remove_batch_dim,
            incl_bwd=incl_bwd,
            **kwargs,
        )
        if return_cache_object:
            cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return output, cache
