"""One pass over a data set: from images to an atlas of latents.

What it takes at ImageNet's size, for 49,152 latents, 1,000 classes and 1.28 million images, with
three aggregations and ten reference images each. Nothing grows with the number of images.

| what | size | bytes |
| --- | --- | --- |
| class-level counts, 32-bit | 1,000 × 49,152 × 4 B | 197 MB |
| co-activation sketches | 49,152 × 256 × 8 B | 101 MB |
| reference images: keys, peak patches | 3 × 49,152 × 10 × 12 B | 18 MB |
| histograms, 64-bit | 49,152 × 72 × 8 B | 28 MB |
| frequencies, sums, maxima | 49,152 × 44 B | 2 MB |
| ids of reference images, at most | 1.28 million × about 150 B | 192 MB |
| latents being looked at (``_ENTRIES``) | 2^24 × 4 B, three copies | 201 MB |
| ViT-B/16 and its SAE | (86 M + 75.5 M) × 4 B | 646 MB |

That is 1.4 GB besides the Python process itself, on a machine of 24 GB.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.cache.cache_names import open_cache
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows, load_embedding_rows
from vit_sae_plugin.aggregation import AggregationRule
from vit_sae_plugin.analysis.atlas.atlas_folder import check_atlas_folder, holds_atlas, read_info
from vit_sae_plugin.analysis.atlas.atlas_info import AtlasInfo
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder, compile_kernels
from vit_sae_plugin.analysis.counting.snapshot import (
    Snapshot,
    load_state,
    read_snapshot,
    remove_snapshot,
    save_snapshot,
)
from vit_sae_plugin.analysis.latent_feeds import CacheFeed, ImageFeed, LatentFeed, RowFeed
from vit_sae_plugin.analysis.ranking_rules import built, default_rules, describe, named_rules
from vit_sae_plugin.analysis.typical_activation import threshold_of, typical_activation
from vit_sae_plugin.atomic_files import delete_leftovers
from vit_sae_plugin.attached_sae import AttachedSAE, CachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import sae_fingerprint, short
from vit_sae_plugin.training.interruption import InterruptRequest

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT, TokenLayout


class AnalysisInterruptedError(KeyboardInterrupt):
    """An analysis was stopped by Ctrl-C or SIGTERM; the message says how to go on."""


@torch.no_grad()
def analyze(
    model: HookedViT | None,
    sae: SAE[Any],
    images: Any,
    *,
    source: ActivationSource | None = None,
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule] | None = None,
    threshold: float | None = None,
    n_reference_images: int = 10,
    n_partners: int = 10,
    n_coactivation_images: int = 256,
    dense_frequency: float = 0.1,
    batch_size_images: int = 64,
    n_workers: int = 0,
    folder: str | Path | None = None,
    overwrite: bool = False,
    snapshot_seconds: float = 300,
    progress: bool = True,
) -> LatentAtlas:
    """Look at every latent of an SAE over a data set, in one pass and bounded memory.

    The result doesn't depend on the batch size, the number of workers or the order of images:
    ties are broken by image index. (A model's own activations may differ in the last bit between
    batch sizes, as matrix products do.) Definitions are PatchSAE's (Lim et al., ICLR 2025,
    section 3 and Eq. 3, 4).

    The table ``atlas.latents`` has, for each latent:

    - ``frequency``: share of images in which any token is above 0 (activated frequency);
      ``token_frequency``: share of tokens; ``n_active_images``, ``n_active_tokens``.
    - ``mean_activation``: mean of the images' token-means, over the images where it is positive;
      ``max_activation``: at any token. Missing for dead latents.
    - ``label_entropy`` (nats), ``label_std``: of the labels of the reference images, missing
      unless there are ``n_reference_images`` of them; ``n_reference_images``. For the first
      aggregation; ``…_by_<name>`` for the others.
    - ``dataset_count``: active tokens over all images. ``top_class``, ``top_class_name``,
      ``top_class_share``: the class with the largest class-level count. ``top_class_by_rate``,
      ``top_class_name_by_rate``: with most active tokens an image, which large classes don't lead.
    - ``is_dead``: never above 0. ``is_dense``: ``token_frequency`` above ``dense_frequency``.

    Args:
        model: the model the SAE reads; not needed, and not run, where its activations come from a
            cache.
        sae: any SAELens SAE.
        images: an ``ImageSource``, or anything ``open_images`` takes; or an ``ActivationCache`` or
            ``"cache:PATH"``, which gives the atlas that its images would.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.
        aggregations: how to rank reference images: names, rules or modules, or a mapping that
            names them. The first is the default of the atlas. None: the rule saved with the SAE
            (``sae.cfg.aggregation``), if it has one, then ``mean``, ``count`` and ``max``.
        threshold: a token is active, for counts, where its activation is strictly above this, in
            units of activation. None: 1.05 times the SAE's typical activation on these images,
            which is PatchSAE's 0.2 for the SAE it was published for (see ``typical_activation``);
            a rule saved with the SAE keeps a threshold of its own, other than 0.2.
        n_reference_images: images kept for each latent and aggregation.
        n_partners: co-active and similar latents kept for each latent.
        n_coactivation_images: co-activation is exact for latents active on at most that many
            images, and estimated from a sample of this size beyond.
        dense_frequency: share of tokens above which a latent is flagged dense.
        batch_size_images: images that go through the model together.
        n_workers: processes that decode images.
        folder: where to save the atlas and, on the way, snapshots. None: only in memory.
        overwrite: replace an atlas, or an unfinished one, in the folder. False: go on where it
            was, or return the finished atlas, if it is of the same request.
        snapshot_seconds: how often to save. Ctrl-C and SIGTERM save too, and then stop.
        progress: show a progress bar.

    Raises:
        ValueError: the SAE doesn't fit the model, or the cache (``CacheMismatchError``); an
            aggregation is unknown or not registered; or the folder holds other files, or an
            analysis with other settings, model, SAE or data.
        AnalysisInterruptedError: Ctrl-C or SIGTERM stopped it, with its state saved.
        NoReadableImagesError: no image can be read.
    """
    cache = open_cache(images)
    feed: LatentFeed
    if cache is not None:
        feed = CacheFeed(CachedSAE(cache, sae, source=source), batch_size_images=batch_size_images)
    elif model is None:
        raise ValueError("model is None, which goes with a cache; want the model to run on images")
    else:
        feed = ImageFeed(
            AttachedSAE(model, sae, source),
            open_images(images),
            batch_size_images=batch_size_images,
            n_workers=n_workers,
        )
    settings = {
        "n_reference_images": n_reference_images,
        "n_partners": n_partners,
        "n_coactivation_images": n_coactivation_images,
        "dense_frequency": dense_frequency,
    }
    return run_pass(
        feed,
        sae,
        aggregations,
        threshold,
        settings,
        batch_size=batch_size_images,
        folder=None if folder is None else Path(folder),
        overwrite=overwrite,
        snapshot_seconds=snapshot_seconds,
        progress=progress,
    )


@torch.no_grad()
def analyze_embeddings(
    sae: SAE[Any],
    embeddings: EmbeddingRows | str | Path,
    images: Any = None,
    *,
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule] | None = ("mean",),
    threshold: float | None = None,
    n_reference_images: int = 10,
    n_partners: int = 10,
    n_coactivation_images: int = 256,
    dense_frequency: float = 0.1,
    batch_size_rows: int = 4096,
    folder: str | Path | None = None,
    overwrite: bool = False,
    snapshot_seconds: float = 300,
    progress: bool = True,
) -> LatentAtlas:
    """``analyze`` for rows of embeddings, one an image, without the model they come from.

    Args:
        sae: an SAE of such embeddings.
        embeddings: rows with ids, or a file that ``load_embedding_rows`` reads.
        images: where the pictures are, with the rows' ids: gives reference images pictures and
            labels. None: reference images are known by their ids.
        aggregations: as for ``analyze``; of one vector an image, mean, max and sum are alike.
        batch_size_rows: rows that go through the SAE together.

    The other arguments and errors are those of ``analyze``.

    Raises:
        ValueError: also, the rows are of another width than the SAE, or have no image.
    """
    if not isinstance(embeddings, EmbeddingRows):
        embeddings = load_embedding_rows(embeddings, d_in=sae.cfg.d_in)
    source = None if images is None else open_images(images)
    settings = {
        "n_reference_images": n_reference_images,
        "n_partners": n_partners,
        "n_coactivation_images": n_coactivation_images,
        "dense_frequency": dense_frequency,
    }
    return run_pass(
        RowFeed(sae, embeddings, source, batch_size=batch_size_rows),
        sae,
        aggregations,
        threshold,
        settings,
        batch_size=batch_size_rows,
        folder=None if folder is None else Path(folder),
        overwrite=overwrite,
        snapshot_seconds=snapshot_seconds,
        progress=progress,
    )


def run_pass(
    feed: LatentFeed,
    sae: SAE[Any],
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule] | None,
    threshold: float | None,
    settings: dict[str, Any],
    *,
    batch_size: int,
    folder: Path | None,
    overwrite: bool,
    snapshot_seconds: float,
    progress: bool,
) -> LatentAtlas:
    """Everything of ``analyze`` but where the latents come from."""
    if sae.W_dec.device.type == "cpu":
        # compiling takes seconds, of another processor while weights are hashed here
        threading.Thread(target=compile_kernels, daemon=True).start()
    _check_settings(settings, threshold, folder)
    if aggregations is None:
        aggregations = default_rules(getattr(sae.cfg, "aggregation", None), threshold)
    rules = named_rules(aggregations, feed.layout.n_prefix_tokens)
    facts = {**feed.facts(), **_facts_of(sae, feed.layout), **settings}
    # the first aggregation is the default, so their order counts
    asked = list(describe(rules).items())
    request = _as_json({**facts, "threshold": threshold, "aggregations": asked})

    former = _former_work(folder, request, batch_size, overwrite)
    if isinstance(former, LatentAtlas):
        if progress:
            print(f"analyze: opening the finished atlas in {folder}", file=sys.stderr)
        return former
    start = former or _new_start(feed, request, batch_size, threshold)

    built_rules = {name: built(rule, start.threshold) for name, rule in rules.items()}
    builder = AtlasBuilder(
        sae.cfg.d_sae,
        feed.layout,
        built_rules,
        threshold=start.threshold,
        n_reference_images=settings["n_reference_images"],
        n_classes=len(facts["class_names"] or ()),
        n_coactivation_images=settings["n_coactivation_images"],
    ).to("cpu" if sae.W_dec.device.type == "mps" else sae.W_dec.device)  # MPS lacks float64
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        delete_leftovers(folder)
        if former is None:
            save_snapshot(folder, start)  # marks the folder as ours
        elif start.next_batch > 0:
            load_state(folder, builder)
    end = _take_in_all(feed, builder, start, folder, snapshot_seconds, progress)
    if int(builder.statistics.n_images) == 0:
        raise ValueError(f"{feed.data_name} gave no readable image; want one or more to analyse")
    info = AtlasInfo(
        **_as_json({**facts, "aggregations": describe(built_rules)}),
        data_name=feed.data_name,
        threshold=start.threshold,
        typical_activation=start.typical_activation,
        request=request,
    )
    info.grid = feed.layout.grid
    atlas = builder.build(
        info,
        sae.W_dec,
        n_partners=settings["n_partners"],
        skipped_images=end.skipped_images,
        progress=progress,
    )
    if folder is not None:
        atlas.save(folder)
        remove_snapshot(folder)
    return atlas


def _check_settings(settings: dict[str, Any], threshold: float | None, folder: Path | None) -> None:
    if settings["n_reference_images"] < 1:
        raise ValueError(f"n_reference_images is {settings['n_reference_images']}; want 1 or more")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; want 0 or more, or None")
    if folder is not None:
        check_atlas_folder(folder)


def _facts_of(sae: SAE[Any], layout: TokenLayout) -> dict[str, Any]:
    return {
        "sae_sha256": sae_fingerprint(sae),
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "n_tokens": len(layout),
        "grid": layout.grid,
    }


def _former_work(
    folder: Path | None, request: dict[str, Any], batch_size: int, overwrite: bool
) -> Snapshot | LatentAtlas | None:
    """What the folder holds of this request: an unfinished pass, the atlas, or nothing."""
    if folder is None:
        return None
    if overwrite:
        remove_snapshot(folder)
    unfinished = read_snapshot(folder)
    if unfinished is not None:
        _check_same(unfinished.settings, {**request, "batch_size": batch_size}, folder)
        return unfinished
    if not holds_atlas(folder) or overwrite:
        return None
    _check_same(read_info(folder).request, request, folder)
    return LatentAtlas.load(folder)


def _new_start(
    feed: LatentFeed, request: dict[str, Any], batch_size: int, threshold: float | None
) -> Snapshot:
    typical = None if threshold is not None else typical_activation(feed.sample())
    tau = threshold_of(typical) if threshold is None else float(threshold)
    return Snapshot({**request, "batch_size": batch_size}, tau, typical, 0, pd.DataFrame())


def _take_in_all(
    feed: LatentFeed,
    builder: AtlasBuilder,
    start: Snapshot,
    folder: Path | None,
    snapshot_seconds: float,
    progress: bool,
) -> Snapshot:
    """Take in what is left of the images, and save on the way, at the end, and when stopped."""
    here, n_skipped = start, 0
    batches = feed.batches(start.next_batch, progress)
    saved_at = time.monotonic()

    def standing() -> Snapshot:
        later = feed.skipped().head(n_skipped)
        return replace(here, skipped_images=_join(start.skipped_images, later))

    if folder is None:
        for _, batch in batches:
            feed.take_in(builder, batch)
        n_skipped = feed.n_skipped
        return standing()
    with InterruptRequest() as stop:
        while (found := stop.wait_for(lambda: next(batches, None))) is not None:
            next_batch, batch = found
            feed.take_in(builder, batch)
            here, n_skipped = replace(here, next_batch=next_batch), feed.n_skipped
            if time.monotonic() - saved_at >= snapshot_seconds:
                save_snapshot(folder, standing(), builder)
                saved_at = time.monotonic()
        if not stop.requested:
            n_skipped = feed.n_skipped
        if here is not start:  # what follows the last batch can take minutes, too
            save_snapshot(folder, standing(), builder)
    if stop.requested:
        raise AnalysisInterruptedError(
            f"stopped after {int(builder.statistics.n_images):,} images; the same command goes on "
            f"from there (the unfinished atlas is in {folder})"
        )
    return standing()


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON, where tuples are lists."""
    return json.loads(json.dumps(values))


def _check_same(former: dict[str, Any] | None, now: dict[str, Any], folder: Path) -> None:
    choice = "choose another folder, or replace it with overwrite=True (--overwrite)"
    if former is None:
        raise ValueError(
            f"the atlas in {folder} is of an earlier release, which didn't keep what was asked "
            f"for: open it by LatentAtlas.load, or {choice}"
        )
    before, after = _flat(former), _flat(now)
    differing = [name for name in after if before.get(name) != after[name]]
    if differing:
        details = "; ".join(
            f"{name}: {_brief(name, before.get(name))} there, {_brief(name, after[name])} now"
            for name in differing
        )
        raise ValueError(f"{folder} belongs to another analysis ({details}); {choice}")


def _flat(request: dict[str, Any]) -> dict[str, Any]:
    metadata = request.get("sae_metadata") or {}
    return {**request, **{f"sae_metadata.{name}": value for name, value in metadata.items()}} | {
        "sae_metadata": None
    }


def _brief(name: str, value: Any) -> str:
    if name.endswith("_sha256") and value is not None:
        return short(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _join(earlier: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    return later if earlier.empty else pd.concat([earlier, later], ignore_index=True)
