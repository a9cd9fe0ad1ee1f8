"""Five images small enough to work every statistic out by hand.

Three tokens each (the class token and two patches side by side), four latents A, B, C, D.
D is dead. Images 0 and 1 are of class 0, images 2 and 3 of class 1, image 4 has no label.
All values are binary fractions, so that sums are exact.
"""

from __future__ import annotations

import torch

from vit_sae_plugin.aggregation import make_aggregation
from vit_sae_plugin.analysis import AtlasInfo, LatentAtlas
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

A, B, C, D = range(4)
LATENTS = torch.zeros(5, 3, 4)
LATENTS[:, :, A] = torch.tensor(
    [[0, 0.5, 0.25], [0, 0, 1.5], [0.75, 0, 0], [0, 0, 0], [0, 0, 0.375]]
)
LATENTS[:, :, B] = torch.tensor([[0, 0, 0], [0.375, 0, 0], [0, 0.375, 0], [0, 0, 0], [0, 0, 0]])
LATENTS[:, :, C] = torch.tensor(
    [[1, 1, 1], [0, 2, 1], [0, 0, 0], [0.125, 0.25, 0.375], [0.75, 0, 0]]
)
LABELS = torch.tensor([0, 0, 1, 1, -1])
IDS = ["a.png", "b.png", "c.png", "d.png", "e.png"]
W_DEC = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
LAYOUT = TokenLayout.of_grid((1, 2), front=("class",))


def make_builder(n_reference_images: int = 3, **settings) -> AtlasBuilder:
    aggregations = {name: make_aggregation(name) for name in ("mean", "count", "max")}
    return AtlasBuilder(
        4,
        LAYOUT,
        aggregations,
        threshold=0.2,
        n_reference_images=n_reference_images,
        **settings,
    )


def feed(builder: AtlasBuilder, positions: torch.Tensor, latents: torch.Tensor = LATENTS) -> None:
    builder.update(
        latents[positions], positions, LABELS[positions], [IDS[int(i)] for i in positions]
    )


def make_info(builder: AtlasBuilder) -> AtlasInfo:
    return AtlasInfo(
        model_sha256="m" * 64,
        sae_sha256="s" * 64,
        data_sha256="d" * 64,
        data_name="five images",
        sae_metadata={"hook_name": "blocks.0.hook_resid_post", "token_kind": "all"},
        model_preprocessing="Resize(8)",
        architecture="patchsae",
        d_in=2,
        d_sae=4,
        n_tokens=3,
        grid=(1, 2),
        threshold=0.2,
        aggregations={
            name: builder.references[name].aggregation.config() for name in builder.references
        },
        n_reference_images=3,
        n_partners=2,
        n_coactivation_images=256,
        dense_frequency=0.5,
        class_names=["cat", "dog"],
    )


def build(builder: AtlasBuilder) -> LatentAtlas:
    import pandas as pd

    return builder.build(make_info(builder), W_DEC, n_partners=2, skipped_images=pd.DataFrame())


def make_atlas() -> LatentAtlas:
    builder = make_builder()
    feed(builder, torch.arange(5))
    return build(builder)
