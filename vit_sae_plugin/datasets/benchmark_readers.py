"""How the files of benchmark data sets are laid out; one reader a layout.

A reader takes the data set's folder and a split, and lists the images. What it can't find it says,
with the place where it is expected; ``benchmark_sets`` adds where it is to be had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vit_sae_plugin.datasets.folder_images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """The images of one split."""

    folder: Path
    """What ``paths`` are relative to."""
    paths: Sequence[str]
    labels: Sequence[int]
    class_names: Sequence[str]
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of each image: name → one value an image."""
    is_scanned: bool = False
    """The paths were read from the disk, so they need no checking."""


Reader = Callable[..., Listing]


class MissingFileError(FileNotFoundError):
    """A file or folder of a data set is not where it is expected."""


class DataSetLayoutError(ValueError):
    """A file of a data set isn't what it should be."""


def wanted(path: Path) -> Path:
    """``path``, if it exists."""
    if not path.exists():
        raise MissingFileError(f"{str(path)!r} is missing")
    return path


def check_files(listing: Listing) -> None:
    """Raise unless all images that a split file names lie in the data set's folder."""
    if listing.is_scanned:
        return
    strange = [path for path in listing.paths if os.path.normpath(path).startswith(("..", os.sep))]
    if strange:
        raise DataSetLayoutError(f"{strange[0]!r} lies outside {str(listing.folder)!r}")
    missing = [p for p in listing.paths if not os.path.lexists(os.path.join(listing.folder, p))]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(listing.paths)} images of the split are missing, the first is "
            f"{os.path.join(listing.folder, missing[0])!r}"
        )


def coop_split(images: str, split_file: str) -> Reader:
    """The JSON that CoOp ships: for each split, [path below ``images``, label, class name]."""

    def read(root: Path, split: str) -> Listing:
        path = wanted(root / split_file)
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))
            entries = [entry for some in splits.values() for entry in some]
            names = {int(label): str(name) for _, label, name in entries}
            chosen = [(str(image), int(label)) for image, label, _ in splits[split]]
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataSetLayoutError(
                f"{str(path)!r} isn't of the form {{'train': [[path, label, class name], …], …}} "
                f"({type(error).__name__}: {error})"
            ) from None
        if sorted(names) != list(range(len(names))):
            raise DataSetLayoutError(
                f"{str(path)!r} has labels from {min(names)} to {max(names)} for {len(names)} "
                "classes; want each from 0 on"
            )
        return Listing(
            wanted(root / images),
            [image for image, _ in chosen],
            [label for _, label in chosen],
            [names[label] for label in range(len(names))],
        )

    return read


def text_split(
    images: str,
    files: Mapping[str, str],
    class_and_path: Callable[[str], tuple[str, str]],
) -> Reader:
    """One text file a split, one image a line; classes in alphabetical order.

    Args:
        images: the folder of the images.
        files: split → file.
        class_and_path: what a line says: the class's name, and the image's path below ``images``.
    """

    def read(root: Path, split: str) -> Listing:
        said = {name: _lines(root / file) for name, file in files.items()}
        classes = sorted({class_and_path(line)[0] for lines in said.values() for line in lines})
        number = {name: label for label, name in enumerate(classes)}
        chosen = [class_and_path(line) for line in said[split]]
        paths = [path for _, path in chosen]
        return Listing(wanted(root / images), paths, [number[name] for name, _ in chosen], classes)

    return read


def aircraft(root: Path, split: str) -> Listing:
    """FGVC Aircraft's own files: ``variants.txt``, and "number class name" a line a split."""
    class_names = _lines(root / "variants.txt")
    number = {name: label for label, name in enumerate(class_names)}
    paths, labels = [], []
    file = root / f"images_variant_{split}.txt"
    for line in _lines(file):
        image, _, name = line.partition(" ")
        if name not in number:
            raise DataSetLayoutError(f"{str(file)!r} has the class {name!r}, unlike variants.txt")
        paths.append(f"{image}.jpg")
        labels.append(number[name])
    return Listing(wanted(root / "images"), paths, labels, class_names)


def imagenet(images: str, *, numbered: bool = False, some_classes: bool = False) -> Reader:
    """ImageNet's layout: a folder a class, called as in ``classnames.txt`` ("n01440764 tench").

    Args:
        images: the folder that holds them, with "{split}" for the split.
        numbered: the folders are called by the class's number (ImageNetV2).
        some_classes: only some classes have a folder (ImageNet-A and -R); labels count these.
    """

    def read(root: Path, split: str) -> Listing:
        folder = wanted(root / images.format(split="val" if split == "test" else split))
        names_file = root / "classnames.txt"
        if not names_file.exists() and (root.parent / "imagenet" / "classnames.txt").exists():
            names_file = root.parent / "imagenet" / "classnames.txt"
        classes = [line.split(" ", 1) for line in _lines(names_file)]
        folders = [str(i) if numbered else wnid for i, (wnid, *_) in enumerate(classes)]
        names = [" ".join(name) for _, *name in classes]
        if some_classes:
            here = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
            names = [name for name, own in zip(names, folders, strict=True) if own in here]
            folders = [own for own in folders if own in here]
        paths: list[str] = []
        labels: list[int] = []
        for label, own in enumerate(folders):
            files = sorted(os.listdir(wanted(folder / own)))
            images_of_class = [f for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES]
            paths += [f"{own}/{file}" for file in images_of_class]
            labels += [label] * len(images_of_class)
        return Listing(folder, paths, labels, names, is_scanned=True)

    return read


_SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}


def waterbirds(root: Path, split: str) -> Listing:
    """``metadata.csv`` of Sagawa et al. (2020): the bird is the class, the background the place.

    ``group`` is 2 · class + place: 0 land bird on land, 1 land bird on water, 2 water bird on land,
    3 water bird on water. The training groups are correlated, those of the other splits balanced.
    """
    import pandas as pd

    path = wanted(root / "metadata.csv")
    table = pd.read_csv(path)
    missing = {"img_filename", "y", "place", "split"} - set(table.columns)
    if missing:
        raise DataSetLayoutError(f"{str(path)!r} has no columns {sorted(missing)}")
    table = table[table["split"] == _SPLIT_NUMBERS[split]]
    return Listing(
        root,
        table["img_filename"].tolist(),
        table["y"].tolist(),
        ["landbird", "waterbird"],
        {
            "place": np.array(["land", "water"])[table["place"]],
            "group": (2 * table["y"] + table["place"]).to_numpy(),
        },
    )


def celeba(root: Path, split: str, attribute: str = "Blond_Hair") -> Listing:
    """CelebA's ``list_attr_celeba.txt`` and ``list_eval_partition.txt``; an attribute is the class.

    ``group`` is 2 · class + ``Male``; all 40 attributes are columns, 1 or 0.
    """
    import pandas as pd

    path = wanted(root / "list_attr_celeba.txt")
    table = pd.read_csv(path, sep=r"\s+", skiprows=1)
    if attribute not in table.columns or "Male" not in table.columns:
        raise DataSetLayoutError(
            f"{str(path)!r} has no attribute {attribute!r}; it has {', '.join(table.columns)}"
        )
    partition = pd.read_csv(
        wanted(root / "list_eval_partition.txt"), sep=r"\s+", header=None, index_col=0
    )
    table = table[(partition[1].reindex(table.index) == _SPLIT_NUMBERS[split]).to_numpy()]
    table = (table > 0).astype(int)
    name = attribute.replace("_", " ").lower()
    return Listing(
        wanted(root / "img_align_celeba"),
        [str(image) for image in table.index],
        table[attribute].tolist(),
        [f"not {name}", name],
        {
            **{column: table[column].to_numpy() for column in table.columns},
            "group": (2 * table[attribute] + table["Male"]).to_numpy(),
        },
    )


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold something."""
    lines = (line.strip() for line in wanted(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
