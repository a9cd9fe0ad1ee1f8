"""``evaluate_sae``: how good is this SAE, by itself and inside its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from vit_sae_plugin.activations.cache.cache_names import open_cache
from vit_sae_plugin.attached_sae import AttachedSAE, CachedRun, CachedSAE, RowCoder, UpperRun
from vit_sae_plugin.datasets import SkippedImages, open_images
from vit_sae_plugin.evaluation.contrastive import ContrastiveBatches
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.per_token_variance import PerTokenVariance
from vit_sae_plugin.evaluation.reconstruction import ReconstructionTotals
from vit_sae_plugin.evaluation.splicing_totals import Caption, SplicingTotals
from vit_sae_plugin.prompt_templates import Template, named_templates

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource, EmbeddingStatistics, ImageWalk
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

TOKEN_GROUPS = ("all", "cls", "patches")


@torch.no_grad()
def evaluate_sae(
    model: HookedViT | None,
    sae: SAE[Any],
    images: Any,
    *,
    batch_size_images: int = 64,
    n_images: int | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Path | Sequence[Template] | None = None,
    captions: Callable[[int], str] | Sequence[str] | None = None,
    batch_size_contrastive: int = 64,
    splice: bool = True,
    dense_frequency: float = 0.1,
    source: ActivationSource | None = None,
    statistics: EmbeddingStatistics | None = None,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Measure an SAE on images, in one pass and constant memory, on the model's device.

    The report has two tables. ``reconstruction`` (see ``ReconstructionTotals.compute`` and
    ``PerTokenVariance``) has a row for all tokens the SAE reads, for the class token and for
    patches; a row is empty where the SAE doesn't read such tokens. ``splicing`` (see
    ``SplicingTotals.compute``) has a row for the model as it is, for the SAE's reconstruction put
    in place of the tokens it reads, for zeros there, and the share recovered. What cannot be
    measured is NaN, with the reason in ``notes``.

    Args:
        model: the model whose activations the SAE reads. From a cache, only splicing needs it.
        sae: any SAELens SAE; its metadata say which hook and tokens it reads.
        images: an image source, or what ``open_images`` makes one of. A map-style source is
            visited in a random order fixed by ``seed``, so that ``n_images`` is a fair sample of
            it; a streaming one in its own order. Or an ``ActivationCache`` or ``"cache:PATH"``,
            which gives what its images would; splicing then runs the blocks above the SAE, and
            needs all tokens of the residual stream.
        batch_size_images: images in one forward pass.
        n_images: how many to use; None: all.
        class_names: label index → name; default: the source's.
        templates: prompt templates: ``"openai"`` (the 80 of CLIP's ImageNet evaluation),
            ``"shapes"``, ``"own"`` (those of a benchmark data set), a text file with one a line, or
            the templates themselves. None: ``"openai"``, but ``"shapes"`` for ``shapes-clip``,
            which knows no other words.
        captions: image index → caption, for the contrastive loss; default: the captions of shape
            scenes, else each image's class name.
        batch_size_contrastive: images in a batch of the contrastive loss. No two of them share a
            caption (or, in shape scenes, the same objects), so it is lowered where there are fewer
            distinct class names.
        splice: also measure the ``splicing`` table: the blocks above the SAE run three times.
        dense_frequency: a latent active on more than this share of tokens is dense.
        source: hook and tokens, for an SAE whose metadata don't name them.
        statistics: centring and scaling of the SAE's training rows; default: in its metadata.
        n_workers: processes that decode images.
        seed: of the order of the images.
        progress: show a progress bar.

    Raises:
        ValueError: the SAE doesn't fit the model or the cache, a setting is out of range, the
            source gives no image, or splicing needs what the cache lacks.
    """
    attached: AttachedSAE | CachedSAE
    if (cache := open_cache(images)) is not None:
        attached = CachedSAE(cache, sae, model=model, source=source, statistics=statistics)
        images = attached.images
        if splice:
            model = attached.spliced_model
    elif model is None:
        raise ValueError("model is None, which goes with a cache; want the model to run on images")
    else:
        images = open_images(images)
        attached = AttachedSAE(model, sae, source, statistics)
    totals = {
        name: ReconstructionTotals(attached.rows.d_out, attached.d_sae, dense_frequency)
        for name in TOKEN_GROUPS
    }
    settings_of_walk: dict[str, Any] = {
        "batch_size_images": batch_size_images,
        "n_images": n_images,
        "seed": seed,
        "progress": progress,
    }
    skipped = SkippedImages()
    if isinstance(attached, CachedSAE):
        runs = _cached_runs(attached, skipped, settings_of_walk)
    else:
        walk = attached.walk(images, shuffle=True, n_workers=n_workers, **settings_of_walk)
        skipped, runs = walk.skipped, _runs(attached, walk)
    notes: list[str] = []
    splicing = None
    if splice and model is not None:
        splicing = _splicing_totals(
            model, images, class_names, templates, captions, batch_size_contrastive, notes
        )

    per_token = PerTokenVariance(seed)
    groups = token_groups(attached.layout)
    for index, label, run in runs:
        target_btd = run.target_btd.to(attached.rows.device)
        x_hat = _reconstruct(attached.rows, run.acts_btd, target_btd, groups, totals)
        per_token.update(index, target_btd, x_hat)
        if splicing is not None:
            outputs = {
                "original": run.output(target_btd),
                "spliced": run.output(x_hat),
                "zeros": run.output(torch.zeros_like(target_btd)),
            }
            splicing.update(outputs, label, index)

    rows = {name: totals[name].compute() for name in TOKEN_GROUPS}
    reconstruction = pd.DataFrame.from_dict(rows, orient="index").rename_axis("tokens")
    legacy = [per_token.compute(groups[name], totals[name].mean) for name in TOKEN_GROUPS]
    at = reconstruction.columns.get_loc("explained_variance") + 1
    reconstruction.insert(at, "explained_variance_per_token", legacy)
    if per_token.n_sampled < per_token.n_images:
        notes.append(
            f"explained_variance_per_token: of {per_token.n_sampled} of the {per_token.n_images} "
            "images, as many as fit in memory"
        )
    tables = {"reconstruction": reconstruction.astype({"n_tokens": int})}
    settings = {
        "images": images.name,
        "n_images": per_token.n_images,
        "n_images_skipped": len(skipped),
        "hook_name": attached.source.hook_name,
        "token_kind": attached.source.token_kind,
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "dense_frequency": dense_frequency,
    }
    if splicing is not None:
        tables["splicing"] = splicing.compute()
        settings |= splicing.settings()
    return EvaluationReport(tables, settings, notes)


_Run = tuple[Tensor, Tensor, UpperRun | CachedRun]
"""Indices and labels of some images, and those images where the SAE reads."""


def _runs(attached: AttachedSAE, walk: ImageWalk) -> Iterator[_Run]:
    for batch in walk:
        yield batch.index, batch.label, UpperRun(attached, batch.pixels)


def _cached_runs(
    cached: CachedSAE, skipped: SkippedImages, settings: dict[str, Any]
) -> Iterator[_Run]:
    for run in cached.batches(**settings):
        yield run.index, run.label, run
    if settings["n_images"] is None:
        for entry in cached.cache.skipped.to_list():
            skipped.add(*entry)


def token_groups(layout: TokenLayout) -> dict[str, slice | Tensor]:
    """Which of the tokens that an SAE reads are which, as indices into them: all, cls, patches.

    A pooled embedding is neither class token nor patch.
    """
    return {
        "all": slice(None),
        "cls": _as_index(layout.role_positions("class")),
        "patches": _as_index(layout.role_positions("patch")),
    }


def _as_index(positions: Tensor) -> slice | Tensor:
    """A slice where one will do, for it copies no latents."""
    if len(positions) == 0:
        return slice(0)
    start, stop = int(positions[0]), int(positions[-1]) + 1
    return slice(start, stop) if stop - start == len(positions) else positions


def _reconstruct(
    rows: RowCoder,
    acts_btd: Tensor,
    target_btd: Tensor,
    groups: dict[str, slice | Tensor],
    totals: dict[str, ReconstructionTotals],
) -> Tensor:
    """The SAE's reconstruction of what it reads; adds it to the totals of each token group."""
    x_hat = []
    for part, latents in rows.encode_parts(acts_btd):
        x_hat.append(rows.decode(latents))
        for name, tokens in groups.items():
            chosen = (values[:, tokens] for values in (target_btd[part], x_hat[-1], latents))
            totals[name].update(*chosen)
    return torch.cat(x_hat)


def _splicing_totals(
    model: HookedViT,
    images: ImageSource,
    class_names: Sequence[str] | None,
    templates: str | Path | Sequence[Template] | None,
    captions: Callable[[int], str] | Sequence[str] | None,
    batch_size_contrastive: int,
    notes: list[str],
) -> SplicingTotals:
    """What the model and the source allow to be measured; the rest is said in ``notes``."""
    if batch_size_contrastive < 2:
        raise ValueError(f"batch_size_contrastive is {batch_size_contrastive}; want 2 or more")
    if model.tower.text_method is None or model.tokenizer is None:
        lacking = "text tower" if model.tower.text_method is None else "tokenizer"
        notes.append(
            f"zero-shot accuracy and contrastive loss: left out, for the model has no {lacking}"
        )
        return SplicingTotals()
    class_names = class_names if class_names is not None else images.class_names
    classifier = None
    if class_names:
        classifier = model.zero_shot_classifier(
            list(class_names), named_templates(templates, model.model_name, images)
        )
    else:
        notes.append("zero-shot accuracy: left out, for the images have no labels")
    find_caption = _find_captions(images, captions)
    if find_caption is None and classifier is None:
        notes.append("contrastive loss: left out, for the images have neither captions nor labels")
        return SplicingTotals()
    n_distinct = None if find_caption else len(set(class_names or ()))
    batch_size = min(batch_size_contrastive, n_distinct or batch_size_contrastive)
    if batch_size < 2:
        notes.append("contrastive loss: left out, for all images have the same class name")
        return SplicingTotals(classifier, class_names)
    contrastive = ContrastiveBatches(batch_size, float(model.logit_scale or 1.0))
    return SplicingTotals(classifier, class_names, contrastive, find_caption, model.encode_text)


def _find_captions(
    images: ImageSource, captions: Callable[[int], str] | Sequence[str] | None
) -> Callable[[int], Caption] | None:
    if captions is not None:
        text_of = captions if callable(captions) else captions.__getitem__
        return lambda index: (text_of(index), text_of(index))
    scene_of = getattr(images, "scene", None)
    if scene_of is None:
        return None

    def scene_caption(index: int) -> Caption:
        scene = scene_of(index)
        # One scene can be said in many ways: what counts is the objects.
        return scene.caption, frozenset((thing.color, thing.shape) for thing in scene.objects)

    return scene_caption
