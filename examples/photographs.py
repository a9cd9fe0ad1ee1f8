"""Write the photographs that scikit-image and scikit-learn carry into a folder, for a first try.

    python examples/photographs.py photos/
    vit-sae train --images photos/ --model ViT-B-32 --pretrained openai --output-path runs/photos

The photographs are cut into overlapping crops, so that there are a few hundred pictures. Both
libraries are among the test extras (``pip install vit-sae-plugin[test]``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

CROP = 224
NAMES = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
)


def photographs() -> dict[str, np.ndarray]:
    """Name → picture, of all that come with the two libraries and need no download."""
    pictures = {}
    for name in NAMES:
        try:
            pictures[name] = getattr(skimage.data, name)()
        except (AttributeError, OSError, ModuleNotFoundError):
            continue  # not part of this version's package
    samples = load_sample_images()
    for path, picture in zip(samples.filenames, samples.images, strict=True):
        pictures[Path(path).stem] = picture
    return pictures


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "photos")
    n_crops = 0
    for name, picture in photographs().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width = picture.shape[:2]
        step = CROP // 3
        for top in range(0, max(height - CROP, 0) + 1, step):
            for left in range(0, max(width - CROP, 0) + 1, step):
                crop = Image.fromarray(picture[top : top + CROP, left : left + CROP])
                crop.convert("RGB").save(folder / name / f"{top}_{left}.jpg", quality=92)
                n_crops += 1
    print(f"{n_crops} crops of {len(list(folder.iterdir()))} photographs in {folder}")


if __name__ == "__main__":
    main()
