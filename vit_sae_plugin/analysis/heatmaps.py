"""Where in an image a latent is active."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis.model_inputs import preprocess_of, sae_inputs
from vit_sae_plugin.analysis.patch_layout import PatchLayout
from vit_sae_plugin.analysis.seen_region import Region, seen_region
from vit_sae_plugin.analysis.shown_list import ShownList
from vit_sae_plugin.datasets.image_decoding import decode_image

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


@dataclass(repr=False)
class Heatmap:
    """One latent's activations on the patch grid of one image."""

    image: Image.Image
    """The whole picture."""
    latent: int
    """Index of the latent."""
    patches: Float[np.ndarray, "row column"]
    """Activation of each patch; NaN for patches the SAE doesn't read."""
    region: Region
    """The part of the picture that the grid covers."""

    @property
    def peak(self) -> tuple[int, int] | None:
        """Row and column of the most active patch; None if none is above 0."""
        filled = np.nan_to_num(self.patches)
        row, column = np.unravel_index(int(filled.argmax()), filled.shape)
        return (int(row), int(column)) if filled[row, column] > 0 else None

    def size_of_region(self, longer_side: int) -> tuple[int, int]:
        """Width and height at which to show what the model sees, in the model's proportions."""
        n_rows, n_columns = self.patches.shape
        scale = longer_side / max(n_rows, n_columns)
        return max(1, round(n_columns * scale)), max(1, round(n_rows * scale))

    def on_image(self, smooth: bool = True) -> Float[np.ndarray, "height width"]:
        """The activations scaled to the whole picture; NaN where the model doesn't see it.

        Args:
            smooth: interpolate between the centres of patches; False: each patch is one block.
        """
        width, height = self.image.size
        column = (np.arange(width) + 0.5 - self.region.left) / self.region.width
        row = (np.arange(height) + 0.5 - self.region.top) / self.region.height
        values = self._sample(row, column, smooth)
        values[(row < 0) | (row > 1)] = np.nan
        values[:, (column < 0) | (column > 1)] = np.nan
        return values

    def on_region(
        self, size: tuple[int, int], smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The activations scaled to ``(width, height)`` pixels of what the model sees."""
        width, height = size
        row, column = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        return self._sample(row, column, smooth)

    def _sample(self, row: np.ndarray, column: np.ndarray, smooth: bool) -> np.ndarray:
        """Activations at points given as shares of the region's height and width."""
        grid = torch.from_numpy(np.nan_to_num(self.patches)).double()[None, None]
        y, x = torch.meshgrid(torch.from_numpy(row), torch.from_numpy(column), indexing="ij")
        points = torch.stack([x, y], dim=-1)[None] * 2 - 1
        sampled = functional.grid_sample(
            grid,
            points.double(),
            mode="bilinear" if smooth else "nearest",
            padding_mode="border",
            align_corners=False,
        )
        return sampled[0, 0].float().numpy()

    def __repr__(self) -> str:
        n_rows, n_columns = self.patches.shape
        peak = self.peak
        where = "silent" if peak is None else f"largest {self.patches[peak]:.3g} at {peak}"
        return f"Heatmap(latent {self.latent}, {n_rows} x {n_columns} patches, {where})"

    def _repr_html_(self) -> str:
        from vit_sae_plugin.analysis.notebook_html import heatmap_html

        return heatmap_html(self)


@overload
def heatmap(
    model: HookedViT, sae: SAE[Any], image: Any, latent: SupportsIndex, **kwargs: Any
) -> Heatmap: ...


@overload
def heatmap(
    model: HookedViT, sae: SAE[Any], image: Any, latent: Iterable[SupportsIndex], **kwargs: Any
) -> ShownList[Heatmap]: ...


def heatmap(
    model: HookedViT,
    sae: SAE[Any],
    image: Any,
    latent: SupportsIndex | Iterable[SupportsIndex],
    *,
    source: ActivationSource | None = None,
) -> Heatmap | ShownList[Heatmap]:
    """Where in an image one latent, or each of several, is active.

    Args:
        model: the model the SAE reads.
        sae: any SAELens SAE.
        image: a picture of any size, the path of one, or a uint8 array, read as :func:`analyze`
            reads it: upright, transparency on white (see ``decode_image``).
        latent: one index, or several, as Python, NumPy or pandas hold them.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.

    Returns:
        One :class:`Heatmap`, or a list for several latents.

    Raises:
        ValueError: the SAE reads no patches; there is no such latent.
        UnreadableImageError: the picture can't be read.
    """
    is_single = np.ndim(latent) == 0  # type: ignore[arg-type]
    several = [operator.index(one) for one in ([latent] if is_single else latent)]  # type: ignore
    for one in several:
        if not 0 <= one < sae.cfg.d_sae:
            raise ValueError(f"there is no latent {one}; want 0 to {sae.cfg.d_sae - 1}")
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    image = decode_image(image)
    tokens = next(encode_images(model, sae, [image], source=source))
    layout = layout_of(model, source, len(tokens))
    region = seen_region(preprocess_of(model), image.size)
    grids = layout.on_grid(tokens[:, several].T).cpu().numpy()
    maps = ShownList(
        Heatmap(image, one, grid, region) for one, grid in zip(several, grids, strict=True)
    )
    return maps[0] if is_single else maps


def segmentation_mask(
    model: HookedViT,
    sae: SAE[Any],
    image: Any,
    latent: SupportsIndex,
    *,
    threshold: float | None = None,
    smooth: bool = False,
    source: ActivationSource | None = None,
) -> Float[np.ndarray, "height width"] | Bool[np.ndarray, "height width"]:
    """One latent's patch activations, scaled to the image (PatchSAE's segmentation mask).

    Args:
        image: as :func:`heatmap` takes it.
        threshold: None: the activations themselves. A number: True where they are above it.
        smooth: interpolate between patches; False: each patch is one block.

    Returns:
        An array of the picture's height and width; 0 or False where the model doesn't see it.
    """
    values = np.nan_to_num(
        heatmap(model, sae, image, latent, source=source).on_image(smooth=smooth)
    )
    return values if threshold is None else values > threshold


@torch.no_grad()
def encode_images(
    model: HookedViT,
    sae: SAE[Any],
    images: Sequence[Image.Image],
    *,
    source: ActivationSource | None = None,
    batch_size_images: int = 32,
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """The latents of pictures, one picture after another."""
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    preprocess = preprocess_of(model)
    for start in range(0, len(images), batch_size_images):
        some = images[start : start + batch_size_images]
        pixels = torch.stack([preprocess(image) for image in some])
        for acts_td in sae_inputs(model, sae, source, pixels):
            latents = sae.encode(acts_td[None])
            yield (latents.to_dense() if latents.is_sparse else latents)[0].float()


def layout_of(model: HookedViT, source: ActivationSource, n_tokens: int) -> PatchLayout:
    """The layout of an SAE's tokens, for drawing.

    Raises:
        ValueError: there are no patches among them.
    """
    layout = PatchLayout.of(source, model.cfg, n_tokens)
    if not layout.has_patches:
        raise ValueError(
            f"this SAE reads {source.token_kind!r} tokens of {source.hook_name}, none of which is "
            "a patch, so there is nothing to show on an image"
        )
    return layout
