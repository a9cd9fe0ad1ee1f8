"""All statistics of an atlas, side by side: fed with latents, saved, resumed, and summed up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_sae_plugin.aggregation import ImageAggregation
from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram, bin_edges
from vit_sae_plugin.analysis.atlas.atlas_info import AtlasInfo
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
from vit_sae_plugin.analysis.atlas.latent_tables import ReferenceTable
from vit_sae_plugin.analysis.counting import largest_keys, token_scan
from vit_sae_plugin.analysis.counting.class_counts import ClassCounts
from vit_sae_plugin.analysis.counting.coactivation import CoActivation
from vit_sae_plugin.analysis.counting.decoder_similarity import decoder_neighbors
from vit_sae_plugin.analysis.counting.label_statistics import label_entropy, label_std
from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch
from vit_sae_plugin.analysis.counting.latent_statistics import LatentStatistics
from vit_sae_plugin.analysis.counting.reference_images import ReferenceImages
from vit_sae_plugin.analysis.counting.token_scan import scan_tokens
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

_LATENTS_AT_ONCE = 4096
_SHARE_WITHOUT = 0.1
"""The first rule must give reference images to all but this share of the live latents."""


def compile_kernels() -> None:
    """Compile now what the first batch would wait for."""
    for module in (token_scan, largest_keys):
        module.load_kernels(module.__file__)


class AtlasBuilder(nn.Module):
    """Collects everything an atlas holds, batch by batch.

    Its buffers are its whole state, but for the table of reference images' ids: both together
    are saved and loaded to resume.

    Args:
        d_sae: number of latents.
        layout: what each token is.
        aggregations: name → aggregation to rank images by; the first is the default.
        threshold: of the class-level and data-set-level counts.
        n_reference_images: images kept for each latent and aggregation.
        n_classes: classes known beforehand; more are added as they are seen.
        n_coactivation_images: sample size of the co-activation estimate.
    """

    def __init__(
        self,
        d_sae: int,
        layout: TokenLayout,
        aggregations: dict[str, ImageAggregation],
        *,
        threshold: float,
        n_reference_images: int,
        n_classes: int = 0,
        n_coactivation_images: int = 256,
    ) -> None:
        super().__init__()
        self.statistics = LatentStatistics(d_sae)
        self.histogram = ActivationHistogram(d_sae)
        self.class_counts = ClassCounts(d_sae, n_classes)
        self.coactivation = CoActivation(d_sae, n_coactivation_images)
        self.references = nn.ModuleDict(
            {
                name: ReferenceImages(d_sae, n_reference_images, aggregation)
                for name, aggregation in aggregations.items()
            }
        )
        self._layout, self._threshold = layout, threshold
        self._images: dict[int, tuple[str, int]] = {}
        self._prune_above = 200_000

    @torch.no_grad()
    def update(
        self,
        latents_btd: Float[Tensor, "batch token d_sae"],
        index: Int[Tensor, " batch"],
        label: Int[Tensor, " batch"],
        ids: Sequence[str],
    ) -> None:
        """Take in the latents of some images, none of which it has seen before.

        Args:
            index: index of each image in its source.
            label: class index of each image, −1 for none.
            ids: name of each image.
        """
        device = self.histogram.counts.device
        latents_btd = latents_btd.to(device)
        scan = scan_tokens(
            latents_btd, self._layout.patch_of_token, self._threshold, self.histogram
        )
        batch = LatentBatch(latents_btd, index.to(device), label.to(device), scan, self._threshold)
        self.statistics.update(batch)
        self.class_counts.update(batch)
        self.coactivation.update(batch)
        entered = torch.cat([references.update(batch) for references in self._reference_images()])
        positions = entered.unique().cpu()
        for position, image, class_ in zip(
            positions.tolist(), index[positions].tolist(), label[positions].tolist(), strict=True
        ):
            self._images[image] = (ids[position], class_)
        if len(self._images) > self._prune_above:
            self._keep_only_referenced()

    def image_table(self) -> pd.DataFrame:
        """``id`` and ``label`` (−1: none) of the reference images, by image index."""
        self._keep_only_referenced()
        index = sorted(self._images)
        return pd.DataFrame(
            {
                "id": pd.array([self._images[i][0] for i in index], dtype="string"),
                "label": np.array([self._images[i][1] for i in index], dtype=np.int64),
            },
            index=pd.Index(index, name="image", dtype=np.int64),
        )

    def settle(self) -> None:
        """Bring every buffer up to date before saving them."""
        for keys in (self.coactivation.sketch, *(r.largest for r in self._reference_images())):
            keys.settle()

    def load_image_table(self, table: pd.DataFrame) -> None:
        rows = zip(table.index, table["id"], table["label"], strict=True)
        self._images = {int(index): (id_, int(label)) for index, id_, label in rows}

    def build(
        self,
        info: AtlasInfo,
        W_dec: Float[Tensor, "d_sae d_in"],
        *,
        n_partners: int,
        skipped_images: pd.DataFrame,
        progress: bool = False,
    ) -> LatentAtlas:
        """Sum up what was seen."""
        info.n_images = int(self.statistics.n_images)
        info.n_skipped_images = len(skipped_images)
        images = self.image_table()
        references = self._ordered_references()
        info.aggregations = {name: info.aggregations[name] for name in references}
        class_counts = self.class_counts.counts.cpu().numpy()
        atlas = LatentAtlas(
            info=info,
            latents=pd.DataFrame(index=pd.RangeIndex(info.d_sae, name="latent")),
            references=references,
            images=images.assign(label=images["label"].astype("Int64").replace(-1, pd.NA)),
            histogram=self.histogram.counts.cpu().numpy(),
            histogram_edges=bin_edges().numpy(),
            class_counts=class_counts,
            class_n_images=self.class_counts.n_images.cpu().numpy(),
            coactive_partners=self.coactivation.partners(
                self.statistics.n_active_images, n_partners, progress
            ),
            similar_partners=decoder_neighbors(W_dec.detach(), n_partners),
            skipped_images=skipped_images,
        )
        self._fill_latent_table(atlas, images["label"])
        return atlas

    def _fill_latent_table(self, atlas: LatentAtlas, label_of_image: pd.Series) -> None:
        statistics, table = self.statistics, atlas.latents
        token_frequency = statistics.token_frequency().cpu().numpy()
        table["frequency"] = statistics.frequency().cpu().numpy()
        table["token_frequency"] = token_frequency
        table["n_active_images"] = statistics.n_active_images.cpu().numpy()
        table["n_active_tokens"] = statistics.n_active_tokens.cpu().numpy()
        table["mean_activation"] = statistics.mean_activation().cpu().numpy()
        table["max_activation"] = statistics.max_activation().cpu().numpy()
        for position, (name, reference) in enumerate(atlas.references.items()):
            suffix = "" if position == 0 else f"_by_{name}"
            labels = _labels(reference, label_of_image)
            table[f"label_entropy{suffix}"] = label_entropy(reference.value, labels)
            table[f"label_std{suffix}"] = label_std(reference.value, labels)
            table[f"n_reference_images{suffix}"] = (reference.image >= 0).sum(axis=1)
        table["dataset_count"] = self.class_counts.dataset_counts.cpu().numpy()
        table["top_class"], table["top_class_share"] = _top_class(atlas.class_counts)
        table["top_class_name"] = atlas.class_names_of(table["top_class"])
        table["top_class_by_rate"] = _top_class_by_rate(atlas.class_counts, atlas.class_n_images)
        table["top_class_name_by_rate"] = atlas.class_names_of(table["top_class_by_rate"])
        table["is_dead"] = statistics.is_dead.cpu().numpy()
        table["is_dense"] = token_frequency > atlas.info.dense_frequency

    def _ordered_references(self) -> dict[str, ReferenceTable]:
        """The tables by name, ``max`` in front where the first rule blanks too many latents."""
        tables = {name: r.table() for name, r in self._named_references()}
        first, is_live = next(iter(tables)), ~self.statistics.is_dead.cpu().numpy()
        n_without = int((is_live & (tables[first].image[:, 0] < 0)).sum())
        if n_without <= _SHARE_WITHOUT * is_live.sum():
            return tables
        has_max = "max" in tables and first != "max"
        warnings.warn(
            f"{n_without:,} of {is_live.sum():,} live latents have no reference image by {first}: "
            f"no token passes {self._threshold:.3g}. "
            + ("Reference images are by max; pass" if has_max else "Rank by max, or pass")
            + " a smaller threshold= (--threshold) to count more tokens",
            stacklevel=5,
        )
        return {"max": tables["max"], **tables} if has_max else tables

    def _named_references(self) -> list[tuple[str, ReferenceImages]]:
        return [(name, r) for name, r in self.references.items() if isinstance(r, ReferenceImages)]

    def _reference_images(self) -> list[ReferenceImages]:
        return [r for _, r in self._named_references()]

    def _keep_only_referenced(self) -> None:
        referenced = np.unique(np.concatenate([r.table().image for r in self._reference_images()]))
        self._images = {int(i): self._images[int(i)] for i in referenced if i >= 0}
        self._prune_above = max(200_000, 2 * len(self._images))


def _labels(reference: ReferenceTable, label_of_image: pd.Series) -> Int[np.ndarray, "d_sae k"]:
    if label_of_image.empty:
        return np.full(reference.image.shape, -1)
    position = np.searchsorted(label_of_image.index, reference.image.clip(min=0))
    position = position.clip(max=len(label_of_image) - 1)
    return np.where(reference.image >= 0, label_of_image.to_numpy()[position], -1)


def _top_class(counts: Int[np.ndarray, "n_classes d_sae"]) -> tuple[pd.Series, np.ndarray]:
    """The class with the largest count, and its share of all classes' counts; missing if none."""
    d_sae = counts.shape[1]
    index = pd.RangeIndex(d_sae)
    if len(counts) == 0:
        return pd.Series(pd.NA, index=index, dtype="Int64"), np.full(d_sae, np.nan)
    total = counts.sum(axis=0, dtype=np.int64)
    top = pd.Series(counts.argmax(axis=0), index=index, dtype="Int64").mask(total == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return top, counts.max(axis=0) / np.where(total == 0, np.nan, total)


def _top_class_by_rate(
    counts: Int[np.ndarray, "n_classes d_sae"], n_images: Int[np.ndarray, " n_classes"]
) -> pd.Series:
    """The class whose images have most active tokens each: counts favour classes of many images."""
    top = np.full(counts.shape[1], -1)
    for start in range(0, counts.shape[1] if len(counts) else 0, _LATENTS_AT_ONCE):
        some = slice(start, start + _LATENTS_AT_ONCE)
        rates = counts[:, some] / np.maximum(n_images, 1)[:, None]
        top[some] = np.where(rates.any(axis=0), rates.argmax(axis=0), -1)
    return pd.Series(top, dtype="Int64").replace(-1, pd.NA)
