"""Ways of running a model in which module hooks would be lost: avoided, or refused."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


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
                f"Gradient checkpointing is on in {name or type(model).__name__!r}: the backward "
                "pass would run its blocks again without the hooks. Turn it off, or work under "
                "torch.no_grad()."
            )
