"""A forward pass seen from one part of the model: hook names and module paths relative to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.forward_run import ForwardRun


@dataclass(frozen=True)
class Scope:
    """Forwards to the run with prefixes put in front; two empty prefixes are the whole model."""

    run: ForwardRun
    name_prefix: str = ""
    path_prefix: str = ""

    def _path(self, path: str) -> str:
        return ".".join(part for part in (self.path_prefix, path) if part)

    def module(self, path: str) -> nn.Module:
        return self.run.bare_model.get_submodule(self._path(path))

    def live(self, *names: str) -> bool:
        return any(self.name_prefix + name in self.run.points for name in names)

    def fire(self, name: str, value: Tensor) -> Tensor:
        return self.run.fire(self.name_prefix + name, value)

    def fire_checked(self, name: str, value: Tensor) -> tuple[Tensor, bool]:
        return self.run.fire_checked(self.name_prefix + name, value)

    def before(self, path: str, replace: Callable[[Tensor], Tensor | None]) -> None:
        self.run.before(self._path(path), replace)

    def within(self, path: str, context: Callable[[], AbstractContextManager]) -> None:
        self.run.within(self._path(path), context)

    def after(self, path: str, replace: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        self.run.after(self._path(path), replace)
