"""One forward pass of the wrapped model, with module hooks attached for its length only.

``ForwardRun`` attaches and detaches; ``Scope`` is a run seen from one part of the model. What would
spoil it is kept away: other threads (``forward_lock``), compiled parts, which ignore later hooks
(``eager_if_compiled``), and gradient checkpointing, which runs blocks again without them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_current = threading.local()


class StopForward(Exception):  # noqa: N818 (not an error: how a forward pass ends early)
    """Carries the residual stream out of the model when a forward pass ends early."""

    def __init__(self, run: ForwardRun, residual: Tensor) -> None:
        super().__init__("the forward pass ended at stop_at_layer")
        self.run = run
        self.residual = residual


class ForwardRun:
    """Attaches to modules, offers values to live hook points, and detaches again.

    A module hook acts only in the thread and the (innermost) forward pass that attached it, so
    that the model may be called from within a hook, and from two threads at once.

    Args:
        bare_model: the wrapped model; modules are looked up by path, now.
        points: the live hook points by name, those beyond the stop left out.
    """

    def __init__(
        self, bare_model: nn.Module, points: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> None:
        self.bare_model = bare_model
        self.points = points
        self._handles: list[Any] = []
        self._fired: set[str] = set()

    def __enter__(self) -> ForwardRun:
        self._outer = getattr(_current, "run", None)
        _current.run = self
        return self

    def __exit__(self, *_: object) -> None:
        _current.run = self._outer
        for handle in reversed(self._handles):
            handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, calls of the model's modules are not seen by this run's module hooks."""
        before, _current.run = _current.run, None
        try:
            yield
        finally:
            _current.run = before

    def live(self, *names: str) -> bool:
        """Whether any of these hook points is in use."""
        return any(name in self.points for name in names)

    def missed(self) -> list[str]:
        """Live points that this forward pass has not reached."""
        return [name for name in self.points if name not in self._fired]

    def fire(self, name: str, value: Tensor) -> Tensor:
        """Offer ``value`` to the hook point, if it is live, and return what to use instead of it.

        Raises:
            RuntimeError: the point fires a second time: the model uses a module twice.
            ValueError: a hook returned another shape.
        """
        point = self.points.get(name)
        if point is None:
            return value
        if name in self._fired:
            raise RuntimeError(
                f"hook {name!r} fires a second time in one forward pass, since the model calls one "
                "module more than once; want a module for each call"
            )
        self._fired.add(name)
        with self.paused():
            result = point(value)
        if not isinstance(result, Tensor) or result.shape != value.shape:
            seen = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"a hook at {name!r} returned {seen}; want a tensor of shape "
                f"{tuple(value.shape)}, or None to leave the value (or its edit in place)"
            )
        return result

    def fire_checked(self, name: str, value: Tensor) -> tuple[Tensor, bool]:
        """As ``fire``; also says whether a hook changed the value, in place or by returning."""
        if name not in self.points:
            return value, False
        if value.is_inference():
            # Inference tensors count no versions, so an edit in place shows only by comparison.
            before = value.clone()
            result = self.fire(name, value)
            return result, result is not value or not torch.equal(before, value)
        version = value._version
        result = self.fire(name, value)
        return result, result is not value or value._version != version

    def before(self, path: str, replace: Callable[[Tensor], Tensor | None]) -> None:
        """Show a module's first tensor input to ``replace``; what that returns takes its place."""

        def hook(_: nn.Module, args: tuple, kwargs: dict) -> Any:
            if not self.is_current():
                return None
            key = _first_tensor(args, kwargs)
            value = args[key] if isinstance(key, int) else kwargs[key]
            new = replace(value)
            if new is None or new is value:
                return None
            if isinstance(key, int):
                return (*args[:key], new, *args[key + 1 :]), kwargs
            return args, {**kwargs, key: new}

        module = self.bare_model.get_submodule(path)
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, path: str, replace: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        """Show a module's (first) output and input tensor to ``replace``; its result replaces the
        output."""

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            if not self.is_current():
                return None
            key = _first_tensor(args, kwargs)
            given = args[key] if isinstance(key, int) else kwargs[key]
            value = output[0] if isinstance(output, tuple) else output
            new = replace(value, given)
            if new is None or new is value:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        module = self.bare_model.get_submodule(path)
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def bypass(self, path: str, replace: Callable[[Tensor], Tensor], as_tuple: bool) -> None:
        """Let ``replace`` stand in for a module: it is called with the module's first tensor input
        and gives its output; the module itself does not run.

        Args:
            path: the module.
            replace: from its input to its output.
            as_tuple: whether the module returns a tuple, of which this is the first item.
        """
        module = self.bare_model.get_submodule(path)
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.is_current():
                return own(*args, **kwargs)
            key = _first_tensor(args, kwargs)
            value = replace(args[key] if isinstance(key, int) else kwargs[key])
            return (value,) if as_tuple else value

        self._handles.append(_OtherForward(module, forward))

    def within(self, path: str, context: Callable[[], AbstractContextManager]) -> None:
        """Let a module run within a context, made anew for each call."""
        module = self.bare_model.get_submodule(path)
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.is_current():
                return own(*args, **kwargs)
            with context():
                return own(*args, **kwargs)

        self._handles.append(_OtherForward(module, forward))

    def is_current(self) -> bool:
        """Whether what happens now, in this thread, belongs to this pass (and not to a hook)."""
        return getattr(_current, "run", None) is self


class _OtherForward:
    """Another ``forward`` on one module, until it is removed; as a hook's handle."""

    def __init__(self, module: nn.Module, forward: Callable) -> None:
        self.module = module
        self.before = module.__dict__.get("forward")
        module.forward = forward  # type: ignore[method-assign]

    def remove(self) -> None:
        if self.before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self.before  # type: ignore[method-assign]


def _first_tensor(args: tuple, kwargs: dict) -> int | str:
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            return index
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return key
    raise RuntimeError("a hooked module was called without a tensor argument; want one")


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


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def forward_lock(model: nn.Module) -> threading.RLock:
    """The lock of a bare model, shared by everything that wraps it.

    Without it a thread may attach hooks to a module while another one walks that module's hooks.
    The same thread may take it again, so a hook may run the model. Kept here, and not in the
    model, so that models can be copied and pickled.
    """
    with _guard:
        return _locks.setdefault(model, threading.RLock())


def eager_if_compiled(model: nn.Module) -> AbstractContextManager:
    """A context in which compiled parts run uncompiled: compiled code ignores later hooks."""
    for module in model.modules():
        if module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule":
            return torch.compiler.set_stance("force_eager")
    return nullcontext()


def refuse_checkpointing(model: nn.Module) -> None:
    """Gradient checkpointing runs blocks again in the backward pass, then without hooks.

    Raises:
        RuntimeError: it is turned on and gradients are being recorded.
    """
    if not torch.is_grad_enabled():
        return
    for name, module in model.named_modules():
        flags = (module.__dict__.get(f"{word}_checkpointing") for word in ("grad", "gradient"))
        if any(flags):
            raise RuntimeError(
                f"gradient checkpointing is on in {name or type(model).__name__!r}, whose backward "
                "pass would run its blocks again without the hooks; want it off, or "
                "torch.no_grad()"
            )
