"""``bias_study``: find the concepts that differ between groups, prove, and suppress them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.concepts.bias.group_accuracy import GroupAccuracy, numbers_trimmed
from vit_sae_plugin.concepts.bias.group_differences import GroupMoments, group_differences
from vit_sae_plugin.concepts.bias.groups import Groups
from vit_sae_plugin.concepts.bias.strength_curves import FACTORS, strength_curves
from vit_sae_plugin.concepts.bias.suppression import Suppression, embeddings_under, like_latents
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.classifier_heads import zero_shot_head
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.linear_probe import fit_linear_probe
from vit_sae_plugin.evaluation.masking import Head

if TYPE_CHECKING:
    from pathlib import Path

    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.prompt_templates import Template

NS = (1, 2, 5, 10, 20, 50)
"""Numbers of concepts that are suppressed together."""

_NOTHING = Suppression("none")


def bias_study(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    attribute: str,
    fit_images: Any = None,
    find_images: Any = None,
    reference_images: Any = None,
    elsewhere_images: Any = None,
    head: Head | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Path | Sequence[Template] | None = None,
    refit: bool = False,
    weight_decay: float = 1e-3,
    ns: Sequence[int] = NS,
    n_draws: int = 3,
    n_curves: int = 3,
    factors: Sequence[float] = FACTORS,
    alpha: float = 0.05,
    names: Mapping[int, str] | None = None,
    source: ActivationSource | None = None,
    seed: int = 0,
    batch_size_images: int = 32,
    n_workers: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """Which concepts a classifier uses though they belong to a group and not to the class.

    1. *Find* (on ``find_images``): latents that differ between values of the attribute within a
       class, ranked, those that belong to the task behind all others.
    2. *Prove* (on ``images``): how the answers move as each of the first latents is weakened or
       strengthened, beside random latents that are about as active.
    3. *Mend*: worst-group and mean accuracy with the first n suspects suppressed, beside random
       latents, and neurons found by the same rule and set to their mean.

    The classifier is a linear probe fitted on ``fit_images``, ``head``, or zero-shot.

    Args:
        model: the model that the SAE reads.
        sae: any SAELens SAE.
        images: labelled images to score, with the attribute.
        attribute: a column of ``images.labels_frame()``: ``"place"``, ``"Male"``, ``"color"``.
        fit_images: the images to fit a linear probe on; None: use ``head``, or class names.
        find_images: images to find concepts on; default: ``fit_images``.
        reference_images: images without the bias, to fit the probe on that shows what could be
            reached.
        elsewhere_images: other labelled images, whose zero-shot accuracy shows what suppression
            costs elsewhere.
        head: a classifier of the model's output.
        class_names: label index → name, of the zero-shot head; default: the source's.
        templates: prompt templates of the zero-shot heads.
        refit: fit the probe anew on suppressed images, too.
        weight_decay: of probes.
        ns: how many latents are suppressed together.
        n_draws: random sets of latents.
        n_curves: latents whose strength is changed.
        factors: what they are multiplied by.
        alpha: false discovery rate at which a latent counts as different.
        names: latent → name, to be shown.
        source: hook and tokens, for an SAE whose metadata don't name them.
        seed: of random latents and of the bootstrap.
        batch_size_images, n_workers, progress: of the walks over images.

    Returns:
        A report with the tables ``concepts`` (see ``group_differences``), ``prediction`` (see
        ``strength_curves``), ``mending`` (see ``GroupAccuracy.table``; also ``elsewhere``) and
        ``groups`` (accuracy of each group before and after).

    Raises:
        ValueError: an unknown attribute; a group without images; classes that don't fit; no images
            to find concepts on, or the very images that are scored.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source)
    fit_source = None if fit_images is None else open_images(fit_images)
    find_source = fit_source if find_images is None else open_images(find_images)
    if find_source is None:
        raise ValueError(
            "want fit_images or find_images: concepts are found on images of their own"
        )
    if find_source.fingerprint() == images.fingerprint():
        raise ValueError(
            f"concepts would be found and scored on the same images, {images.name}; want two splits"
        )
    if refit and (fit_source is None or head is not None):
        raise ValueError("refit wants fit_images and no head: it is the probe that is fitted anew")
    names_of_classes = list(class_names if class_names is not None else images.class_names or ())
    if len(names_of_classes) != len(images.class_names or ()):
        raise ValueError(
            f"class_names has {len(names_of_classes)} names; want {len(images.class_names or ())}, "
            "one for each label"
        )
    numbers_trimmed(ns, attached.d_sae)
    _check_classes(images, find_source, fit_source, reference_images)
    found_groups = Groups.of(find_source, attribute)
    groups = Groups.of(images, attribute, found_groups.values)
    groups.require_members(groups.group, images.name)
    reference_source = None if reference_images is None else open_images(reference_images)
    classifier = "as given" if head is not None else "linear probe"
    if head is None and fit_source is None:
        classifier = "zero-shot"
        head = zero_shot_head(model, names_of_classes, templates, images=images)
    if elsewhere_images is not None:
        there = open_images(elsewhere_images)
        head_there = zero_shot_head(model, list(there.class_names or ()), templates, images=there)
    walk = {
        "batch_size_images": batch_size_images,
        "n_workers": n_workers,
        "progress": progress,
    }

    latents, neurons = _moments(attached, find_source, found_groups, walk)
    concepts = group_differences(latents, found_groups, alpha=alpha, names=names)
    suspects = concepts.index[concepts["suspect"]].to_numpy()
    if len(suspects) == 0:
        raise ValueError(
            f"no latent differs between values of {attribute} more than between classes, at a "
            f"false discovery rate of {alpha}; nothing to suppress: use more images, or another "
            "attribute"
        )
    ways = _suppressions(attached, latents, neurons, concepts, found_groups, ns, n_draws, seed)

    heads: list[Head] = []
    if head is None:
        fit_ways = ways if refit else [_NOTHING]
        heads = _fitted_heads(attached, fit_source, fit_ways, weight_decay, walk)
        head = heads[0]
    reference_head = None
    if reference_source is not None:
        (reference_head,) = _fitted_heads(
            attached, reference_source, [_NOTHING], weight_decay, walk
        )

    embeds, positions = embeddings_under(attached, images, ways, **walk, description="suppressing")
    label, group = groups.label[positions], groups.group[positions]
    groups.require_members(group, images.name)
    answers = [head(part) for part in embeds]
    rows = [(way.kind, len(way.features), way.draw, False) for way in ways]
    if refit:
        answers += [own(part) for own, part in zip(heads, embeds, strict=True)][1:]
        rows += [(way.kind, len(way.features), way.draw, True) for way in ways[1:]]
    if reference_head is not None:
        answers.append(reference_head(embeds[0]))
        rows.append(("unbiased probe", 0, 0, False))
    correct = np.stack([part.argmax(-1).numpy() == label for part in answers], axis=1)
    weights = None
    if fit_source is not None:
        fit_groups = Groups.of(fit_source, attribute, groups.values).group
        weights = np.bincount(fit_groups, minlength=groups.n_groups).astype(np.float64)
    accuracy = GroupAccuracy(correct, group, groups.n_groups, weights=weights, seed=seed)
    index = pd.MultiIndex.from_tuples(rows, names=["suppressed", "n", "draw", "refitted"])
    mending = accuracy.table(len(rows) - 1 if reference_head is not None else None)
    mending["worst_group"] = [groups.name(at) for at in mending["worst_group"]]
    mending.index = index
    if elsewhere_images is not None:
        values = _elsewhere(attached, there, head_there, ways, walk)
        by_way = dict(zip(rows, values, strict=False))
        mending["elsewhere"] = [by_way.get((*row[:3], False), by_way[rows[0]]) for row in rows]
    by_group = pd.DataFrame(
        accuracy.by_group,
        index=pd.Index([groups.name(at) for at in range(groups.n_groups)], name="group"),
        columns=[_label(row) for row in rows],
    )
    by_group.insert(0, "n_images", accuracy.n)

    shown = [int(at) for at in suspects[:n_curves]]
    prediction = strength_curves(
        attached,
        images,
        head,
        shown,
        controls=like_latents(latents.mean, shown, np.random.default_rng([seed, 1])),
        factors=factors,
        class_names=names_of_classes,
        **walk,
        description="strength",
    )
    settings = {
        "attribute": attribute,
        "images": images.name,
        "n_images": len(positions),
        "found_on": find_source.name,
        "n_found_on": int(latents.n.sum()),
        "classifier": classifier,
        "n_suspects": len(suspects),
        "model": model.model_name,
        "hook_name": attached.source.hook_name,
        "alpha": alpha,
        "seed": seed,
    }
    return EvaluationReport(
        {"mending": mending, "concepts": concepts, "prediction": prediction, "groups": by_group},
        settings,
    )


def _check_classes(images: ImageSource, *others: Any) -> None:
    for other in others:
        if other is None:
            continue
        there = open_images(other)
        if list(there.class_names or ()) != list(images.class_names or ()):
            raise ValueError(
                f"{there.name} has the classes {_some(there.class_names)}, but {images.name} has "
                f"{_some(images.class_names)}; want the same in the same order"
            )


def _some(names: Sequence[str] | None) -> str:
    names = list(names or ())
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")


@torch.no_grad()
def _moments(
    attached: AttachedSAE, images: ImageSource, groups: Groups, walk: dict[str, Any]
) -> tuple[GroupMoments, GroupMoments]:
    """Of each latent's and each neuron's mean over an image's tokens."""
    of_latents = GroupMoments(groups.n_groups, attached.d_sae)
    of_neurons = GroupMoments(groups.n_groups, attached.d_in)
    for batch in attached.walk(images, **walk, description="finding"):
        acts_btd = attached.activations(batch.pixels)
        group = groups.group[batch.index.numpy()]
        of_neurons.add(acts_btd.mean(1), group)
        for part, latents in attached.encode_parts(acts_btd):
            of_latents.add(latents.mean(1), group[part])
    return of_latents, of_neurons


def _suppressions(
    attached: AttachedSAE,
    latents: GroupMoments,
    neurons: GroupMoments,
    concepts: pd.DataFrame,
    groups: Groups,
    ns: Sequence[int],
    n_draws: int,
    seed: int,
) -> list[Suppression]:
    """Nothing; then for each n the first n suspects, random latents like them, n neurons."""
    suspects = concepts.index[concepts["suspect"]].tolist()
    order = group_differences(neurons, groups).index.tolist()
    ways = [_NOTHING]
    for n in numbers_trimmed(ns, len(suspects)):
        first = suspects[:n]
        ways.append(Suppression("concepts", tuple(first)))
        for draw in range(n_draws):
            generator = np.random.default_rng([seed, draw])
            like = like_latents(latents.mean, first, generator)
            ways.append(Suppression("random latents", like, draw))
        if attached.is_transcoder:
            continue  # what it reads are not the neurons that it writes
        few = tuple(order[:n])
        ways.append(Suppression("neurons", few, means=tuple(neurons.mean[list(few)])))
    return ways


def _fitted_heads(
    attached: AttachedSAE,
    images: Any,
    ways: Sequence[Suppression],
    weight_decay: float,
    walk: dict[str, Any],
) -> list[Head]:
    embeds, positions = embeddings_under(attached, images, ways, **walk, description="fitting")
    label = torch.from_numpy(images.labels()[positions])
    return [
        fit_linear_probe(
            part, label, n_classes=len(images.class_names or ()), weight_decay=weight_decay
        )
        for part in embeds
    ]


def _elsewhere(
    attached: AttachedSAE,
    images: ImageSource,
    head: Head,
    ways: Sequence[Suppression],
    walk: dict[str, Any],
) -> list[float]:
    """Zero-shot accuracy on other images under each suppression."""
    embeds, positions = embeddings_under(attached, images, ways, **walk, description="elsewhere")
    label = torch.from_numpy(images.labels()[positions])
    return [(head(part).argmax(-1) == label).double().mean().item() for part in embeds]


def _label(row: tuple[str, int, int, bool]) -> str:
    kind, n, draw, refitted = row
    text = kind if n == 0 else f"{kind} {n}"
    return text + (f" #{draw}" if kind == "random latents" else "") + (", refitted" * refitted)
