"""Which patches show which concept, from masks on the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.datasets.shape_scenes import Scene

Concept = tuple[str, str]
"""Kind and name, such as ``("color", "red")``."""
ConceptMasks = Callable[[int], Mapping[Concept, Any]]
"""Image index → concept → mask ``[height, width]`` of the image as it is before preprocessing."""


def scene_concept_masks(scene: Scene) -> dict[Concept, np.ndarray]:
    """Masks of a shape scene's shapes, colours, their combinations, and textures."""
    masks: dict[Concept, np.ndarray] = {}
    for thing in scene.objects:
        concepts = (
            ("shape", thing.shape),
            ("color", thing.color),
            ("color and shape", f"{thing.color} {thing.shape}"),
            ("texture", thing.texture),
        )
        for concept in concepts:
            masks[concept] = masks.get(concept, False) | thing.mask
    return masks


def masks_of(images: ImageSource, concept_masks: ConceptMasks | None) -> ConceptMasks:
    """The masks given, or else those of a source of shape scenes.

    Raises:
        ValueError: none are given, and the source has none.
    """
    if concept_masks is not None:
        return concept_masks
    scene = getattr(images, "scene", None)
    if scene is None:
        raise ValueError(
            f"{images.name} has no masks of its own; pass concept_masks: image index → "
            "{(kind, name): mask}"
        )
    return lambda index: scene_concept_masks(scene(index))


class PatchCoverage:
    """Share of each patch that a mask covers, where the model's own preprocessing puts it.

    The mask goes through the preprocessing as a black and white picture, and is compared with an
    all-black and an all-white one: resizing, cropping and normalising are thus those of the images.

    Args:
        preprocess: the model's, PIL image → ``[3, height, width]``.
        grid: rows and columns of patches.
    """

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], grid: tuple[int, int]):
        self.preprocess = preprocess
        self.grid = tuple(grid)
        self._extremes: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, mask: Bool[Any, "height width"]) -> Float[Tensor, "rows columns"]:
        """Between 0 and 1 for each patch."""
        mask = np.asarray(mask, dtype=bool)
        if mask.ndim != 2:
            raise ValueError(f"a mask has shape {list(mask.shape)}; want [height, width]")
        if mask.shape not in self._extremes:
            self._extremes[mask.shape] = (
                self._pixels(np.zeros_like(mask)),
                self._pixels(np.ones_like(mask)),
            )
        black, white = self._extremes[mask.shape]
        share = ((self._pixels(mask) - black) / (white - black)).mean(0)
        height, width = share.shape
        rows, columns = self.grid
        # Pixels past the last whole patch are not seen by the model.
        tall, wide = height // rows, width // columns
        share = share[: rows * tall, : columns * wide]
        return share.reshape(rows, tall, columns, wide).mean((1, 3)).clamp(0, 1)

    def _pixels(self, mask: np.ndarray) -> Tensor:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
        return self.preprocess(picture).float()


class ConceptPatches:
    """For each concept the patches that show it, filled image by image.

    Args:
        n_patches: patches of an image.
    """

    def __init__(self, n_patches: int):
        self.n_patches = n_patches
        self.n_images = 0
        self._found: dict[Concept, list[Tensor]] = {}

    def append(self, shown: Mapping[Concept, Bool[Tensor, "rows columns"]]) -> None:
        """Add the next image: which of its patches show each of its concepts."""
        for concept, patches in shown.items():
            at = patches.flatten().nonzero().flatten() + self.n_images * self.n_patches
            self._found.setdefault(concept, []).append(at)
        self.n_images += 1

    def positives(self) -> dict[Concept, Tensor]:
        """Concept → indices of its patches, counted over all images; concepts never shown are
        left out."""
        found = {concept: torch.cat(parts) for concept, parts in sorted(self._found.items())}
        return {concept: at for concept, at in found.items() if len(at)}
