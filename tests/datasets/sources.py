"""One small source of every kind, all with the same images and labels."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datasets.odd_images import encoded
from vit_sae_plugin.datasets import (
    ArrayImages,
    FolderImages,
    HuggingFaceImages,
    ImageSource,
    ShapeScenes,
    WebDatasetImages,
)

N_IMAGES = 23
CLASSES = ["crane", "heron", "crane"]  # a bird, a bird, a machine


def picture(number: int) -> Image.Image:
    """A plain picture whose colour tells its number."""
    return Image.new("RGB", (8, 6), (10 * number, 255 - 10 * number, number))


def number_in(pixels: np.ndarray) -> int:
    return round(float(pixels[2, 0, 0]) * 255)


def label_of(number: int) -> int:
    return number * len(CLASSES) // N_IMAGES


def files() -> list[bytes]:
    return [encoded(picture(number), "PNG") for number in range(N_IMAGES)]


def write_folder(root: Path) -> None:
    for number, content in enumerate(files()):
        folder = root / f"class_{label_of(number)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(content)


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, BytesIO(content))


def write_shards(root: Path, n_in_shard: int = 8) -> str:
    """Returns the shards' pattern."""
    root.mkdir(parents=True, exist_ok=True)
    contents = files()
    for shard, start in enumerate(range(0, N_IMAGES, n_in_shard)):
        with tarfile.open(root / f"part-{shard}.tar", "w") as tar:
            for number in range(start, min(start + n_in_shard, N_IMAGES)):
                add_to_tar(tar, f"{number:03d}.png", contents[number])
                add_to_tar(tar, f"{number:03d}.cls", str(label_of(number)).encode())
    return str(root / "part-{0..2}.tar")


def hugging_face_rows():
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"photo": Image(), "bird": ClassLabel(num_classes=len(CLASSES))})
    rows = {
        "photo": [{"bytes": content, "path": None} for content in files()],
        "bird": [label_of(number) for number in range(N_IMAGES)],
    }
    return Dataset.from_dict(rows, features=features)


def arrays() -> np.ndarray:
    return np.stack([np.asarray(picture(number)) for number in range(N_IMAGES)])


def labels() -> list[int]:
    return [label_of(number) for number in range(N_IMAGES)]


def make_folder(tmp_path: Path) -> ImageSource:
    write_folder(tmp_path / "folder")
    return FolderImages(tmp_path / "folder", class_names=CLASSES)


def make_hugging_face(tmp_path: Path) -> ImageSource:
    return HuggingFaceImages(hugging_face_rows(), class_names=CLASSES)


def make_hugging_face_stream(tmp_path: Path) -> ImageSource:
    return HuggingFaceImages(
        hugging_face_rows().to_iterable_dataset(num_shards=3), class_names=CLASSES
    )


def make_shards(tmp_path: Path) -> ImageSource:
    return WebDatasetImages(write_shards(tmp_path / "shards"), class_names=CLASSES)


def make_arrays(tmp_path: Path) -> ImageSource:
    return ArrayImages(arrays(), labels=labels(), class_names=CLASSES)


def make_shapes(tmp_path: Path) -> ImageSource:
    return ShapeScenes(N_IMAGES, seed=1)


SAME_IMAGES: dict[str, Callable[[Path], ImageSource]] = {
    "folder": make_folder,
    "hugging face": make_hugging_face,
    "hugging face stream": make_hugging_face_stream,
    "webdataset": make_shards,
    "arrays": make_arrays,
}
EVERY_SOURCE = SAME_IMAGES | {"shapes": make_shapes}
