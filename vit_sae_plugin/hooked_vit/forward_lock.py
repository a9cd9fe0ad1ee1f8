"""One forward pass at a time through one wrapped model: module hooks are shared by all threads."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

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
