"""Which concepts appear at which k of a Matryoshka SAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.features import SparseFeatures
from vit_sae_plugin.evaluation.image_concepts import ImageConcepts, presence
from vit_sae_plugin.evaluation.sparse_probing import probe_concepts
from vit_sae_plugin.saes.nested_levels import doubling_k_list

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


@torch.no_grad()
def concept_levels(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    ks: Sequence[int] | None = None,
    min_auroc: float = 0.9,
    min_images: int = 10,
    n_images: int | None = 2000,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """For each k, which concepts a single latent tells, when only each token's k largest are kept.

    The latent is chosen on one half of the images and scored on the other (``probe_concepts``);
    concepts are those of shape scenes, or classes. A concept *appears* at the smallest k at which
    that latent's AUROC is at least ``min_auroc``.

    Args:
        model: the model that the SAE reads.
        sae: a ``matryoshka_topk`` SAE; any other where ``ks`` is given.
        images: a labelled image source, or what ``open_images`` makes one of.
        ks: numbers of latents. None: the SAE's levels.
        min_auroc: from which a concept counts as found.
        min_images: concepts on fewer images of either half are left out.
        n_images: how many to use, drawn at random; None: all.
        batch_size_images, n_workers, progress: of the walk.
        seed: of the choice of images and of the bootstrap.

    Returns:
        Tables ``levels`` (for each k and kind: ``n_latents`` in use, ``n_concepts``, ``n_found``,
        mean ``auroc`` with a 95 % interval over concepts) and ``concepts`` (for each concept and
        k: ``latent``, ``auroc``, and ``appears_at``).

    Raises:
        ValueError: the SAE has no levels and ``ks`` is None, or no concept is on enough images.
    """
    if ks is None:
        ks = _levels_of(sae)
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ValueError(f"ks is {list(ks)}; want numbers of latents from 1 up")
    images = open_images(images)
    attached, named = AttachedSAE(model, sae), ImageConcepts(images)
    features = {k: SparseFeatures(attached.d_sae) for k in ks}
    of_images = []
    tokens: Any = slice(None)
    if attached.layout.has("patch"):
        tokens = attached.layout.role_positions("patch")
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
        description="levels",
    )
    for batch in walk:
        acts_btd = attached.activations(batch.pixels)[:, tokens]
        for part in attached.rows.parts(len(acts_btd), acts_btd.shape[1]):
            for k in ks:
                features[k].append(attached.encode(acts_btd[part], k).relu().amax(1))
        pairs = zip(batch.index.tolist(), batch.label.tolist(), strict=True)
        of_images += [named.of_image(index, label) for index, label in pairs]
    concepts, present = presence(of_images, min_images)
    if not concepts:
        raise ValueError(
            f"no concept is on {min_images} images of each half of {walk.n_seen}; want more images"
        )
    parts = {}
    for k in tqdm(ks, desc="levels", disable=not progress):
        probed, best = probe_concepts(features[k], concepts, present, ks=(1,))
        table = probed.droplevel("k")[["auroc"]]
        table["latent"] = pd.Series(dict(zip(concepts, best[:, 0].tolist(), strict=True)))
        parts[k] = table
    table = pd.concat(parts, names=["k"]).reorder_levels(["kind", "concept", "k"]).sort_index()
    found = table["auroc"] >= min_auroc
    first = table.index.get_level_values("k").to_series(index=table.index).where(found)
    table["appears_at"] = first.groupby(["kind", "concept"]).transform("min").astype("Int64")
    rows = {}
    for (kind, k), some in table.groupby(["kind", "k"]):
        interval = bootstrap_mean(some["auroc"].to_numpy(), seed=seed)
        rows[kind, k] = {
            "n_latents": int((features[k].n_active() > 0).sum()),
            "n_concepts": len(some),
            "n_found": int((some["auroc"] >= min_auroc).sum()),
            "auroc": float(interval.mean),
            "auroc_low": float(np.asarray(interval.low)),
            "auroc_high": float(np.asarray(interval.high)),
        }
    summary = pd.DataFrame.from_dict(rows, orient="index")
    summary.index = pd.MultiIndex.from_tuples(rows, names=["kind", "k"])
    settings = {"images": images.name, "n_images": walk.n_seen, "min_auroc": min_auroc}
    return EvaluationReport({"levels": summary, "concepts": table}, settings)


def _levels_of(sae: SAE[Any]) -> list[int]:
    """The levels that a Matryoshka SAE, in training or saved, was trained for."""
    if (levels := getattr(sae.cfg, "levels", None)) is not None:
        return levels()
    trained_with = sae.cfg.metadata.training_architecture_details or {}
    if k_list := trained_with.get("k_list"):
        return list(k_list)
    if (k_start := trained_with.get("k_start")) is not None:
        return doubling_k_list(k_start, sae.cfg.d_sae)
    raise ValueError(
        f"this {sae.cfg.architecture()} SAE says no levels; want a matryoshka_topk one, or ks"
    )
