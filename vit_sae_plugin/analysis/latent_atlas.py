"""What a data set taught about each latent: statistics, reference images, classes, relatives."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vit_sae_plugin.analysis.coactivation import Partners
from vit_sae_plugin.analysis.latent_view import LatentView
from vit_sae_plugin.analysis.reference_images import ReferenceTable
from vit_sae_plugin.datasets import open_images

SCHEMA_VERSION = 2


@dataclass
class AtlasInfo:
    """What an atlas was made from, kept in its ``atlas.json``."""

    model_sha256: str
    """Hash of the model's weights."""
    sae_sha256: str
    """Hash of the SAE's weights and settings."""
    data_sha256: str
    """Fingerprint of the image source."""
    data_name: str
    """Name of the image source."""
    sae_metadata: dict[str, Any]
    """The SAE's model, hook, tokens and preprocessing (see ``ActivationSource``)."""
    model_preprocessing: str | None
    """How the model that was used preprocesses images, in words."""
    architecture: str
    """The SAE's architecture."""
    d_in: int
    """Width of the SAE's input."""
    d_sae: int
    """Number of latents."""
    n_tokens: int
    """Tokens the SAE reads of each image."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    threshold: float
    """A token is active, for counts, where its activation is strictly above this."""
    aggregations: dict[str, dict[str, Any]]
    """Name → rule of each aggregation with reference images; the first is the default."""
    n_reference_images: int
    """Most reference images a latent can have."""
    n_partners: int
    """Most co-active and similar latents a latent can have."""
    n_coactivation_images: int
    """Sample size of the co-activation estimate."""
    dense_frequency: float
    """A latent active at more than this share of tokens is flagged dense."""
    class_names: list[str] | None
    """Class index → name; two classes may share one."""
    n_images: int = 0
    """Images that were analysed."""
    n_skipped_images: int = 0
    """Images that could not be read."""
    schema_version: int = SCHEMA_VERSION
    """Version of the folder's format."""

    def _repr_html_(self) -> str:
        from vit_sae_plugin.analysis.notebook_html import info_html

        return info_html(self)


@dataclass
class LatentAtlas:
    """Statistics of every latent of an SAE over a data set, made by :func:`analyze`.

    ``atlas.latents`` is the table to sort and filter; the methods look up one latent or class.
    A dead latent's statistics are missing values, and it has no reference images.
    """

    info: AtlasInfo
    """What it was made from."""
    latents: pd.DataFrame
    """One row for each latent (see :func:`analyze` for its columns)."""
    references: dict[str, ReferenceTable]
    """Aggregation name → reference images."""
    images: pd.DataFrame
    """``id`` and ``label`` of every image that is a reference image, by image index."""
    histogram: Int[np.ndarray, "d_sae n_bins"]
    """For each latent, how many tokens activate it by how much."""
    histogram_edges: Float[np.ndarray, " n_bins_plus_1"]
    """Edges of the histogram's bins, in units of activation."""
    class_counts: Int[np.ndarray, "n_classes d_sae"]
    """Active tokens of each class's images, summed (PatchSAE, Eq. 4)."""
    class_n_images: Int[np.ndarray, " n_classes"]
    """Images of each class."""
    coactive_partners: Partners
    """Latents active on the same images, by Jaccard index."""
    similar_partners: Partners
    """Latents with alike decoder directions, by cosine."""
    skipped_images: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Images that could not be read, with the reason."""
    folder: Path | None = None
    """Where it was saved."""

    @property
    def d_sae(self) -> int:
        return self.info.d_sae

    @property
    def n_classes(self) -> int:
        return len(self.class_n_images)

    @property
    def default_aggregation(self) -> str:
        """The aggregation that entropy, deviation and reference images refer to by default."""
        return next(iter(self.references))

    def check_latent(self, latent: SupportsIndex) -> int:
        """A latent's index as an ``int``, whether Python, NumPy or pandas held it.

        Raises:
            ValueError: there is no such latent.
        """
        latent = operator.index(latent)
        if not 0 <= latent < self.d_sae:
            raise ValueError(f"there is no latent {latent}; want 0 to {self.d_sae - 1}")
        return latent

    def latent(self, latent: int, images: Any = None) -> LatentView:
        """Everything about one latent.

        Args:
            latent: its index.
            images: the source that was analysed, or what :func:`open_images` takes; with it, the
                latent's pictures can be shown.
        """
        source = None if images is None else open_images(images)
        return LatentView(self, self.check_latent(latent), source)

    def reference_images(self, latent: int, aggregation: str | None = None) -> pd.DataFrame:
        """The images that activate a latent most, the highest first.

        Args:
            latent: index of the latent.
            aggregation: one of ``atlas.references``; None: the first.

        Returns:
            Columns ``image`` (index in the source), ``id``, ``value`` (under the aggregation),
            ``row`` and ``column`` of the patch that fired most (missing where none did),
            ``label``, ``class_name``. No row for a dead latent.
        """
        latent = self.check_latent(latent)
        table = self._references(aggregation)
        n = int((table.image[latent] >= 0).sum())
        index = table.image[latent, :n]
        peak = pd.array(table.peak_patch[latent, :n], dtype="Int64")
        peak[peak < 0] = pd.NA
        known = self.images.reindex(index)
        label = known["label"].astype("Int64").array
        return pd.DataFrame(
            {
                "image": index,
                "id": known["id"].array,
                "value": table.value[latent, :n],
                "row": peak // self.info.grid[1],
                "column": peak % self.info.grid[1],
                "label": label,
                "class_name": self.class_names_of(label),
            },
            index=pd.RangeIndex(1, n + 1, name="rank"),
        )

    def top_classes(self, latent: int, n: int = 10) -> pd.DataFrame:
        """The classes whose images activate a latent most, by count.

        Returns:
            Rows are class indices (``class``); columns ``class_name``, ``count`` (active tokens,
            summed over the class), ``count_per_image``, ``share`` of the count over all classes.
            Only classes with a count; among equal ones the smaller index comes first.
        """
        counts = self.class_counts[:, self.check_latent(latent)]
        top = np.argsort(-counts.astype(np.int64), kind="stable")[:n]
        top = top[counts[top] > 0]
        return pd.DataFrame(
            {
                "class_name": [self.class_name(int(c)) for c in top],
                "count": counts[top],
                "count_per_image": counts[top] / self.class_n_images[top],
                "share": counts[top] / max(int(counts.sum(dtype=np.int64)), 1),
            },
            index=pd.Index(top, name="class"),
        )

    def top_latents(self, class_: int | str, n: int = 10, by: str = "count") -> pd.DataFrame:
        """The latents that the images of a class activate most.

        Args:
            class_: class index, or a name that one class alone has.
            by: ``"count"``, the class-level count that PatchSAE ranks by, or ``"share"``: how much
                of the latent's count over all classes falls on this one.

        Returns:
            Rows are latents; columns ``count``, ``count_per_image``, ``share``, and the latent's
            ``frequency``, ``mean_activation`` and ``label_entropy``. Only latents with a count.
        """
        index = self._class_index(class_)
        counts = self.class_counts[index]
        shares = counts / np.maximum(self.class_counts.sum(axis=0, dtype=np.int64), 1)
        if by not in ("count", "share"):
            raise ValueError(f"by is {by!r}; want 'count' or 'share'")
        # among equal shares the larger count first
        keys = (-counts, -shares) if by == "share" else (-counts,)
        top = np.lexsort(keys)[:n]
        top = top[counts[top] > 0]
        table = pd.DataFrame(
            {
                "count": counts[top],
                "count_per_image": counts[top] / self.class_n_images[index],
                "share": shares[top],
            },
            index=pd.Index(top, name="latent"),
        )
        return table.join(self.latents[["frequency", "mean_activation", "label_entropy"]])

    def similar(self, latent: int, n: int = 10) -> pd.DataFrame:
        """The latents whose decoder directions are most alike, by ``cosine``."""
        return self._partners(self.similar_partners, latent, n, "cosine")

    def coactive(self, latent: int, n: int = 10) -> pd.DataFrame:
        """The latents active on the same images, by ``jaccard``: both ÷ either."""
        return self._partners(self.coactive_partners, latent, n, "jaccard")

    def class_name(self, class_: int) -> str:
        """The name of a class, or its index where it has none."""
        names = self.info.class_names
        return names[class_] if names and class_ < len(names) else str(class_)

    def class_names_of(self, classes: Iterable[Any]) -> pd.api.extensions.ExtensionArray:
        """The names of several classes, missing where the class is."""
        names = [pd.NA if pd.isna(c) else self.class_name(int(c)) for c in classes]
        return pd.array(names, dtype="string")

    def save(self, folder: str | Path) -> Path:
        """Write the atlas as a folder; see :mod:`vit_sae_plugin.analysis.atlas_folder`."""
        from vit_sae_plugin.analysis.atlas_folder import save_atlas

        return save_atlas(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> LatentAtlas:
        """Open an atlas that was saved.

        Raises:
            ValueError: the folder holds no atlas, or one of an unknown schema version.
        """
        from vit_sae_plugin.analysis.atlas_folder import load_atlas

        return load_atlas(Path(folder))

    def _partners(self, partners: Partners, latent: int, n: int, score: str) -> pd.DataFrame:
        others = partners.latent[self.check_latent(latent)]
        keep = (others >= 0).nonzero()[0][:n]
        table = pd.DataFrame(
            {score: partners.score[latent, keep]}, index=pd.Index(others[keep], name="latent")
        )
        return table.join(self.latents[["frequency", "mean_activation", "label_entropy"]])

    def _references(self, aggregation: str | None) -> ReferenceTable:
        name = self.default_aggregation if aggregation is None else aggregation
        if name not in self.references:
            raise ValueError(
                f"this atlas has no reference images under {name!r}, only under "
                f"{', '.join(map(repr, self.references))}"
            )
        return self.references[name]

    def _class_index(self, class_: int | str) -> int:
        if self.n_classes == 0:
            raise ValueError("this atlas has no classes: no image that was analysed has a label")
        if isinstance(class_, str):
            names: Sequence[str] = self.info.class_names or []
            found = [index for index, name in enumerate(names) if name == class_]
            if len(found) != 1:
                which = (
                    f"the classes {found} have this name; pass an index"
                    if found
                    else ("no class has this name")
                )
                raise ValueError(f"class {class_!r}: {which}")
            return found[0]
        if not 0 <= class_ < self.n_classes:
            raise ValueError(f"there is no class {class_}; want 0 to {self.n_classes - 1}")
        return int(class_)

    def _repr_html_(self) -> str:
        from vit_sae_plugin.analysis.notebook_html import atlas_html

        return atlas_html(self)

    def __repr__(self) -> str:
        dead = int(self.latents["is_dead"].sum())
        return (
            f"LatentAtlas({self.d_sae:,} latents, {dead:,} of them dead, over "
            f"{self.info.n_images:,} images of {self.info.data_name!r})"
        )
