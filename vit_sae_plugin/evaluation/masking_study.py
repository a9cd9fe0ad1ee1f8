"""``masking_study``: the masking study on images, resumable, with its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vit_sae_plugin.atomic_files import delete_leftovers, write_file_atomically
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.classifier_heads import zero_shot_head
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.latent_ranking import RANKINGS, LatentRanking
from vit_sae_plugin.evaluation.masking import (
    KS,
    Head,
    MaskingResult,
    MaskingStudy,
    check_conditions,
    check_every_class,
    check_splits,
)
from vit_sae_plugin.fingerprints import model_fingerprint, sae_fingerprint
from vit_sae_plugin.prompt_templates import Template

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT

_UNFINISHED = "unfinished-masking.npz"
_SECONDS_BETWEEN_SNAPSHOTS = 30.0


def masking_study(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    ranking: LatentRanking | Any,
    n_images: int | None = None,
    ks: Sequence[int] = KS,
    rankings: Sequence[str] = RANKINGS,
    n_draws: int = 3,
    error_terms: Sequence[bool] = (False, True),
    class_names: Sequence[str] | None = None,
    templates: str | Path | Sequence[Template] | None = None,
    renormalize_average: bool = True,
    head: Head | None = None,
    source: ActivationSource | None = None,
    allow_same_images: bool = False,
    folder: str | Path | None = None,
    batch_size_images: int = 8,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> MaskingResult:
    """How much of a class's accuracy hangs on its first k latents.

    Args:
        model: the model that the SAE reads.
        sae: any SAELens SAE.
        images: labelled images to score, as ``open_images`` takes them.
        ranking: the order of each class's latents: a ``LatentRanking``, a saved atlas, or
            labelled images (another split) to count on.
        n_images: how many to score, a sample fixed by ``seed``; None: all.
        ks: numbers of latents kept or removed; trimmed to ``d_sae``.
        rankings: ``"class"``, ``"selective"``, ``"dataset"``, ``"random"``: see
            ``LatentRanking``.
        n_draws: random orders.
        error_terms: without what the SAE doesn't describe, with it, or both.
        class_names: label index → name; default: the source's.
        templates: prompt templates of the zero-shot head, as ``evaluate_sae`` takes them.
        renormalize_average: scale each class's average over templates to length 1; False is what
            the published code did.
        head: another classifier, such as a ``LinearProbe``, for models without a text tower.
        source: hook and tokens, for an SAE whose metadata don't name them.
        allow_same_images: rank and score on the same images.
        folder: where to keep an unfinished study; it goes on from there.
        batch_size_images: images that go through the lower blocks together.
        n_workers: processes that decode images.
        seed: of the sample and of the random orders.
        progress: show a progress bar.

    Raises:
        ValueError: the ranking, the classes or the SAE don't fit; a class has no image; ranking and
            scoring on the same images; the model has no text tower and no head is given.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source)
    names = list(class_names if class_names is not None else images.class_names or ())
    check_conditions(ks, rankings, n_draws, error_terms)
    counted = _ranking_or_images(ranking, attached)
    check_splits(counted, images, allow_same_images)
    if len(names) != len(images.class_names or ()):
        raise ValueError(
            f"class_names has {len(names)} names; want {len(images.class_names or ())}, one for "
            "each label"
        )
    if head is None:
        head = zero_shot_head(
            model, names, templates, renormalize_average=renormalize_average, images=images
        )
    if not isinstance(counted, LatentRanking):
        counted = LatentRanking.from_images(
            attached,
            counted,
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            progress=progress,
            description="ranking",
        )
    ranking = check_every_class(counted, images)
    study = MaskingStudy(
        attached,
        ranking,
        head,
        ks=ks,
        rankings=rankings,
        n_draws=n_draws,
        error_terms=error_terms,
        seed=seed,
    )
    settings = {
        "images": images.name,
        "images_sha256": images.fingerprint(),
        "ranking_sha256": ranking.fingerprint,
        "model": model.model_name,
        "model_sha256": model_fingerprint(model),
        "sae_sha256": sae_fingerprint(sae),
        "hook_name": attached.source.hook_name,
        "token_kind": attached.source.token_kind,
        "n_images_wanted": n_images,
        "batch_size_images": batch_size_images,
        "n_draws": n_draws,
        "seed": seed,
        "templates": templates if isinstance(templates, str) else None,
        "renormalize_average": renormalize_average,
        "conditions": [list(condition) for condition in study.conditions],
    }
    progress_file = _Progress(folder, settings)
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=None if n_images is None else n_images - len(progress_file.label),
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        start_batch=progress_file.next_batch,
        progress=progress,
        description="masking",
    )
    if n_images is None or len(progress_file.label) < n_images:
        for batch in walk:
            labelled = batch.label >= 0
            correct = study.correct(batch.pixels[labelled], batch.label[labelled])
            ids = [id for id, keep in zip(batch.ids, labelled.tolist(), strict=True) if keep]
            progress_file.add(correct, batch.label[labelled], ids, walk.next_batch)
    result = progress_file.result(study, names, settings)
    progress_file.remove()
    return result


def masking_report(result: MaskingResult) -> EvaluationReport:
    """The study's tables, to print and to save."""
    hidden = ("conditions",)
    settings = {name: value for name, value in result.settings.items() if name not in hidden}
    return EvaluationReport(
        {
            "masking": result.overall(),
            "masking_by_class": result.by_class(),
            "masking_latents": result.first_latents,
        },
        settings | {"n_images": len(result.label), "n_classes": len(np.unique(result.label))},
    )


def _ranking_or_images(ranking: Any, attached: AttachedSAE) -> LatentRanking | ImageSource:
    """The ranking, of an atlas too; or the images to count it on."""
    if isinstance(ranking, LatentRanking):
        return ranking
    if not hasattr(ranking, "class_counts"):
        return open_images(ranking)
    atlas_sae, sae = ranking.info.sae_sha256, sae_fingerprint(attached.sae)
    if atlas_sae != sae:
        raise ValueError(
            f"the atlas was made from the SAE {atlas_sae[:8]}, but this one is {sae[:8]}; use "
            "the atlas that was made from it"
        )
    atlas_model, model = ranking.info.model_sha256, model_fingerprint(attached.model)
    if atlas_model is not None and atlas_model != model:
        raise ValueError(
            f"the atlas was made from the model {atlas_model[:8]}, but this one is {model[:8]}; "
            "use the atlas that was made from it"
        )
    return LatentRanking.from_atlas(ranking)


class _Progress:
    """What has been scored so far, in memory and, from time to time, on disk."""

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]):
        self.path = None if folder is None else Path(folder) / _UNFINISHED
        self.settings = json.dumps(settings, sort_keys=True)
        self.correct: list[np.ndarray] = []
        self.label: list[int] = []
        self.image_id: list[str] = []
        self.next_batch = 0
        self._saved_at = time.monotonic()
        if self.path is not None and self.path.is_file():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["settings"]) != self.settings:
                raise ValueError(
                    f"{path.parent} holds an unfinished masking study with other settings; choose "
                    f"another folder, or delete {path.name} there"
                )
            self.correct = [saved["correct"]]
            self.label = saved["label"].tolist()
            self.image_id = saved["image_id"].tolist()
            self.next_batch = int(saved["next_batch"])

    def add(self, correct: np.ndarray, label: Tensor, image_id: list[str], next_batch: int) -> None:
        self.correct.append(correct)
        self.label += label.tolist()
        self.image_id += image_id
        self.next_batch = next_batch
        if self.path and time.monotonic() - self._saved_at > _SECONDS_BETWEEN_SNAPSHOTS:
            self.save()

    def save(self) -> None:
        """Write the snapshot."""
        if self.path is None:
            return
        delete_leftovers(self.path.parent)
        arrays: dict[str, Any] = {
            "settings": np.array(self.settings),
            "correct": np.concatenate(self.correct),
            "label": np.array(self.label),
            "image_id": np.array(self.image_id),
            "next_batch": np.array(self.next_batch),
        }
        write_file_atomically(self.path, lambda path: np.savez(path, **arrays))
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the snapshot: the study is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def result(
        self, study: MaskingStudy, class_names: list[str], settings: dict[str, Any]
    ) -> MaskingResult:
        if not self.label:
            raise ValueError("no image could be scored; want labelled, readable images")
        return MaskingResult(
            study.conditions,
            np.concatenate(self.correct),
            np.array(self.label),
            self.image_id,
            class_names,
            settings,
            study.first_latents(class_names),
        )
