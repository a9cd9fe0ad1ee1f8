"""Zero-shot accuracy of plain ``shapes-clip`` on filled scenes and on outline drawings.

python -m benchmarks.shape_styles --n-scenes 2000
"""

from __future__ import annotations

import argparse

import torch

from vit_sae_plugin import HookedViT
from vit_sae_plugin.datasets import ImageSource, ShapeScenes, of_classes
from vit_sae_plugin.prompt_templates import shape_scene_templates


@torch.no_grad()
def zero_shot_accuracy(model: HookedViT, source: ImageSource) -> float:
    """Share of images whose nearest class, of the source's own, is theirs."""
    classifier = model.zero_shot_classifier(source.class_names, shape_scene_templates())
    n_right = 0
    for start in range(0, source.n_images, 256):
        indices = range(start, min(start + 256, source.n_images))
        records = [source.record(index) for index in indices]
        pixels = torch.stack([model.preprocess(record.load()) for record in records])
        nearest = (model(pixels) @ classifier).argmax(dim=-1).tolist()
        n_right += sum(a == r.label for a, r in zip(nearest, records, strict=True))
    return n_right / source.n_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    model = HookedViT.from_pretrained("shapes-clip")
    for style in ("filled", "outline"):
        scenes = ShapeScenes(args.n_scenes, 1, seed=args.seed, split="test", style=style)
        for classes in ("all", "base", "novel"):
            some = of_classes(scenes, classes)
            accuracy = zero_shot_accuracy(model, some)
            print(f"{style:8} {classes:6} {len(some.class_names)} classes  {accuracy:.1%}")


if __name__ == "__main__":
    main()
