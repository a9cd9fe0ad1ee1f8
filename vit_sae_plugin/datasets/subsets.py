"""Some images of a source: a few of each class, or those of half of the classes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from vit_sae_plugin.datasets.image_source import ImageRecord, ImageSource, fingerprint_of


class SelectedImages(ImageSource):
    """Images of a map-style source, in the order given.

    Args:
        source: where they come from.
        indices: which of its images.
        classes: the labels that count, in their new order: the first becomes 0. Images of other
            classes must not be among ``indices``. None: labels as they are.
        name: for reports.

    Raises:
        ValueError: an index or a label that the source doesn't have.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int] | np.ndarray,
        classes: Sequence[int] | None = None,
        name: str | None = None,
    ) -> None:
        if source.n_images is None:
            raise ValueError(f"{source.name} is a stream; want a source whose images have a number")
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        if (
            len(self.indices)
            and not 0 <= self.indices.min() <= self.indices.max() < source.n_images
        ):
            raise ValueError(
                f"indices run from {self.indices.min()} to {self.indices.max()}; "
                f"want 0 to {source.n_images - 1}, the images of {source.name}"
            )
        self.classes = None if classes is None else list(classes)
        self.n_images: int = len(self.indices)
        self.name = name or source.name
        self.class_names = source.class_names
        self.templates = source.templates
        self._labels = source.labels()[self.indices]
        if self.classes is not None:
            new = {label: number for number, label in enumerate(self.classes)}
            strange = sorted(set(self._labels.tolist()) - set(new))
            if strange:
                raise ValueError(f"images of the classes {strange} are chosen; want {self.classes}")
            self._labels = np.array([new[label] for label in self._labels.tolist()], dtype=np.int64)
            if source.class_names is not None:
                self.class_names = [source.class_names[label] for label in self.classes]

    def record(self, index: int) -> ImageRecord:
        if not 0 <= index < self.n_images:
            raise IndexError(
                f"index is {index}; want 0 to {self.n_images - 1}, those of {self.name}"
            )
        label = int(self._labels[index])
        record = self.source.record(int(self.indices[index]))
        return replace(record, index=index, label=label if label >= 0 else None)

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def labels_frame(self) -> pd.DataFrame:
        """The source's, of these images, with their new labels."""
        frame = self.source.labels_frame().iloc[self.indices].reset_index(drop=True)
        frame["label"] = self._labels
        return frame

    def class_half(self, half: str) -> list[int]:
        """The source's own halves, unless the classes are chosen ones."""
        return self.source.class_half(half) if self.classes is None else super().class_half(half)

    def fingerprint(self) -> str:
        """Over the source's, the choice and the new labels."""
        return fingerprint_of(
            ["selected", self.source.fingerprint(), self.indices.tobytes(), self._labels.tobytes()]
        )


def of_classes(source: ImageSource, classes: str) -> ImageSource:
    """The images of one half of the classes, renumbered from 0.

    Args:
        source: a map-style source with class names.
        classes: "base", "novel" (``ImageSource.class_half``), or "all": the source itself.

    Raises:
        ValueError: another word, or a source without class names.
    """
    if classes == "all":
        return source
    if not source.class_names:
        raise ValueError(
            f"{source.name} has no class names; want a source that has, for halves of its classes"
        )
    labels = source.class_half(classes)
    indices = np.flatnonzero(np.isin(source.labels(), labels))
    return SelectedImages(source, indices, labels, f"{source.name}-{classes}")


def few_shot(source: ImageSource, n_shots: int, seed: int = 0) -> SelectedImages:
    """``n_shots`` images of each class, drawn without replacement.

    As CoOp draws them: class after class in the order in which the source first shows them, with
    Python's ``random.sample``. Draw before choosing half of the classes, as CoOp does: which images
    of a class are drawn then doesn't depend on the half.

    Raises:
        ValueError: a class has fewer images, no image has a label, or ``n_shots`` is below 1.
    """
    return _draw(source, n_shots, random.Random(seed), f"{n_shots}-shot-seed-{seed}")


def few_shot_splits(
    train: ImageSource, val: ImageSource, n_shots: int, seed: int = 0
) -> tuple[SelectedImages, SelectedImages]:
    """``n_shots`` images of each class to train on and ``min(n_shots, 4)`` to choose by, as CoOp
    draws them: the second set with the generator that the first left behind."""
    generator = random.Random(seed)
    name = f"{n_shots}-shot-seed-{seed}"
    return (
        _draw(train, n_shots, generator, name),
        _draw(val, min(n_shots, 4), generator, name),
    )


def _draw(source: ImageSource, n_shots: int, generator: random.Random, name: str) -> SelectedImages:
    if n_shots < 1:
        raise ValueError(f"n_shots is {n_shots}; want 1 or more")
    of_label: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(source.labels().tolist()):
        if label >= 0:
            of_label[label].append(index)
    if not of_label:
        raise ValueError(
            f"no image of {source.name} has a label; want labelled images, {n_shots} or more a "
            "class"
        )
    label, fewest = min(((label, len(of_label[label])) for label in of_label), key=lambda x: x[1])
    if fewest < n_shots:
        shown = label if source.class_names is None else repr(source.class_names[label])
        raise ValueError(
            f"n_shots is {n_shots}, but class {shown} of {source.name} has {fewest} images; want "
            f"at most {fewest} shots"
        )
    chosen = [index for some in of_label.values() for index in generator.sample(some, n_shots)]
    return SelectedImages(source, chosen, name=f"{source.name}-{name}")
