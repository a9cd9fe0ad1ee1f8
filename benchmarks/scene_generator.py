"""Is the scene generator ever the bottleneck? Its rate against ``shapes-clip``'s, on one core.

    python benchmarks/scene_generator.py

Prints scenes drawn per second ÷ images that the tower takes per second, measured in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from vit_sae_plugin import HookedViT
from vit_sae_plugin.datasets.shape_scenes import ShapeScenes

N_IMAGES = 256
N_ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, which other programs on the machine disturb least."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    model = HookedViT.from_pretrained("shapes-clip")
    source = ShapeScenes(N_IMAGES * N_ROUNDS)
    records = [source.record(index) for index in range(N_IMAGES)]
    pixels = torch.stack([model.preprocess(record.load()) for record in records])
    ratios, rates = [], []
    with torch.no_grad():
        model.encode_image(pixels)
        for number in range(N_ROUNDS):
            first = number * N_IMAGES
            drawing = seconds(
                lambda first=first: [source.scene(first + i) for i in range(N_IMAGES)]
            )
            tower = seconds(lambda: model.encode_image(pixels))
            ratios.append(tower / drawing)
            rates.append((N_IMAGES / drawing, N_IMAGES / tower))
    drawn, taken = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{drawn:.0f} scenes/s drawn, {taken:.0f} images/s through the tower, one core")
    print(f"generator ÷ tower: median {statistics.median(ratios):.1f}, lowest {min(ratios):.1f}")


if __name__ == "__main__":
    main()
