"""Which concepts each image shows: its class, or all that is known of a shape scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.evaluation.concept_masks import Concept
from vit_sae_plugin.near_names import near_names

COLORED_SHAPES = "color and shape"


class ImageConcepts:
    """The concepts of a source's images, read image by image.

    Of shape scenes these are the colours, shapes and coloured shapes of all their objects; of other
    labelled sources the class. Two classes of one name are kept apart by their number.
    """

    def __init__(self, images: ImageSource):
        self._scene = getattr(images, "scene", None)
        names = list(images.class_names or ())
        count = Counter(names)
        self._classes = [
            ("class", name if count[name] == 1 else f"{name} [{label}]")
            for label, name in enumerate(names)
        ]

    @property
    def class_names(self) -> list[str]:
        """What a group's classes may be called."""
        return [name for _, name in self._classes]

    def of_image(self, index: int, label: int) -> set[Concept]:
        """The concepts of one image; none where there is no label (−1)."""
        if self._scene is not None:
            return {
                concept
                for thing in self._scene(index).objects
                for concept in (
                    ("color", thing.color),
                    ("shape", thing.shape),
                    (COLORED_SHAPES, f"{thing.color} {thing.shape}"),
                )
            }
        if label < 0:
            return set()
        return {self._classes[label] if label < len(self._classes) else ("class", str(label))}

    def sibling_groups(self) -> dict[str, list[str]] | None:
        """The coloured shapes of one colour, and those of one shape; None of other images."""
        if self._scene is None:
            return None
        from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES

        by_color = {color: [f"{color} {shape}" for shape in SHAPES] for color in COLORS}
        by_shape = {shape: [f"{color} {shape}" for color in COLORS] for shape in SHAPES}
        return by_color | by_shape


def presence(
    of_images: Sequence[Iterable[Concept]], min_images: int
) -> tuple[list[Concept], Bool[Tensor, "images concepts"]]:
    """Which image shows which concept, of concepts on at least ``min_images`` images of each half.

    Halves are every other image, as ``first_half`` has them; no concept is on all of a half's.
    """
    shown = Counter(concept for concepts in of_images for concept in set(concepts))
    concepts = sorted(shown)
    column = {concept: at for at, concept in enumerate(concepts)}
    table = torch.zeros(len(of_images), len(concepts), dtype=torch.bool)
    for row, some in enumerate(of_images):
        table[row, [column[concept] for concept in some]] = True
    halves = (table[0::2], table[1::2])
    enough = torch.ones(len(concepts), dtype=torch.bool)
    for half in halves:
        enough &= (half.sum(0) >= min_images) & (half.sum(0) < len(half))
    kept = enough.nonzero().flatten()
    return [concepts[at] for at in kept.tolist()], table[:, kept]


def read_groups(path: str | Path) -> dict[str, list[str]]:
    """Groups of sibling classes from a CSV file with the columns ``group`` and ``class``.

    Raises:
        ValueError: no such file, other columns, or no row.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; want a CSV file of sibling classes") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None
    if not {"group", "class"} <= set(table.columns) or len(table) == 0:
        raise ValueError(
            f"{path} has {len(table)} rows and the columns {', '.join(table.columns)}; want rows "
            "under 'group' and 'class'"
        )
    return {str(name): list(part["class"]) for name, part in table.groupby("group", sort=False)}


def check_groups(groups: Mapping[str, Sequence[str]], known: Iterable[str]) -> None:
    """Raise unless every group has two classes or more, all of them known.

    Raises:
        ValueError: otherwise, with near names.
    """
    known = set(known)
    if not groups:
        raise ValueError("there are no groups; want at least one with two classes")
    for name, members in groups.items():
        if len(set(members)) < 2:
            raise ValueError(
                f"the group {name!r} has {len(set(members))} members; want 2 or more classes"
            )
        for member in members:
            if member not in known:
                near = near_names(member, sorted(known), n=3) or sorted(known)[:3]
                raise ValueError(
                    f"the group {name!r} has a class {member!r}, which the images don't have; "
                    f"they have {len(known)}, such as {', '.join(near) or 'none'}"
                )
