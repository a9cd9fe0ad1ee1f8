"""An SAE on shapes-clip whose latents are words, so that their names are known."""

from __future__ import annotations

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch.nn.functional import normalize

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary
from vit_sae_plugin.concepts.word_embeddings import embed_words
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.hooked_vit import HookedViT

WORDS = ("red", "blue", "ring", "star", "red ring", "green heart")
SCENES = "shapes:test?n_images=128&n_objects=1"


@torch.no_grad()
def word_sae(model: HookedViT, share: float = 0.15, words: tuple[str, ...] = WORDS) -> StandardSAE:
    """Latent i is active on the scenes that lie furthest along word i; the last one is dead."""
    vocabulary = read_vocabulary("shapes")
    places = [vocabulary.words.index(word) for word in words]
    directions = embed_words(model, vocabulary).directions()[places]
    source = open_images(SCENES)
    pixels = torch.stack([model.preprocess(source.record(i).load()) for i in range(96)])
    embeds = model(pixels)
    along = (embeds - embeds.mean(0)) @ directions.T
    sae = StandardSAE(StandardSAEConfig(d_in=embeds.shape[1], d_sae=len(words) + 1))
    sae.W_enc.zero_()
    sae.W_dec.copy_(normalize(torch.ones_like(sae.W_dec), dim=-1))
    sae.W_enc[:, :-1] = directions.T
    sae.W_dec[:-1] = directions
    sae.b_dec.copy_(embeds.mean(0))
    sae.b_enc[:-1] = -along.quantile(1 - share, dim=0)
    sae.b_enc[-1] = -1
    for key, value in ActivationSource.from_model(model, "hook_image_embed").to_metadata().items():
        sae.cfg.metadata[key] = value
    return sae


def attached_word_sae() -> AttachedSAE:
    """That SAE on its model."""
    model = HookedViT.from_pretrained("shapes-clip")
    return AttachedSAE(model, word_sae(model))
