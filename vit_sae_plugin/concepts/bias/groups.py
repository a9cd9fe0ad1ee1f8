"""Which group each image belongs to: its class, and the value of an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from vit_sae_plugin.near_names import near_names

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource


@dataclass(frozen=True)
class Groups:
    """The groups of a source's images: each class's images with one value of an attribute."""

    attribute: str
    """Such as ``"place"`` in Waterbirds."""
    class_names: list[str]
    """Label index → name."""
    values: list[str]
    """The attribute's values; a group is ``label · len(values) + value``."""
    label: Int[np.ndarray, " images"]
    """Of each image of the source, in its order."""
    value: Int[np.ndarray, " images"]
    """Index into ``values``."""

    @classmethod
    def of(cls, images: ImageSource, attribute: str, values: Sequence[str] | None = None) -> Groups:
        """The groups by a column of ``images.labels_frame()``.

        Args:
            images: a labelled source that isn't a stream.
            attribute: the column.
            values: the values in the order to count them by, as found in other images; default:
                those found here, sorted.

        Raises:
            ValueError: there is no such column, or it says the same as the class; an image without
                class or value; a value that isn't among ``values``, or only one value.
        """
        if not images.class_names:
            raise ValueError(f"{images.name} has no classes; want labelled images")
        frame = images.labels_frame()
        if attribute not in frame:
            known = [name for name in frame if name not in ("id", "label", "class_name")]
            listed = ", ".join(near_names(attribute, known) or known)
            raise ValueError(
                f"attribute is {attribute!r}, which {images.name} doesn't know; "
                + (f"want {listed}" if known else "want a source that knows more than classes")
            )
        column = frame[attribute]
        if column.isna().any() or (frame["label"] < 0).any():
            raise ValueError(
                f"{int(column.isna().sum())} images of {images.name} have no {attribute} and "
                f"{int((frame['label'] < 0).sum())} no class; want both for each"
            )
        known = _values(column) if values is None else list(values)
        index = pd.Index(known).get_indexer(column.astype(str))
        if (index < 0).any():
            unknown = sorted(set(column.astype(str)[index < 0]))
            raise ValueError(
                f"{attribute} is {unknown[0]!r} in {images.name}; want one of {', '.join(known)}"
            )
        if len(known) < 2:
            raise ValueError(f"{attribute} is {known[0]!r} in all images; want two values or more")
        if (frame.groupby("label")[attribute].nunique() == 1).all():
            raise ValueError(
                f"each class of {images.name} has one {attribute} only, so the two can't be told "
                "apart; want images of a class with different values"
            )
        return cls(attribute, list(images.class_names), known, frame["label"].to_numpy(), index)

    @property
    def n_groups(self) -> int:
        """Number of groups, those without images too."""
        return len(self.class_names) * len(self.values)

    @property
    def group(self) -> Int[np.ndarray, " images"]:
        """The group of each image."""
        return self.label * len(self.values) + self.value

    def name(self, group: int) -> str:
        """Such as ``"landbird, water"``."""
        label, value = divmod(group, len(self.values))
        return f"{self.class_names[label]}, {self.values[value]}"

    def require_members(self, group: Int[np.ndarray, " images"], where: str) -> None:
        """Raise where a group has no image among these."""
        counts = np.bincount(group, minlength=self.n_groups)
        if (counts == 0).any():
            empty = [self.name(int(at)) for at in np.flatnonzero(counts == 0)]
            raise ValueError(
                f"{len(empty)} of {self.n_groups} groups have no image in {where}, among them "
                f"{empty[0]!r}; worst-group accuracy wants some of each: use more images"
            )


def _values(column: Any) -> list[str]:
    return [str(value) for value in sorted(column.unique())]
