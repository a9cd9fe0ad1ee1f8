"""A tiny model, an SAE on it and a few pictures: the real classes, small enough for a test."""

from __future__ import annotations

import numpy as np
import timm
import torch
from PIL import Image
from sae_lens import StandardSAE, StandardSAEConfig
from torchvision import transforms

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets import ImageRecord, ImageSource
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.1.hook_resid_post"


def preprocess_to(height: int, width: int | None = None):
    """Resize the shorter side and crop the centre, as CLIP's preprocessing does."""
    size = (height, width or height)
    return transforms.Compose(
        [
            transforms.Resize(min(size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
        ]
    )


def make_model() -> HookedViT:
    """A CLIP of 3 blocks, a 4 x 4 grid and a class token."""
    return HookedViT.from_module(tiny_open_clip(), preprocess=preprocess_to(32))


def make_wide_model() -> HookedViT:
    """A ViT with a grid of 2 rows and 4 columns, and a class token."""
    torch.manual_seed(0)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=(16, 32), patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0
    )
    return HookedViT.from_module(vit.eval(), preprocess=preprocess_to(16, 32))


def make_sae(model: HookedViT, d_sae: int = 40, token_kind: str = "all") -> StandardSAE:
    """Random weights, biased so that a few latents are rare and one is dead."""
    source = ActivationSource.from_model(model, HOOK, token_kind)
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=d_sae))
    generator = torch.Generator().manual_seed(3)
    sae.W_enc.data = torch.randn(32, d_sae, generator=generator) / 3
    sae.W_dec.data = torch.randn(d_sae, 32, generator=generator)
    sae.b_enc.data = -torch.linspace(0, 3, d_sae)
    sae.b_enc.data[7:8] = -1e6
    for key, value in source.to_metadata().items():
        sae.cfg.metadata[key] = value
    return sae


class NoisePictures(ImageSource):
    """Pictures of coloured blocks, drawn from their index; ``order`` is the order of the source."""

    def __init__(self, n_images: int, order: list[int] | None = None, size=(40, 36)) -> None:
        self.name = "noise"
        self.n_images = n_images
        self.class_names = ["red", "green", "blue"]
        self.order = list(range(n_images)) if order is None else order
        self.size = size

    def fingerprint(self) -> str:
        return f"noise {self.n_images} {self.size}"

    def picture(self, index: int) -> Image.Image:
        blocks = np.random.default_rng(index).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize(self.size, Image.Resampling.NEAREST)

    def record(self, index: int) -> ImageRecord:
        label = None if index % 4 == 3 else index % 4
        return ImageRecord(index, f"{index}.png", label, self.picture(index))

    def records(self, start: int = 0):
        for index in self.order[start:]:
            yield self.record(index)
