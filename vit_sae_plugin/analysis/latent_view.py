"""Everything an atlas knows about one latent, to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from vit_sae_plugin.analysis.image_lookup import images_by_index

if TYPE_CHECKING:
    from vit_sae_plugin.analysis.latent_atlas import LatentAtlas
    from vit_sae_plugin.datasets import ImageSource


@dataclass
class LatentView:
    """One latent of an atlas; in a notebook it shows itself."""

    atlas: LatentAtlas
    """Where it comes from."""
    latent: int
    """Its index."""
    images: ImageSource | None = None
    """Where its reference images can be loaded from."""

    @property
    def statistics(self) -> pd.Series:
        """Its row of ``atlas.latents``."""
        return self.atlas.latents.loc[self.latent]

    @property
    def reference_images(self) -> pd.DataFrame:
        return self.atlas.reference_images(self.latent)

    @property
    def top_classes(self) -> pd.DataFrame:
        return self.atlas.top_classes(self.latent)

    @property
    def coactive(self) -> pd.DataFrame:
        return self.atlas.coactive(self.latent)

    @property
    def similar(self) -> pd.DataFrame:
        return self.atlas.similar(self.latent)

    def pictures(self) -> list[Image.Image]:
        """Its reference images, the strongest first; empty without a source to load them from."""
        if self.images is None:
            return []
        indices = [int(i) for i in self.reference_images["image"]]
        loaded = dict(images_by_index(self.images, indices))
        return [loaded[index] for index in indices]

    def _repr_html_(self) -> str:
        from vit_sae_plugin.analysis.notebook_html import latent_html

        return latent_html(self)
