"""A list that shows itself in a notebook."""

from __future__ import annotations

from typing import Any, TypeVar

_T = TypeVar("_T")


class ShownList(list[_T]):
    """A list of objects that show themselves; so do the list and its slices, side by side."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return ShownList(found) if isinstance(key, slice) else found

    def _repr_html_(self) -> str:
        shown = (one._repr_html_() for one in self)  # type: ignore[attr-defined]
        return "".join(f'<div style="display:inline-block">{one}</div>' for one in shown)
