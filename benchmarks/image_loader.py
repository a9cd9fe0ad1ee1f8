"""How much `ImageLoader` costs on top of Pillow and the model's preprocessing.

Peer: a bare torch `DataLoader` that opens each file with Pillow and applies the same preprocessing
(open_clip's, to 224 × 224), in as many workers. Both read the same JPEG files of 500 × 375, taking
turns in one run; ratios are of the fastest passes. Processor time is the steadier where other
programs run. A
stream adds the cost of reading shards in the main process and sending the files' bytes to workers.

    python benchmarks/image_loader.py --n-images 400 --n-workers 1
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from vit_sae_plugin.datasets import FolderImages, ImageLoader, WebDatasetImages

WIDTH, HEIGHT = 500, 375


class PlainImages(Dataset):
    """What one writes by hand."""

    def __init__(self, paths: list[Path], preprocess: Callable[[Image.Image], torch.Tensor]):
        self.paths = paths
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(Image.open(self.paths[index]))


def write_photos(folder: Path, n_images: int) -> list[Path]:
    """Crops of two photographs, each scaled to 500 × 375."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    paths = []
    for number in range(n_images):
        photo = photos[number % 2]
        width = int(random.integers(400, photo.height * WIDTH // HEIGHT))
        height = width * HEIGHT // WIDTH
        left = int(random.integers(0, photo.width - width + 1))
        top = int(random.integers(0, photo.height - height + 1))
        crop = photo.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT))
        paths.append(folder / f"{number:05d}.jpg")
        crop.save(paths[-1], quality=90)
    return paths


def write_shard(path: Path, photos: list[Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for photo in photos:
            content = photo.read_bytes()
            entry = tarfile.TarInfo(photo.name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def seconds_a_pass(batches: Iterable) -> tuple[float, float]:
    """Wall time and processor time (workers' included) of one pass."""
    before, started = os.times(), time.perf_counter()
    for _ in batches:
        pass
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[:4]) - sum(before[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-images", type=int, default=400)
    parser.add_argument("--n-workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--n-rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = image_transform(224, is_train=False)
    with TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), args.n_images)
        shard = Path(folder) / "photos.tar"
        write_shard(shard, photos)
        options = {"batch_size_images": args.batch_size, "n_workers": args.n_workers}
        loaders: dict[str, Iterable] = {
            "bare DataLoader": DataLoader(
                PlainImages(photos, preprocess),  # type: ignore[arg-type]
                batch_size=args.batch_size,
                num_workers=args.n_workers,
            ),
            "ImageLoader, folder": ImageLoader(FolderImages(folder), preprocess, **options),
            "ImageLoader, shards": ImageLoader(WebDatasetImages(str(shard)), preprocess, **options),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
        for _ in range(args.n_rounds):
            for name, loader in loaders.items():
                seconds[name].append(seconds_a_pass(loader))
    wall, processor = ({n: min(t[i] for t in seconds[n]) for n in seconds} for i in (0, 1))
    bare = "bare DataLoader"
    for name in loaders:
        rate = args.n_images / wall[name] / max(args.n_workers, 1)
        print(
            f"{name}: {rate:.0f} images/s a process, "
            f"{wall[name] / wall[bare]:.3f} x the bare wall time, "
            f"{processor[name] / processor[bare]:.3f} x its processor time"
        )


if __name__ == "__main__":
    main()
