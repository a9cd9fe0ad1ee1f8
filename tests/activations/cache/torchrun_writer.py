"""What `torchrun` starts in the test: each rank writes shards of one cache."""

import os
import sys
from pathlib import Path

import torch

from tests.activations.cache.killing_images import KillingImages
from tests.activations.cache.small_cache import small_cache, small_model


def main(folder: Path, n_images: int, deadly: int) -> None:
    torch.set_num_threads(1)
    images = KillingImages(n_images, folder, deadly=deadly, cache=folder / "cache")
    small_cache(folder / "cache", small_model(), images, progress=os.environ["RANK"] == "0")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
