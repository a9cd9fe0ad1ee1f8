"""What a data set taught about each latent: statistics, reference images, classes, relatives."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from PIL import Image

from vit_sae_plugin.analysis.atlas.atlas_folder import read_atlas, write_atlas
from vit_sae_plugin.analysis.atlas.atlas_info import AtlasInfo
from vit_sae_plugin.analysis.atlas.latent_columns import (
    COLUMNS_FILE,
    checked_columns,
    read_columns,
    write_columns,
)
from vit_sae_plugin.analysis.atlas.latent_names import (
    NAMES_FILE,
    LatentName,
    read_names,
    write_names,
)
from vit_sae_plugin.analysis.atlas.latent_tables import Partners, ReferenceTable
from vit_sae_plugin.analysis.html_pieces import data_uri, table, text
from vit_sae_plugin.datasets import ImageSource, open_images
from vit_sae_plugin.datasets.image_lookup import images_by_index

_SHOWN_COLUMNS = ["frequency", "mean_activation", "label_entropy"]


@dataclass
class LatentAtlas:
    """Statistics of every latent of an SAE over a data set, made by ``analyze``.

    ``atlas.latents`` is the table to sort and filter; the methods look up one latent or class.
    A dead latent's statistics are missing values, and it has no reference images.
    """

    info: AtlasInfo
    """What it was made from."""
    latents: pd.DataFrame
    """One row for each latent (see ``analyze`` for its columns)."""
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
    names: dict[int, LatentName] = field(default_factory=dict)
    """Latent → its name and note, for those that have any; ``names.json`` in the folder."""
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Further measures of each latent, such as its stability; ``columns.json`` in the folder."""
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
            images: the source that was analysed, or what ``open_images`` takes; with it, the
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

    def top_classes(self, latent: int, n: int = 10, by: str = "count") -> pd.DataFrame:
        """The classes whose images activate a latent most.

        Args:
            latent: its index.
            n: at most this many classes.
            by: ``"count"``, active tokens summed over the class, which favours large classes; or
                ``"rate"``, active tokens an image of the class.

        Returns:
            Rows are class indices (``class``); columns ``class_name``, ``count`` (active tokens,
            summed over the class), ``count_per_image``, ``share`` of the count over all classes.
            Only classes with a count; among equal ones the smaller index comes first.
        """
        counts = self.class_counts[:, self.check_latent(latent)]
        if by not in ("count", "rate"):
            raise ValueError(f"by is {by!r}; want 'count' or 'rate'")
        keys = counts / np.maximum(self.class_n_images, 1) if by == "rate" else counts
        top = np.argsort(-keys.astype(np.float64), kind="stable")[:n]
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
        return table.join(self.latents[_SHOWN_COLUMNS])

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
        """Write the atlas as a folder; see ``vit_sae_plugin.analysis.atlas.atlas_folder``.

        An earlier atlas in the folder is replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        self.folder = Path(folder)
        frames = {
            "latents": self.latents,
            "images": self.images,
            "skipped_images": self.skipped_images,
        }
        partners = {"coactive": self.coactive_partners, "similar": self.similar_partners}
        arrays = {
            "reference_images": {
                f"{name}/{part}": array
                for name, table in self.references.items()
                for part, array in vars(table).items()
            },
            "histograms": {"counts": self.histogram, "edges": self.histogram_edges},
            "class_counts": {"counts": self.class_counts, "n_images": self.class_n_images},
            "partners": {
                f"{kind}/{part}": array
                for kind, table in partners.items()
                for part, array in vars(table).items()
            },
        }
        write_atlas(self.folder, self.info, frames, arrays)
        if self.names:
            write_names(self.folder / NAMES_FILE, self.names, self.info.sae_sha256)
        if len(self.columns.columns):
            write_columns(self.folder / COLUMNS_FILE, self.columns, self.info.sae_sha256)
        return self.folder

    def add_columns(self, columns: pd.DataFrame) -> None:
        """Keep further measures of each latent, which the report shows, sorts and filters by.

        They replace those of the same name. An atlas that has a folder keeps them there.

        Args:
            columns: numbers, a row for each latent; missing where there is none.

        Raises:
            ValueError: other rows than the latents, or a column of no numbers.
        """
        added = checked_columns(columns, self.d_sae)
        kept = [name for name in self.columns if name not in added]
        self.columns = pd.concat([self.columns[kept], added], axis=1) if kept else added
        if self.folder is not None:
            write_columns(self.folder / COLUMNS_FILE, self.columns, self.info.sae_sha256)

    def read_names(self, path: str | Path) -> None:
        """Take over names from a file that the report, or another atlas of this SAE, saved.

        They replace those of the same latents; an entry without name and note takes them away. An
        atlas that has a folder keeps them there.

        Raises:
            ValueError: it is no such file, or damaged, or about another SAE.
        """
        read = read_names(path, sae_sha256=self.info.sae_sha256, d_sae=self.d_sae)
        self.set_names({**self.names, **read})

    def set_names(self, names: Mapping[int, LatentName]) -> None:
        """Replace all names; an atlas that has a folder keeps them there.

        Entries without name and note are left out.

        Raises:
            ValueError: there is no such latent.
        """
        self.names = {
            self.check_latent(latent): name for latent, name in names.items() if not name.is_empty
        }
        if self.folder is not None:
            write_names(self.folder / NAMES_FILE, self.names, self.info.sae_sha256)

    @classmethod
    def load(cls, folder: str | Path) -> LatentAtlas:
        """Open an atlas that was saved.

        Raises:
            ValueError: the folder holds no atlas, one of an unknown schema version, or a damaged
                one.
        """
        info, frames, arrays = read_atlas(Path(folder))

        def part(file: str, kind: str, names: tuple[str, ...]) -> list[np.ndarray]:
            return [arrays[file][f"{kind}/{name}"] for name in names]

        columns = ("image", "value", "peak_patch")
        atlas = cls(
            info=info,
            latents=frames["latents"],
            references={
                name: ReferenceTable(*part("reference_images", name, columns))
                for name in info.aggregations
            },
            images=frames["images"],
            histogram=arrays["histograms"]["counts"],
            histogram_edges=arrays["histograms"]["edges"],
            class_counts=arrays["class_counts"]["counts"],
            class_n_images=arrays["class_counts"]["n_images"],
            coactive_partners=Partners(*part("partners", "coactive", ("latent", "score"))),
            similar_partners=Partners(*part("partners", "similar", ("latent", "score"))),
            skipped_images=frames["skipped_images"],
            folder=Path(folder),
        )
        path = Path(folder) / NAMES_FILE
        if path.is_file():
            try:
                atlas.names = read_names(path, sae_sha256=info.sae_sha256, d_sae=info.d_sae)
            except ValueError as error:
                warnings.warn(f"opened without names of latents: {error}", stacklevel=2)
        path = Path(folder) / COLUMNS_FILE
        if path.is_file():
            try:
                atlas.columns = read_columns(path, sae_sha256=info.sae_sha256, d_sae=info.d_sae)
            except ValueError as error:
                warnings.warn(f"opened without further columns: {error}", stacklevel=2)
        return atlas

    def _partners(self, partners: Partners, latent: int, n: int, score: str) -> pd.DataFrame:
        others = partners.latent[self.check_latent(latent)]
        keep = (others >= 0).nonzero()[0][:n]
        table = pd.DataFrame(
            {score: partners.score[latent, keep]}, index=pd.Index(others[keep], name="latent")
        )
        return table.join(self.latents[_SHOWN_COLUMNS])

    def _references(self, aggregation: str | None) -> ReferenceTable:
        name = self.default_aggregation if aggregation is None else aggregation
        if name not in self.references:
            raise ValueError(
                f"this atlas has no reference images under {name!r}; want one of "
                f"{', '.join(map(repr, self.references))}"
            )
        return self.references[name]

    def _class_index(self, class_: int | str) -> int:
        if self.n_classes == 0:
            raise ValueError("this atlas has no classes; want one of labelled images")
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
        """A summary, and the ten most frequent latents that are not dense."""
        latents, info = self.latents, self.info
        facts = {
            "latents": self.d_sae,
            "dead": int(latents["is_dead"].sum()),
            "dense": int(latents["is_dense"].sum()),
            "images": info.n_images,
            "skipped": info.n_skipped_images,
            "classes": self.n_classes,
        }
        shown = latents[~latents["is_dense"] & ~latents["is_dead"]]
        columns = [*_SHOWN_COLUMNS[:2], "max_activation", "label_entropy", "top_class_name"]
        most_frequent = shown.sort_values("frequency", ascending=False, kind="stable").head(10)
        return (
            f"<div><b>LatentAtlas</b> of {text(info.sae_metadata.get('hook_name'))} over "
            f"{text(info.data_name)}<br>"
            + " &middot; ".join(f"{value:,} {name}" for name, value in facts.items())
            + f"</div>{table(most_frequent[columns])}"
        )

    def __repr__(self) -> str:
        dead = int(self.latents["is_dead"].sum())
        return (
            f"LatentAtlas({self.d_sae:,} latents, {dead:,} of them dead, over "
            f"{self.info.n_images:,} images of {self.info.data_name!r})"
        )


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
        """Statistics, top classes, relatives, and the reference images where they are at hand."""
        pictures = "".join(
            f'<img src="{data_uri(image)}" width="96" style="margin:0 4px 4px 0">'
            for image in self.pictures()
        )
        columns = [
            ("Statistics", self.statistics.to_frame().head(12)),
            ("Top classes", self.top_classes),
            ("Co-active", self.coactive),
            ("Similar", self.similar),
        ]
        tables = "".join(
            f'<div style="display:inline-block;vertical-align:top;margin-right:24px">'
            f"<i>{title}</i>{table(frame)}</div>"
            for title, frame in columns
        )
        references = "" if pictures else table(self.reference_images)
        return f"<div><b>Latent {self.latent}</b></div><div>{pictures}</div>{references}{tables}"
