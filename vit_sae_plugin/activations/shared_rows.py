"""Rows for several SAEs at once: each batch by name, from one pass over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.activations.activations_store import ViTActivationsStore
from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.datasets import SkippedImages


class SharedRows(ABC, Iterator[dict[str, Tensor]]):
    """Batches of several kinds of rows, by name; who asks for the same name shares the memory.

    Where it stands is described as each of its stores alone would describe it, so a run that
    began with others can go on by itself, and the other way round.
    """

    stores: Mapping[str, RowStore]
    """Name → a store of these rows alone: what they are, and how wide. Taking a batch from one
    takes it for all."""

    @abstractmethod
    def __next__(self) -> dict[str, Float[Tensor, "rows d_in"]]:
        """The next batch of each kind, of the same number of rows."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain values from which ``load_state_dict`` goes on, here or in a store alone."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the rows that gave ``state`` were."""

    @abstractmethod
    def close(self) -> None:
        """As ``RowStore.close``."""


class StoresInStep(SharedRows):
    """Stores whose places are told alike, each with its own rows: one step of all at a time.

    Args:
        stores: name → store; those of one cache at several hooks, or a single one.
    """

    def __init__(self, stores: Mapping[str, RowStore]) -> None:
        self.stores = dict(stores)
        self._first = next(iter(self.stores.values()))

    @override
    def __next__(self) -> dict[str, Tensor]:
        return {name: next(store) for name, store in self.stores.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._first.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for store in self.stores.values():
            store.load_state_dict(state)

    @override
    def close(self) -> None:
        for store in self.stores.values():
            store.close()


class HooksOfOnePass(SharedRows):
    """Rows of several hooks of a model, each image running through it once.

    Args:
        store: reads all the hooks.
        hooks: name → hook, and the hook that a transcoder reconstructs from it or None.
    """

    def __init__(
        self, store: ViTActivationsStore, hooks: Mapping[str, tuple[str, str | None]]
    ) -> None:
        self.store = store
        self.stores = {name: _PartOfRows(self, name, *of) for name, of in hooks.items()}
        columns = {
            name: [store.columns[hook] for hook in of if hook is not None]
            for name, of in hooks.items()
        }
        whole = [*store.columns.values()]
        self._columns = {name: None if own == whole else own for name, own in columns.items()}

    @override
    def __next__(self) -> dict[str, Tensor]:
        batch = next(self.store)
        # a part is copied once for all who ask for it: products of strided rows are slower
        return {
            name: batch if own is None else torch.cat([batch[:, part] for part in own], dim=1)
            for name, own in self._columns.items()
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.store.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state)

    @override
    def close(self) -> None:
        self.store.close()


class _PartOfRows(RowStore):
    """One of the kinds of rows of a ``HooksOfOnePass``, as a store of these alone would be."""

    def __init__(
        self, shared: HooksOfOnePass, name: str, hook_name: str, hook_name_out: str | None
    ) -> None:
        self._shared, self._name = shared, name
        self._hooks = (hook_name, hook_name_out)
        columns = shared.store.columns
        self.d_in = sum(
            columns[hook].stop - columns[hook].start for hook in self._hooks if hook is not None
        )

    @property
    def skipped(self) -> SkippedImages:  # type: ignore[override]
        """The images that could not be used so far, by anyone."""
        return self._shared.store.skipped

    @skipped.setter
    def skipped(self, images: SkippedImages) -> None:
        self._shared.store.skipped = images

    @override
    def __next__(self) -> Tensor:
        return next(self._shared)[self._name]

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._shared.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shared.load_state_dict(state)

    @override
    def describe(self) -> dict[str, Any]:
        return self._shared.store.describe_part(*self._hooks)

    @override
    def fingerprint(self) -> dict[str, Any]:
        images = self._shared.store.images.fingerprint()
        return {"model": self.describe(), "images": images}

    @override
    def close(self) -> None:
        self._shared.close()
