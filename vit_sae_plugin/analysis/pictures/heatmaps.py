"""Where in an image a latent is active."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap
from vit_sae_plugin.analysis.pictures.seen_region import seen_region
from vit_sae_plugin.analysis.pictures.shown_list import ShownList
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets.image_decoding import decode_image

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


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
        image: a picture of any size, the path of one, or a uint8 array, read as ``analyze``
            reads it: upright, transparency on white (see ``decode_image``).
        latent: one index, or several, as Python, NumPy or pandas hold them.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.

    Returns:
        One ``Heatmap``, or a list for several latents.

    Raises:
        ValueError: the SAE reads no patches; there is no such latent.
        UnreadableImageError: the picture can't be read.
    """
    is_single = np.ndim(latent) == 0  # type: ignore[arg-type]
    several = [operator.index(one) for one in ([latent] if is_single else latent)]  # type: ignore
    for one in several:
        if not 0 <= one < sae.cfg.d_sae:
            raise ValueError(f"there is no latent {one}; want 0 to {sae.cfg.d_sae - 1}")
    attached = AttachedSAE(model, sae, source)
    layout = attached.require_patches()
    image = decode_image(image)
    tokens = next(encode_images(attached, [image]))
    region = seen_region(model.require_preprocess(), image.size)
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
        image: as ``heatmap`` takes it.
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
    attached: AttachedSAE, images: Sequence[Image.Image], *, batch_size_images: int = 32
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """The latents of pictures, one picture after another."""
    preprocess = attached.model.require_preprocess()
    for start in range(0, len(images), batch_size_images):
        some = images[start : start + batch_size_images]
        pixels = torch.stack([preprocess(image) for image in some])
        for _, latents in attached.encode_parts(attached.activations(pixels)):
            yield from latents.float()
