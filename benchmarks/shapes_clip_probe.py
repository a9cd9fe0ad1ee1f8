"""What ``shapes-clip`` knows: zero-shot accuracy, and a linear probe on its patch tokens.

    python benchmarks/shapes_clip_probe.py

Everything measured on the built-in world stands on these figures. All scenes are of the test split,
which training never saw; the probe is fitted on some of them and measured on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from vit_sae_plugin import HookedViT
from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES, SIZES, TEXTURES
from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES, Scene, ShapeScenes
from vit_sae_plugin.evaluation import fit_linear_probe
from vit_sae_plugin.shapes_clip import SHAPES_CLIP_HOOK

Template = str | Callable[[str], str]

FACTORS = {
    "color and shape": SCENE_CLASS_NAMES,
    "shape": list(SHAPES),
    "color": list(COLORS),
    "texture": list(TEXTURES),
    "size": list(SIZES),
}
PROMPT_SETS = {
    '"a photo of a {}."': ("a photo of a {}.",),
    '"{}"': ("{}",),
    "OpenAI's 80 templates": OPENAI_IMAGENET_TEMPLATES,
}


def factor_labels(scene: Scene, number: int) -> list[int]:
    """Index of one object's value in each of ``FACTORS``."""
    thing = scene.objects[number]
    values = (thing.shape, thing.color, thing.texture, thing.size)
    factors = list(FACTORS.values())[1:]
    return [thing.label, *(names.index(v) for names, v in zip(factors, values, strict=True))]


def pixels_of(model: HookedViT, scenes: Sequence[Scene]) -> Float[Tensor, "image 3 64 64"]:
    """The scenes as the model's own preprocessing makes them."""
    return torch.stack([model.preprocess(scene.image) for scene in scenes])


@torch.no_grad()
def embed(model: HookedViT, scenes: Sequence[Scene]) -> Float[Tensor, "image d_embed"]:
    """Image embeddings, 256 scenes at a time."""
    chunks = [scenes[start : start + 256] for start in range(0, len(scenes), 256)]
    return torch.cat([model.encode_image(pixels_of(model, chunk)) for chunk in chunks])


@torch.no_grad()
def zero_shot_accuracy(
    model: HookedViT,
    embeds: Float[Tensor, "image d_embed"],
    scenes: Sequence[Scene],
    templates: Sequence[Template],
) -> tuple[float, float]:
    """Share of scenes whose nearest of the 64 class embeddings is that of the largest object, and
    that of any of its objects; with one object the two are the same."""
    classifier = model.zero_shot_classifier(SCENE_CLASS_NAMES, list(templates))
    nearest = (embeds @ classifier).argmax(-1).tolist()
    is_largest = [name == scene.label for name, scene in zip(nearest, scenes, strict=True)]
    is_there = [
        name in {thing.label for thing in scene.objects}
        for name, scene in zip(nearest, scenes, strict=True)
    ]
    return float(np.mean(is_largest)), float(np.mean(is_there))


@torch.no_grad()
def labelled_patches(
    model: HookedViT, scenes: Sequence[Scene], hook_name: str = SHAPES_CLIP_HOOK
) -> tuple[Float[Tensor, "patch d"], Int[Tensor, "patch factor"]]:
    """Activations of the patches that one object covers at least half of, and its factors."""
    stop = int(hook_name.split(".")[1]) + 1
    rows, labels = [], []
    for start in range(0, len(scenes), 256):
        chunk = scenes[start : start + 256]
        _, cache = model.run_with_cache(
            pixels_of(model, chunk), names_filter=hook_name, stop_at_layer=stop
        )
        patches = cache[hook_name][:, model.cfg.n_prefix_tokens :]
        for tokens, scene in zip(patches, chunk, strict=True):
            for number, share in enumerate(scene.patch_coverage(model.cfg.patch_size[0])):
                covered = torch.from_numpy(np.flatnonzero(share >= 0.5))
                rows.append(tokens[covered])
                labels.append(torch.tensor([factor_labels(scene, number)] * len(covered)))
    return torch.cat(rows), torch.cat([label for label in labels if len(label)])


def probe_table(
    model: HookedViT,
    fit_on: Sequence[Scene],
    measure_on: Sequence[Scene],
    hook_name: str,
    factors: Sequence[str] = tuple(FACTORS),
) -> pd.DataFrame:
    """Accuracy of a linear probe for each factor, against always naming the commonest value."""
    rows, labels = labelled_patches(model, fit_on, hook_name)
    held_out, truth = labelled_patches(model, measure_on, hook_name)
    results = []
    for number, (factor, names) in enumerate(FACTORS.items()):
        if factor not in factors:
            continue
        probe = fit_linear_probe(
            rows,
            labels[:, number],
            n_classes=len(names),
            unit_rows=False,
            weight_decay=2e-4,
            max_iterations=100,
        )
        accuracy = probe.accuracy(held_out, truth[:, number])
        commonest = labels[:, number].mode().values
        chance = (truth[:, number] == commonest).float().mean()
        results.append((factor, len(names), accuracy, float(chance), len(held_out)))
    columns = ["factor", "n_classes", "probe_accuracy", "majority_accuracy", "n_patches"]
    return pd.DataFrame(results, columns=columns).set_index("factor")


def scenes_of(n: int, seed: int, n_objects: int | tuple[int, int]) -> list[Scene]:
    """Scenes of the test split."""
    source = ShapeScenes(n, n_objects=n_objects, seed=seed, split="test")
    return [source.scene(index) for index in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-scenes", type=int, default=2000, help="scenes for each figure")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = HookedViT.from_pretrained("shapes-clip")
    n = args.n_scenes
    for n_objects in (1, 2, 3):
        scenes = scenes_of(n, seed=11, n_objects=n_objects)
        embeds = embed(model, scenes)
        for prompts, templates in PROMPT_SETS.items():
            largest, any_of_them = zero_shot_accuracy(model, embeds, scenes, templates)
            print(
                f"zero-shot, 64 classes, scenes with {n_objects} object(s), {prompts}: "
                f"names the largest {largest:.1%}, names any of them {any_of_them:.1%}"
            )
    fit_on, measure_on = scenes_of(n, 12, (1, 3)), scenes_of(n, 13, (1, 3))
    pd.set_option("display.float_format", "{:.3f}".format)
    for layer in range(model.cfg.n_layers):
        hook_name = f"blocks.{layer}.hook_resid_post"
        note = " (the SAE's layer)" if hook_name == SHAPES_CLIP_HOOK else ""
        print(f"\nlinear probe on patches at least half covered, {hook_name}{note}")
        print(probe_table(model, fit_on, measure_on, hook_name).to_string())


if __name__ == "__main__":
    main()
