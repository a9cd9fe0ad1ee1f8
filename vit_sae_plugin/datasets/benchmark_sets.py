"""The benchmark data sets of the adaptation papers, by name; a new one is one entry of a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vit_sae_plugin.datasets.benchmark_readers import (
    DataSetLayoutError,
    MissingFileError,
    Reader,
    aircraft,
    celeba,
    check_files,
    coop_split,
    imagenet,
    text_split,
    wanted,
    waterbirds,
)
from vit_sae_plugin.datasets.image_decoding import DEFAULT_LIMITS, DecodingLimits
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
    fingerprint_of,
    printable_id,
    valid_text,
)

_COOP = "the split file from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
_COOP_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class BenchmarkSet:
    """One data set."""

    title: str
    folder: str
    """What CoOp calls its folder."""
    read: Reader
    home: str
    """Where it is to be had."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """CoOp's zero-shot prompt."""
    splits: tuple[str, ...] = _COOP_SPLITS
    official: Reader | None = None
    """Reader of its authors' own splits, where ``read`` takes CoOp's."""
    official_splits: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Further arguments of ``read``."""

    def reader(self, splits: str) -> tuple[Reader, tuple[str, ...]]:
        """The reader of these splits, "coop" or "official", and what they are called."""
        if splits not in ("coop", "official"):
            raise ValueError(f"splits is {splits!r}; want 'coop' or 'official'")
        if splits == "coop" or not self.home.endswith(_COOP):
            return self.read, self.splits
        if self.official is None:
            raise ValueError(f"splits is 'official'; {self.title} can be read with 'coop' only")
        return self.official, self.official_splits


def _before_slash(line: str) -> tuple[str, str]:
    return line.partition("/")[0], line


def _food_line(line: str) -> tuple[str, str]:
    return line.partition("/")[0], f"{line}.jpg"


def _pets_line(line: str) -> tuple[str, str]:
    image = line.split()[0]  # "Abyssinian_100 1 1 1"
    return image.rpartition("_")[0], f"{image}.jpg"


BENCHMARK_SETS: dict[str, BenchmarkSet] = {
    "imagenet": BenchmarkSet(
        "ImageNet",
        "imagenet",
        imagenet("images/{split}"),
        "https://www.image-net.org; classnames.txt is CoOp's",
        splits=("train", "test"),
    ),
    "caltech101": BenchmarkSet(
        "Caltech101",
        "caltech-101",
        coop_split("101_ObjectCategories", "split_zhou_Caltech101.json"),
        f"https://data.caltech.edu/records/mzrjq-6wc02; {_COOP}",
    ),
    "pets": BenchmarkSet(
        "Oxford Pets",
        "oxford_pets",
        coop_split("images", "split_zhou_OxfordPets.json"),
        f"https://www.robots.ox.ac.uk/~vgg/data/pets/; {_COOP}",
        ("a photo of a {}, a type of pet.",),
        official=text_split(
            "images",
            {"train": "annotations/trainval.txt", "test": "annotations/test.txt"},
            _pets_line,
        ),
        official_splits=("train", "test"),
    ),
    "cars": BenchmarkSet(
        "Stanford Cars",
        "stanford_cars",
        coop_split("", "split_zhou_StanfordCars.json"),
        f"https://ai.stanford.edu/~jkrause/cars/car_dataset.html; {_COOP}",
    ),
    "flowers102": BenchmarkSet(
        "Flowers102",
        "oxford_flowers",
        coop_split("jpg", "split_zhou_OxfordFlowers.json"),
        f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/; {_COOP}",
        ("a photo of a {}, a type of flower.",),
    ),
    "food101": BenchmarkSet(
        "Food101",
        "food-101",
        coop_split("images", "split_zhou_Food101.json"),
        f"https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/; {_COOP}",
        ("a photo of {}, a type of food.",),
        official=text_split(
            "images", {"train": "meta/train.txt", "test": "meta/test.txt"}, _food_line
        ),
        official_splits=("train", "test"),
    ),
    "aircraft": BenchmarkSet(
        "FGVC Aircraft",
        "fgvc_aircraft",
        aircraft,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        ("a photo of a {}, a type of aircraft.",),
    ),
    "sun397": BenchmarkSet(
        "SUN397",
        "sun397",
        coop_split("SUN397", "split_zhou_SUN397.json"),
        f"https://vision.princeton.edu/projects/2010/SUN/; {_COOP}",
    ),
    "dtd": BenchmarkSet(
        "DTD",
        "dtd",
        coop_split("images", "split_zhou_DescribableTextures.json"),
        f"https://www.robots.ox.ac.uk/~vgg/data/dtd/; {_COOP}",
        ("{} texture.",),
        official=text_split(
            "images", {split: f"labels/{split}1.txt" for split in _COOP_SPLITS}, _before_slash
        ),
        official_splits=_COOP_SPLITS,
    ),
    "eurosat": BenchmarkSet(
        "EuroSAT",
        "eurosat",
        coop_split("2750", "split_zhou_EuroSAT.json"),
        f"https://github.com/phelber/EuroSAT; {_COOP}",
        ("a centered satellite photo of {}.",),
    ),
    "ucf101": BenchmarkSet(
        "UCF101",
        "ucf101",
        coop_split("UCF-101-midframes", "split_zhou_UCF101.json"),
        f"https://www.crcv.ucf.edu/data/UCF101.php (CoOp ships the middle frames); {_COOP}",
        ("a photo of a person doing {}.",),
    ),
    "imagenet_v2": BenchmarkSet(
        "ImageNetV2",
        "imagenetv2",
        imagenet("imagenetv2-matched-frequency-format-val", numbered=True),
        "https://github.com/modestyachts/ImageNetV2; classnames.txt is CoOp's",
        splits=("test",),
    ),
    "imagenet_sketch": BenchmarkSet(
        "ImageNet-Sketch",
        "imagenet-sketch",
        imagenet("images"),
        "https://github.com/HaohanWang/ImageNet-Sketch; classnames.txt is CoOp's",
        splits=("test",),
    ),
    "imagenet_a": BenchmarkSet(
        "ImageNet-A",
        "imagenet-adversarial",
        imagenet("imagenet-a", some_classes=True),
        "https://github.com/hendrycks/natural-adv-examples; classnames.txt is CoOp's",
        splits=("test",),
    ),
    "imagenet_r": BenchmarkSet(
        "ImageNet-R",
        "imagenet-rendition",
        imagenet("imagenet-r", some_classes=True),
        "https://github.com/hendrycks/imagenet-r; classnames.txt is CoOp's",
        splits=("test",),
    ),
    "waterbirds": BenchmarkSet(
        "Waterbirds",
        "waterbirds",
        waterbirds,
        "https://github.com/kohpangwei/group_DRO",
    ),
    "celeba": BenchmarkSet(
        "CelebA",
        "celeba",
        celeba,
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        ("a photo of a person with {}.",),
        options=("attribute",),
    ),
}
"""The benchmark data sets by name; a new one is an entry here."""


class BenchmarkImages(ImageSource):
    """One split of a benchmark data set, from the files that its site and CoOp ship.

    Args:
        data_set: a name of ``BENCHMARK_SETS``.
        path: its folder, or the folder that holds it under the name that CoOp gives it.
        split: "train", "val" or "test", where there is one.
        splits: whose splits: "coop", or "official" for the authors' own. Where CoOp has none, both
            are the same.
        limits: sizes beyond which an image is refused.
        **options: of the data set: ``attribute`` of CelebA, the one that is the class.

    Raises:
        FileNotFoundError: a folder, a file or images that the split names are missing; says where
            they are expected and where they are to be had.
        ValueError: no such data set, split or option, or a file that is of another form.
    """

    def __init__(
        self,
        data_set: str,
        path: str | Path,
        *,
        split: str = "",
        splits: str = "coop",
        limits: DecodingLimits = DEFAULT_LIMITS,
        **options: Any,
    ) -> None:
        if data_set not in BENCHMARK_SETS:
            raise ValueError(f"data_set is {data_set!r}; want one of {', '.join(BENCHMARK_SETS)}")
        entry = BENCHMARK_SETS[data_set]
        read, known = entry.reader(splits)
        split = split or known[0]
        if split not in known:
            raise ValueError(f"split is {split!r}; want one of {entry.title}: {', '.join(known)}")
        strange = sorted(set(options) - set(entry.options))
        if strange:
            raise ValueError(f"{entry.title} has no option {strange[0]!r}")
        root = Path(os.path.abspath(path))
        if (root / entry.folder).is_dir():
            root = root / entry.folder
        try:
            listing = read(wanted(root), split, **options)
            check_files(listing)
        except (MissingFileError, DataSetLayoutError) as error:
            raise type(error)(
                f"{entry.title}: {error}; the data set is to be had from {entry.home}"
            ) from None
        if not listing.paths:
            raise NoReadableImagesError(
                f"{entry.title}: there are no images in {str(listing.folder)!r}; want those of "
                f"{split}"
            )
        self.limits = limits
        self.name = f"{data_set}-{split}"
        self.templates = entry.templates
        self.class_names = [valid_text(name.replace("_", " ")) for name in listing.class_names]
        self.n_images: int = len(listing.paths)
        self._folder = str(listing.folder)
        self._paths = np.array(listing.paths, dtype=object)
        self._labels = np.array(listing.labels, dtype=np.int64)
        self._columns: Mapping[str, Any] = listing.columns

    def record(self, index: int) -> ImageRecord:
        if not 0 <= index < self.n_images:
            raise IndexError(
                f"index is {index}; want 0 to {self.n_images - 1}, those of {self.name}"
            )
        path = self._paths[index]
        return ImageRecord(
            index=index,
            id=printable_id(path),
            label=int(self._labels[index]),
            content=os.path.join(self._folder, path),
            limits=self.limits,
        )

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def labels_frame(self) -> pd.DataFrame:
        """With the set's own columns, such as ``group``."""
        return super().labels_frame().assign(**self._columns)

    def fingerprint(self) -> str:
        """Over paths, labels and file sizes."""

        def parts() -> Iterator[str]:
            yield self.name
            for path, label in zip(self._paths, self._labels, strict=True):
                yield f"{path} {label} {os.path.getsize(os.path.join(self._folder, path))}"

        return fingerprint_of(parts())
