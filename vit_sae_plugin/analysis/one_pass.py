"""One pass over a data set: from images to an atlas of latents.

What it takes at ImageNet's size, for 49,152 latents, 1,000 classes and 1.28 million images, with
three aggregations and ten reference images each. Nothing grows with the number of images.

==========================================  =======================================  ==========
class-level counts, 32-bit                  1,000 × 49,152 × 4 B                       197 MB
co-activation sketches                      49,152 × 256 × 8 B                         101 MB
reference images: keys, peak patches        3 × 49,152 × 10 × 12 B                      18 MB
histograms, 64-bit                          49,152 × 72 × 8 B                           28 MB
frequencies, sums, maxima                   49,152 × 44 B                                2 MB
ids of reference images, at most            1.28 million × about 150 B                 192 MB
latents being looked at (``_ENTRIES``)      2^24 × 4 B, three copies                   201 MB
ViT-B/16 and its SAE                        (86 M + 75.5 M) × 4 B                      646 MB
==========================================  =======================================  ==========

That is 1.4 GB besides the Python process itself, on a machine of 24 GB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tqdm import tqdm

from vit_sae_plugin.activations.activation_source import (
    ActivationSource,
    describe_preprocessing,
)
from vit_sae_plugin.aggregation import AggregationRule, ImageAggregation, make_aggregation
from vit_sae_plugin.analysis.atlas_builder import AtlasBuilder
from vit_sae_plugin.analysis.atlas_folder import holds_atlas, load_atlas, read_info, save_atlas
from vit_sae_plugin.analysis.latent_atlas import AtlasInfo, LatentAtlas
from vit_sae_plugin.analysis.model_inputs import preprocess_of, sae_inputs
from vit_sae_plugin.analysis.patch_layout import PatchLayout
from vit_sae_plugin.analysis.snapshot import (
    Snapshot,
    load_snapshot,
    remove_snapshot,
    save_snapshot,
    snapshot_settings,
)
from vit_sae_plugin.datasets import ImageBatch, ImageLoader, open_images
from vit_sae_plugin.fingerprints import model_fingerprint, sae_fingerprint, short
from vit_sae_plugin.saes.image_aggregation import plain_rule

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_ENTRIES = {"cpu": 2**24, "cuda": 2**28}
"""Latents held at a time: images are encoded so many at once that they fit."""

DEFAULT_AGGREGATIONS = ("mean", "count", "max")


@torch.no_grad()
def analyze(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    source: ActivationSource | None = None,
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule] | None = None,
    threshold: float = 0.2,
    n_reference_images: int = 10,
    n_partners: int = 10,
    n_coactivation_images: int = 256,
    dense_frequency: float = 0.1,
    batch_size_images: int = 32,
    n_workers: int = 0,
    folder: str | Path | None = None,
    resume: bool = True,
    snapshot_every_batches: int = 200,
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
      ``top_class_share``: the class with the largest class-level count.
    - ``is_dead``: never above 0. ``is_dense``: ``token_frequency`` above ``dense_frequency``.

    Args:
        model: the model the SAE reads.
        sae: any SAELens SAE.
        images: an ``ImageSource``, or anything :func:`open_images` takes.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.
        aggregations: how to rank reference images: names, rules or modules, or a mapping that
            names them. The first is the default of the atlas. None: the rule saved with the SAE
            (``sae.cfg.aggregation``), if it has one, then ``mean``, ``count`` and ``max``.
        threshold: a token is active, for counts, where its activation is strictly above this. (A
            rule saved with the SAE keeps its own.)
        n_reference_images: images kept for each latent and aggregation.
        n_partners: co-active and similar latents kept for each latent.
        n_coactivation_images: co-activation is exact for latents active on at most so many
            images, and estimated from a sample of this size beyond.
        dense_frequency: share of tokens above which a latent is flagged dense.
        batch_size_images: images that go through the model together.
        n_workers: processes that decode images.
        folder: where to save the atlas and, on the way, snapshots. None: only in memory.
        resume: go on from a snapshot in the folder, or return the finished atlas there. False:
            start afresh and replace both.
        snapshot_every_batches: how often to save.
        progress: show a progress bar.

    Raises:
        ValueError: the SAE doesn't fit the model; an aggregation is unknown or not registered; or
            the folder belongs to an analysis with other settings, model, SAE or data.
        NoReadableImagesError: no image can be read.
    """
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    source.check_model(model)
    if n_reference_images < 1:
        raise ValueError(f"n_reference_images is {n_reference_images}; want 1 or more")
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; want 0 or more")
    images = open_images(images)
    folder = None if folder is None else Path(folder)
    layout = _probe_layout(model, sae, source)
    if aggregations is None:
        aggregations = _default_aggregations(sae)
    rules = _named_aggregations(aggregations, threshold, layout)
    info = AtlasInfo(
        model_sha256=model_fingerprint(model),
        sae_sha256=sae_fingerprint(sae),
        data_sha256=images.fingerprint(),
        data_name=images.name,
        sae_metadata=_as_json(source.to_metadata()),
        model_preprocessing=describe_preprocessing(model.preprocess),
        architecture=sae.cfg.architecture(),
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        n_tokens=len(layout.patch_of_token),
        grid=layout.grid,
        threshold=threshold,
        aggregations=_as_json({name: rule.config() for name, rule in rules.items()}),
        n_reference_images=n_reference_images,
        n_partners=n_partners,
        n_coactivation_images=n_coactivation_images,
        dense_frequency=dense_frequency,
        class_names=images.class_names,
    )
    settings = {**_comparable(info), "batch_size_images": batch_size_images}
    builder = AtlasBuilder(
        info.d_sae,
        layout,
        rules,
        threshold=threshold,
        n_reference_images=n_reference_images,
        n_classes=len(images.class_names or ()),
        n_coactivation_images=n_coactivation_images,
    ).to("cpu" if sae.W_dec.device.type == "mps" else sae.W_dec.device)  # MPS lacks float64

    start = Snapshot(settings, 0, pd.DataFrame())
    if folder is not None and resume:
        former = snapshot_settings(folder)
        # a snapshot beside an atlas: the analysis that was to replace it was interrupted
        if holds_atlas(folder) and former != settings:
            _check_same(_comparable(read_info(folder)), _comparable(info), folder)
            if progress:
                print(f"analyze: opening the finished atlas in {folder}", file=sys.stderr)
            return load_atlas(folder)
        if former is not None:
            _check_same(former, settings, folder)
            start = load_snapshot(folder, builder)
    elif folder is not None:
        remove_snapshot(folder)

    loader = ImageLoader(
        images,
        preprocess_of(model),
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        start_batch=start.next_batch,
    )
    with tqdm(
        total=images.n_images,
        initial=start.next_batch * batch_size_images,
        desc="analyze",
        unit=" images",
        disable=not progress,
    ) as bar:
        next_batch = start.next_batch
        for batch in loader:
            take_in(builder, model, sae, source, batch)
            next_batch = batch.batch_number + 1
            n_seen = next_batch * batch_size_images
            bar.update(min(n_seen, images.n_images or n_seen) - bar.n)
            if folder is not None and next_batch % snapshot_every_batches == 0:
                skipped = _join(start.skipped_images, loader)
                save_snapshot(folder, builder, Snapshot(settings, next_batch, skipped))
        if images.n_images is not None:  # the last batches may hold no readable image
            bar.update(images.n_images - bar.n)

    if int(builder.statistics.n_images) == 0:
        raise ValueError(f"{images.name} gave no readable image, so there is nothing to analyse")
    atlas = builder.build(
        info,
        sae.W_dec,
        n_partners=n_partners,
        skipped_images=_join(start.skipped_images, loader),
        progress=progress,
    )
    if folder is not None:
        save_atlas(atlas, folder)
        remove_snapshot(folder)
    return atlas


def take_in(
    builder: AtlasBuilder,
    model: HookedViT,
    sae: SAE[Any],
    source: ActivationSource,
    batch: ImageBatch,
) -> None:
    """Run a batch of images through model and SAE, a few at a time, into the builder."""
    acts_btd = sae_inputs(model, sae, source, batch.pixels)
    at_once = _ENTRIES["cuda" if acts_btd.is_cuda else "cpu"]
    n_images = max(1, at_once // (acts_btd.shape[1] * sae.cfg.d_sae))
    for start in range(0, len(acts_btd), n_images):
        some = slice(start, start + n_images)
        latents = sae.encode(acts_btd[some])
        if latents.is_sparse:
            latents = latents.to_dense()
        builder.update(latents, batch.index[some], batch.label[some], batch.ids[some])


def _probe_layout(model: HookedViT, sae: SAE[Any], source: ActivationSource) -> PatchLayout:
    size = model.cfg.image_size
    height, width = (size, size) if isinstance(size, int) else size
    n_tokens = sae_inputs(model, sae, source, torch.zeros(1, 3, height, width)).shape[1]
    return PatchLayout.of(source, model.cfg, n_tokens)


def _default_aggregations(sae: SAE[Any]) -> list[AggregationRule]:
    saved = getattr(sae.cfg, "aggregation", None)
    if saved is None:
        return list(DEFAULT_AGGREGATIONS)
    return [saved, *(name for name in DEFAULT_AGGREGATIONS if name != saved["name"])]


def _named_aggregations(
    aggregations: Sequence[AggregationRule] | Mapping[str, AggregationRule],
    threshold: float,
    layout: PatchLayout,
) -> dict[str, ImageAggregation]:
    is_patch = (layout.patch_of_token >= 0).int()
    n_prefix = int(is_patch.argmax()) if layout.has_patches else len(is_patch)
    named: dict[str, ImageAggregation] = {}
    pairs = (
        aggregations.items()
        if isinstance(aggregations, Mapping)
        else ((None, rule) for rule in aggregations)
    )
    for name, rule in pairs:
        if rule in ("count", "share"):
            rule = {"name": rule, "threshold": threshold}
        if isinstance(rule, (str, Mapping)):
            rule = plain_rule(rule, n_prefix_tokens=n_prefix)
        aggregation = make_aggregation(rule)
        name = name or aggregation.config()["name"]
        if not name.isidentifier() or name in named:
            raise ValueError(
                f"aggregations need different names made of letters, digits and _, got {name!r}; "
                "pass a mapping name -> rule to name them"
            )
        named[name] = aggregation
    if not named:
        raise ValueError("aggregations is empty; want at least one, such as 'mean'")
    return named


def _comparable(info: AtlasInfo) -> dict[str, Any]:
    """All that an atlas depends on: a folder is another analysis's if any of it differs."""
    counted_later = ("n_images", "n_skipped_images")
    values = {name: value for name, value in asdict(info).items() if name not in counted_later}
    metadata = values.pop("sae_metadata")
    # the first is the default, so their order counts
    values["aggregations"] = list(values["aggregations"].items())
    # the name of the data stands for a folder, which may be moved
    del values["data_name"]
    return _as_json({**values, **{f"sae_metadata.{name}": v for name, v in metadata.items()}})


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON, where tuples are lists."""
    return json.loads(json.dumps(values))


def _check_same(former: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    differing = [name for name in now if former.get(name) != now[name]]
    if differing:
        details = "; ".join(
            f"{name}: {_brief(name, former.get(name))} there, {_brief(name, now[name])} now"
            for name in differing
        )
        raise ValueError(
            f"{folder} belongs to another analysis ({details}). Choose another folder, or replace "
            "it with resume=False (--overwrite on the command line)"
        )


def _brief(name: str, value: Any) -> str:
    if name.endswith("_sha256") and value is not None:
        return short(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _join(earlier: pd.DataFrame, loader: ImageLoader) -> pd.DataFrame:
    later = loader.skipped.to_frame()
    return later if earlier.empty else pd.concat([earlier, later], ignore_index=True)
