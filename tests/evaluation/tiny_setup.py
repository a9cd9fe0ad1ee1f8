"""A tiny CLIP with a tokenizer and preprocessing, an SAE on it, and a few labelled pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sae_lens import StandardSAE, StandardSAEConfig

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets.image_source import ImageRecord, ImageSource
from vit_sae_plugin.hooked_vit import HookedViT

IMAGE_SIZE = 32


def preprocess(image: Image.Image) -> torch.Tensor:
    pixels = np.array(image.resize((IMAGE_SIZE, IMAGE_SIZE)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def tokenizer(texts: list[str]) -> torch.Tensor:
    ids = torch.zeros(len(texts), 16, dtype=torch.int64)
    for row, text in enumerate(texts):
        letters = [ord(letter) % 99 for letter in text[-15:]]
        ids[row, : len(letters)] = torch.tensor(letters)
        ids[row, len(letters)] = 99  # the end token is the largest id
    return ids


def tiny_hooked_vit(**kwargs) -> HookedViT:
    settings = {"preprocess": preprocess, "tokenizer": tokenizer, "model_name": "tiny"} | kwargs
    return HookedViT.from_module(tiny_open_clip(), **settings)


class Pictures(ImageSource):
    """Random pictures in memory."""

    name = "pictures"

    def __init__(self, n_images=12, class_names=("cat", "dog", "owl"), labelled=True, seed=0):
        self.n_images = n_images
        self.seed = seed
        self.class_names = list(class_names) if labelled else None
        self.labelled = labelled
        generator = np.random.default_rng(seed)
        self.pixels = generator.integers(0, 256, (n_images, 8, 8, 3), dtype=np.uint8)

    def fingerprint(self):
        return f"{self.n_images:032d}{self.seed:032d}"

    def record(self, index):
        label = index % len(self.class_names) if self.labelled else None
        return ImageRecord(index, f"picture {index}", label, Image.fromarray(self.pixels[index]))

    def batch(self, model):
        """All pictures as the model's pixels."""
        pictures = [Image.fromarray(pixels) for pixels in self.pixels]
        return torch.stack([model.preprocess(picture) for picture in pictures])


def tiny_sae(model, hook_name="blocks.1.hook_resid_post", token_kind="all", d_sae=48, seed=0):
    """A random StandardSAE that says in its metadata what it reads."""
    torch.manual_seed(seed)
    sae = StandardSAE(StandardSAEConfig(d_in=model.hook_width(hook_name), d_sae=d_sae))
    source = ActivationSource.from_model(model, hook_name, token_kind)
    for name, value in source.to_metadata().items():
        setattr(sae.cfg.metadata, name, value)
    return sae


def identity_sae(model, hook_name="blocks.1.hook_resid_post", token_kind="all"):
    """One that gives back exactly what it reads: latents for both signs of each feature."""
    d_in = model.hook_width(hook_name)
    sae = tiny_sae(model, hook_name, token_kind, d_sae=2 * d_in)
    directions = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    sae.W_dec.data, sae.W_enc.data = directions.clone(), directions.T.clone()
    return sae
