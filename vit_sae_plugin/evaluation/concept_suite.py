"""``concept_suite``: do an SAE's latents mean anything, and more than what comes free?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.activations.image_walk import ImageWalk
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.absorption import KS as ABSORPTION_KS
from vit_sae_plugin.evaluation.absorption import absorption
from vit_sae_plugin.evaluation.bootstrap import percentiles, resampled_counts
from vit_sae_plugin.evaluation.concept_masks import Concept
from vit_sae_plugin.evaluation.concept_methods import LATENTS, FeatureMethod, feature_methods
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.features import SparseFeatures
from vit_sae_plugin.evaluation.image_concepts import ImageConcepts, check_groups, presence
from vit_sae_plugin.evaluation.monosemanticity import MonosemanticityTotals
from vit_sae_plugin.evaluation.reconstruction import check_finite
from vit_sae_plugin.evaluation.sparse_probing import KS, area_over_k, probe_concepts
from vit_sae_plugin.evaluation.spatial_coherence import SpatialCoherenceTotals
from vit_sae_plugin.hooked_vit import HookedViT

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.datasets import ImageSource

N_RESAMPLES = 1000
_MAX_VALUES = 2**23
_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)


@torch.no_grad()
def concept_suite(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    controls: Mapping[str, SAE[Any]] | None = None,
    encoder: HookedViT | EmbeddingRows | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_images: int | None = 5000,
    ks: Sequence[int] = KS,
    min_images: int = 10,
    min_maps: int = 50,
    n_spatial_features: int = 500,
    n_calibration_images: int = 256,
    batch_size_images: int = 64,
    source: ActivationSource | None = None,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Four measures of whether latents mean something, each beside its controls, in one table.

    An image's features are the largest over its patches (over all tokens, where the SAE reads no
    patches). Images go through the model once, and once through the encoder. Memory grows with
    ``n_images`` only by the features of whole images that aren't zero.

    ``summary`` has a row for each ``measure`` and ``method``: its ``value``, a 95 % interval
    (``low``, ``high``), what ``chance`` gives, by how much the latents are above this method
    (``latents_above``, with interval; paired: the same draws for both), and ``n``, how many
    features, concepts or groups it is the mean of.

    - ``monosemanticity`` (see `MonosemanticityTotals`): how alike the images are that activate
      a feature, of those that at least ``min_images`` do. Rarer features score higher, so look at
      them by frequency too. Intervals are over images, in blocks; chance is the mean likeness of
      all images.
    - ``spatial_coherence`` (see `SpatialCoherenceTotals`): Moran's I of maps, of a random
      choice of features. Neighbouring patches have like activations, so any direction has some.
      Intervals are over images.
    - ``sparse_probing`` (see `probe_concepts`): AUROC on other images of a probe on the k best
      features, mean over log k; chance is 0.5. Every kind of concept weighs the same. Intervals are
      over concepts.
    - ``absorption_jaccard``, ``absorption_f1_gap`` (see `absorption`): lower is better. Chance
      is the Jaccard index of classes that are no siblings. Intervals are over groups.

    Further tables: ``monosemanticity`` by method and the share of images that activate a feature;
    ``sparse_probing`` by method, kind and k; ``absorption`` by method and group; ``latents``, the
    first two measures of each latent.

    Methods are those of `feature_methods`: ``latents``, ``neurons``, ``random_latents``, and
    the controls.

    Args:
        model: the model whose activations the SAE reads.
        sae: any SAELens SAE.
        images: an image source, or what ``open_images`` makes one of.
        controls: name → SAE on the same activations, such as one trained as long with its decoder
            frozen (``freeze_decoder`` of ``ViTSAERunnerConfig``).
        encoder: judges how alike images are: a model other than the SAE's, or embeddings with the
            images' ids. Default: of shape scenes, which colours, shapes and coloured shapes they
            show; of others the SAE's own model, which is no independent judge (and said in a note).
        groups: group → names of sibling classes. Default: of shape scenes, coloured shapes of one
            colour or one shape.
        n_images: how many to use, drawn at random; None: all.
        ks: numbers of features that a probe gets.
        min_images: concepts on fewer images of either half are left out, and so are features
            active on fewer images.
        min_maps: features with fewer maps have no spatial coherence.
        n_spatial_features: how many features of each method it is measured on.
        n_calibration_images: from which means and thresholds of the controls are taken.
        batch_size_images: images in a forward pass.
        source: hook and tokens, for an SAE whose metadata don't name them.
        n_workers: processes that decode images.
        seed: of the choice of images and features, of random directions, and of the bootstrap.
        progress: show progress bars.

    Raises:
        ValueError: a control reads other activations; the encoder's embeddings lack an image; a
            group has fewer than two classes, or unknown ones; a setting is out of range.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source)
    ks = _checked_ks(ks)
    named = ImageConcepts(images)
    if groups is not None:
        check_groups(groups, named.class_names)
    own_groups = named.sibling_groups()
    asked_groups, groups = groups, own_groups if groups is None else groups
    walk_settings: dict[str, Any] = {
        "batch_size_images": batch_size_images,
        "shuffle": True,
        "seed": seed,
        "n_workers": n_workers,
    }
    reader = _TokenReader(attached)
    calibration = attached.walk(
        images, n_images=_fewer(n_calibration_images, n_images), **walk_settings
    )
    sample = torch.cat([reader.read(batch.pixels).flatten(0, 1) for batch in calibration])
    methods = feature_methods(attached, controls or {}, sample, seed)
    kept = {
        name: _Kept(method, sample, reader.grid, n_spatial_features, min_maps, seed)
        for name, method in methods.items()
    }
    walk = attached.walk(
        images, n_images=n_images, progress=progress, description="concepts", **walk_settings
    )
    indices, ids, of_images = [], [], []
    for batch in walk:
        acts_btd = reader.read(batch.pixels)
        for one in kept.values():
            one.update(acts_btd, batch.index)
        indices.append(batch.index)
        ids += batch.ids
        pairs = zip(batch.index.tolist(), batch.label.tolist(), strict=True)
        of_images += [named.of_image(index, label) for index, label in pairs]
    if walk.n_seen < 4:
        raise ValueError(f"the concept suite got {walk.n_seen} images; want 4 or more, for halves")
    index = torch.cat(indices)
    notes: list[str] = []
    if encoder is None and own_groups is None:
        encoder = model
        notes.append(
            "monosemanticity is judged by the SAE's own model, which is no independent encoder; "
            "give another one"
        )
    embeddings, encoder_name = _embeddings(
        encoder, images, index, ids, of_images, walk_settings | {"n_images": n_images}
    )
    concepts, present = presence(of_images, min_images)
    if not concepts:
        lacking = f"no concept is on {min_images} images of each half"
        if asked_groups is not None:
            raise ValueError(f"{lacking}; want more images, to compare the classes of groups")
        notes.append(f"no sparse probing, no absorption: {lacking}")
    elif not groups:
        notes.append("no absorption: there are no groups of sibling classes")
    if reader.grid is None:
        notes.append("no spatial coherence: the SAE reads no patches")

    results: dict[tuple[str, str], _Score] = {}
    by_frequency, by_k, by_group = {}, {}, {}
    latents = pd.DataFrame(index=pd.RangeIndex(attached.d_sae, name="latent"))
    for name, one in tqdm(kept.items(), desc="measures", disable=not progress):
        score, table = _monosemanticity(one.features, embeddings, index, min_images, seed)
        results["monosemanticity", name] = score
        by_frequency[name] = _by_frequency(table, len(index))
        if name == LATENTS:
            latents = latents.join(table)
        if one.coherence is not None:
            score, table = one.spatial_coherence(seed)
            results["spatial_coherence", name] = score
            if name == LATENTS:
                latents = latents.join(table)
        if not concepts:
            continue
        probed, best = probe_concepts(one.features, concepts, present, (*ks, *ABSORPTION_KS))
        of_ks = probed[probed.index.isin(ks, level="k")]
        area = area_over_k(of_ks["auroc"])
        kinds = area.index.get_level_values("kind")
        results["sparse_probing", name] = _over_units(area.to_numpy(), list(kinds), 0.5, seed)
        by_k[name] = of_ks.groupby(["kind", "k"]).mean()
        if groups:
            of_groups, chance = absorption(concepts, best, probed["f1"], groups)
            by_group[name] = of_groups
            for column, chance_of in (("jaccard", chance), ("f1_gap", np.nan)):
                values = of_groups[column].to_numpy()
                if len(values):
                    results[f"absorption_{column}", name] = _over_units(
                        values, None, chance_of, seed
                    )
    if groups and concepts and not any(map(len, by_group.values())):
        lacking = f"no group has two classes on {min_images} images of each half"
        if asked_groups is not None:
            raise ValueError(f"{lacking}; want more images, or groups of their classes")
        notes.append(f"no absorption: {lacking}")
    tables = {"summary": _summary(results)}
    for title, parts in (
        ("monosemanticity", by_frequency),
        ("sparse_probing", by_k),
        ("absorption", by_group),
    ):
        if parts and any(map(len, parts.values())):
            tables[title] = pd.concat(parts, names=["method"])
    tables["latents"] = latents
    settings = {
        "images": images.name,
        "n_images": walk.n_seen,
        "hook_name": attached.source.hook_name,
        "token_kind": attached.source.token_kind,
        "architecture": sae.cfg.architecture(),
        "d_sae": attached.d_sae,
        "encoder": encoder_name,
        "n_concepts": len(concepts),
        "ks": ks,
        "l0": {name: round(one.l0, 1) for name, one in kept.items()},
        "n_candidates": {name: method.n_features for name, method in methods.items()},
        "seed": seed,
    }
    return EvaluationReport(tables, settings, notes)


def _checked_ks(ks: Sequence[int]) -> list[int]:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks is {list(ks)}; want numbers of features from 1 up")
    return sorted(set(ks))


def _fewer(one: int, other: int | None) -> int:
    return one if other is None else min(one, other)


class _TokenReader:
    """The tokens that features are taken from: patches if the SAE reads any, else all it reads."""

    def __init__(self, attached: AttachedSAE):
        self.attached = attached
        self.grid: tuple[int, int] | None = None
        self._tokens: slice | Tensor = slice(None)
        if attached.layout.has("patch"):
            self._tokens = attached.layout.role_positions("patch")
            if len(self._tokens) == attached.layout.grid[0] * attached.layout.grid[1]:
                self.grid = attached.layout.grid
                self._tokens = attached.layout.positions("patches")

    def read(self, pixels: Tensor) -> Float[Tensor, "images token d_in"]:
        acts_btd = self.attached.activations(pixels)[:, self._tokens]
        check_finite(acts=acts_btd)
        return acts_btd


class _Kept:
    """What is kept of one method's features while images pass."""

    def __init__(
        self,
        method: FeatureMethod,
        sample: Tensor,
        grid: tuple[int, int] | None,
        n_spatial: int,
        min_maps: int,
        seed: int,
    ):
        self.method, self.grid = method, grid
        self.features = SparseFeatures(method.n_features)
        self._n_active = self._n_tokens = 0
        live = method.n_active(sample).nonzero().flatten()
        generator = torch.Generator().manual_seed(seed)
        drawn = live[torch.randperm(len(live), generator=generator)[:n_spatial]]
        self.spatial = drawn.sort().values
        self.coherence = None
        if grid is not None:
            self.coherence = SpatialCoherenceTotals(len(self.spatial), grid, min_maps)

    @property
    def l0(self) -> float:
        """Mean number of features above 0 at a token."""
        return self._n_active / max(1, self._n_tokens)

    def update(self, acts_btd: Tensor, index: Tensor) -> None:
        for part, features in self.method.parts(acts_btd):
            check_finite(latents=features)
            self._n_active += int((features > 0).sum())
            self._n_tokens += features.shape[0] * features.shape[1]
            self.features.append(features.amax(1))
            if self.coherence is not None and self.grid is not None:
                chosen = features[..., self.spatial.to(features.device)]
                maps = chosen.unflatten(1, self.grid)
                self.coherence.update(maps, index[part])

    def spatial_coherence(self, seed: int) -> tuple[_Score, pd.DataFrame]:
        found = self.coherence.compute(N_RESAMPLES, seed)  # type: ignore[union-attr]
        table = pd.DataFrame(
            {"spatial_coherence": found.score, "n_maps": found.n_maps}, index=self.spatial.numpy()
        )
        n = int(np.isfinite(found.score).sum())
        value = float(np.nanmean(found.score)) if n else np.nan
        return _Score(value, found.resampled, found.chance, n), table


class _Score(NamedTuple):
    value: float
    resampled: Float[np.ndarray, " n_resamples"]
    chance: float
    n: int


def _monosemanticity(
    features: SparseFeatures, embeddings: Tensor, index: Tensor, min_images: int, seed: int
) -> tuple[_Score, pd.DataFrame]:
    """Of features active on enough images, a few at a time: their sums are wider than they are."""
    table = pd.DataFrame(
        np.nan,
        columns=["monosemanticity", "monosemanticity_low", "monosemanticity_high"],
        index=range(features.n_features),
    )
    table["n_active_images"] = features.n_active().numpy()
    chosen = (features.n_active() >= min_images).nonzero().flatten()
    resampled, n_resampled = np.zeros(N_RESAMPLES), np.zeros(N_RESAMPLES)
    chance = np.nan
    for block in chosen.split(max(1, _MAX_VALUES // features.n)):
        totals = MonosemanticityTotals(len(block))
        totals.update(features.columns(block).T, embeddings, index)
        part = totals.compute(N_RESAMPLES, seed)
        table.iloc[block.numpy(), :3] = np.stack([part.score, part.low, part.high], axis=1)
        resampled += part.resampled_sum
        n_resampled += part.resampled_n
        chance = part.chance
    n = int(table["monosemanticity"].notna().sum())
    resampled /= np.maximum(1, n_resampled)
    return _Score(table["monosemanticity"].mean(), resampled, chance, n), table


def _by_frequency(table: pd.DataFrame, n_images: int) -> pd.DataFrame:
    """Mean monosemanticity of features by the share of images that activate them."""
    share = pd.cut(table["n_active_images"] / n_images, [0, *_SHARES], labels=_SHARES)
    grouped = table["monosemanticity"].groupby(share.rename("share_of_images_up_to"), observed=True)
    found = grouped.agg(["mean", "count"]).set_axis(["monosemanticity", "n_features"], axis=1)
    return found[found["n_features"] > 0]


def _over_units(
    values: Float[np.ndarray, " units"], strata: Sequence[str] | None, chance: float, seed: int
) -> _Score:
    """The mean over units, within their strata, each of which weighs the same."""
    of = np.zeros(len(values)) if strata is None else np.unique(strata, return_inverse=True)[1]
    means, resampled = [], []
    for stratum in np.unique(of):
        some = values[of == stratum]
        means.append(some.mean())
        resampled.append(resampled_counts(len(some), N_RESAMPLES, seed) @ some / len(some))
    return _Score(float(np.mean(means)), np.mean(resampled, axis=0), chance, len(values))


def _summary(results: Mapping[tuple[str, str], _Score]) -> pd.DataFrame:
    rows = {}
    for (measure, method), score in results.items():
        low, high = percentiles(score.resampled)
        row = {"value": score.value, "low": low, "high": high, "chance": score.chance}
        if method != LATENTS:
            latents = results[measure, LATENTS]
            below, above = percentiles(latents.resampled - score.resampled)
            row |= {
                "latents_above": latents.value - score.value,
                "latents_above_low": below,
                "latents_above_high": above,
            }
        rows[measure, method] = row | {"n": score.n}
    columns = ["value", "low", "high", "chance"]
    columns += ["latents_above", "latents_above_low", "latents_above_high", "n"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.index = pd.MultiIndex.from_tuples(rows, names=["measure", "method"])
    order = list(dict.fromkeys(measure for measure, _ in rows))
    return table.loc[order]


def _embeddings(
    encoder: HookedViT | EmbeddingRows | None,
    images: ImageSource,
    index: Tensor,
    ids: Sequence[str],
    of_images: Sequence[set[Concept]],
    walk_settings: dict[str, Any],
) -> tuple[Float[Tensor, "images d_embed"], str]:
    """One row for each image, and who made them."""
    if encoder is None:
        columns = {c: at for at, c in enumerate(sorted({c for some in of_images for c in some}))}
        rows = torch.zeros(len(of_images), len(columns))
        for row, some in zip(rows, of_images, strict=True):
            row[[columns[concept] for concept in some]] = 1
        return rows, "colours, shapes and coloured shapes of the scene"
    if isinstance(encoder, HookedViT):
        of_encoder = ActivationSource.from_model(encoder, "hook_image_embed", "all")
        found: dict[int, Tensor] = {}
        for batch in ImageWalk(encoder, images, **walk_settings):
            acts = of_encoder.activations(encoder, batch.pixels)[:, 0].float().cpu()
            found |= dict(zip(batch.index.tolist(), acts, strict=True))
        return torch.stack([found[i] for i in index.tolist()]), encoder.model_name
    row_of_id = {encoder.id(row): row for row in range(len(encoder))}
    lost = [id_ for id_ in ids if id_ not in row_of_id]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(ids)} images have no row in {encoder.name}, such as "
            f"{lost[0]!r}; want an embedding for each, with the image's id"
        )
    return encoder.tensor(np.array([row_of_id[id_] for id_ in ids])), encoder.name
