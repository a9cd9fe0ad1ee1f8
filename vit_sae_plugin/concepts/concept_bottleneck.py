"""A concept bottleneck: classes told from a few named latents, with weights that can be read.

As Koh et al. (2020, arXiv 2007.04612) with an SAE's latents for concepts: a linear classifier on
the latents of whole images, made sparse by an L1 penalty, along a path of penalties.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import LatentName
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.linear_probe import fit_linear_probe

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

PENALTIES = tuple(float(c) for c in np.geomspace(3e-3, 10, 12))


@dataclass(frozen=True)
class ConceptBottleneck:
    """Classifiers along the path, the sparsest first."""

    path: pd.DataFrame
    """A row for each penalty (``c``, scikit-learn's inverse of it): ``n_concepts`` with a weight,
    ``accuracy`` on the test images with a 95 % interval over them, ``probe_accuracy`` of the linear
    probe on the embedding, and ``below_probe``, by how much it is below, paired, with interval."""
    weights: dict[float, pd.DataFrame]
    """c → a row for each weight that isn't zero, the largest of each class first: ``class``,
    ``latent``, ``name`` (the latent's number, where it has none), ``weight`` (of the latent in
    units of its standard deviation)."""
    settings: dict[str, Any]
    """What was classified, and how."""

    def report(self) -> EvaluationReport:
        """As a report that can be printed and saved, with the weights of every classifier."""
        weights = pd.concat(self.weights, names=["c", "rank"])
        return EvaluationReport({"bottleneck": self.path, "weights": weights}, self.settings)


@torch.no_grad()
def concept_bottleneck(
    model: HookedViT,
    sae: SAE[Any],
    train_images: Any,
    test_images: Any,
    *,
    names: Mapping[int, LatentName | str] | None = None,
    only_named: bool = False,
    penalties: Sequence[float] = PENALTIES,
    n_images: int | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> ConceptBottleneck:
    """Fit and test the classifiers. Needs scikit-learn (the extra ``concepts``).

    A latent's value for an image is its largest over the patches (all tokens, if the SAE reads no
    patches), in units of its standard deviation over the training images; values are not centred,
    so that a latent that is silent adds nothing. The linear probe reads the model's own embedding
    (``fit_linear_probe``), of the same images.

    Args:
        model, sae: the model and any SAELens SAE on it.
        train_images, test_images: labelled image sources of the same classes.
        names: names of latents, such as ``atlas.names``.
        only_named: leave latents without a name out.
        penalties: scikit-learn's C: the larger, the more concepts get a weight.
        n_images: how many of either source to use, drawn at random; None: all.
        batch_size_images, n_workers, progress: of the walks.
        seed: of the choice of images and the bootstrap.

    Raises:
        ImportError: scikit-learn isn't there.
        ValueError: fewer than two classes, images without labels, classes that differ, no named
            latent, or a penalty out of range.
    """
    fit_logistic = _logistic_regression()
    if not penalties or not all(c > 0 and np.isfinite(c) for c in penalties):
        raise ValueError(f"penalties are {list(penalties)}; want numbers above 0")
    train_images, test_images = open_images(train_images), open_images(test_images)
    class_names = train_images.class_names
    if class_names != test_images.class_names:
        raise ValueError(
            f"{train_images.name} and {test_images.name} have other classes; want images of the "
            "same ones to train and to test on"
        )
    words = {latent: _word(name) for latent, name in (names or {}).items()}
    words = {latent: word for latent, word in words.items() if word}
    if only_named and not words:
        raise ValueError("only_named is True, but no latent has a name; want names")
    attached = AttachedSAE(model, sae)
    if unknown := [latent for latent in words if not 0 <= latent < attached.d_sae]:
        raise ValueError(f"names has a latent {unknown[0]}; want 0 to {attached.d_sae - 1}")
    settings: dict[str, Any] = {
        "batch_size_images": batch_size_images,
        "n_images": n_images,
        "shuffle": True,
        "seed": seed,
        "n_workers": n_workers,
        "progress": progress,
    }
    train = _read(attached, train_images, settings)
    test = _read(attached, test_images, settings)
    if len(train.label.unique()) < 2:
        raise ValueError(f"{train_images.name} has images of one class; want two or more")
    chosen = np.array(sorted(words)) if only_named else np.arange(attached.d_sae)
    scale = train.latents[:, chosen].std(0, unbiased=False)
    chosen, scale = chosen[(scale > 0).numpy()], scale[scale > 0]
    if len(chosen) == 0:
        raise ValueError("no latent varies over the training images; want some to tell classes by")
    x, x_test = ((part.latents[:, chosen] / scale).numpy() for part in (train, test))
    probe = fit_linear_probe(train.embedding, train.label)
    by_probe = (probe(test.embedding).argmax(-1) == test.label).double().numpy()
    rows, weights = {}, {}
    for c in tqdm(sorted(penalties), desc="bottleneck", disable=not progress):
        classifier = fit_logistic(x, train.label.numpy(), c)
        right = (classifier.predict(x_test) == test.label.numpy()).astype(float)
        weights[c] = _readable(classifier, chosen, words, class_names)
        rows[c] = _row(right, by_probe, weights[c]["latent"].nunique(), seed)
    path = pd.DataFrame.from_dict(rows, orient="index").rename_axis("c")
    said = {
        "train_images": train_images.name,
        "test_images": test_images.name,
        "n_train": len(train.label),
        "n_test": len(test.label),
        "n_classes": len(train.label.unique()),
        "n_latents": len(chosen),
        "n_named": len(words),
        "embedding": model.model_name,
    }
    return ConceptBottleneck(path, weights, said)


def _logistic_regression() -> Any:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
    except ImportError:
        raise ImportError(
            "a concept bottleneck needs scikit-learn; install it by "
            "pip install 'vit-sae-plugin[concepts]'"
        ) from None

    def fit(x: np.ndarray, label: np.ndarray, c: float) -> Any:
        # liblinear reaches exact zeros; its intercept is penalised, and large so that it hardly is
        one = LogisticRegression(
            C=c, l1_ratio=1.0, solver="liblinear", intercept_scaling=10.0, max_iter=200
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return OneVsRestClassifier(one).fit(x, label)

    return fit


@dataclass
class _Images:
    latents: Float[Tensor, "images d_sae"]
    embedding: Float[Tensor, "images d_embed"]
    label: Int[Tensor, " images"]


def _read(attached: AttachedSAE, images: Any, settings: dict[str, Any]) -> _Images:
    """Image-level latents, the model's embedding and the label of each labelled image."""
    model = attached.model
    embed = ActivationSource.from_model(model, "hook_image_embed", "all")
    tokens: Any = slice(None)
    if attached.layout.has("patch"):
        tokens = attached.layout.role_positions("patch")
    latents, embeddings, labels = [], [], []
    for batch in attached.walk(images, description=images.name, **settings):
        has = batch.label >= 0
        acts_btd = attached.activations(batch.pixels)[:, tokens]
        strongest = [some.amax(1) for _, some in attached.encode_parts(acts_btd)]
        latents.append(torch.cat(strongest).float().cpu()[has])
        embeddings.append(embed.activations(model, batch.pixels)[:, 0].float().cpu()[has])
        labels.append(batch.label[has])
    if sum(map(len, labels)) == 0:
        raise ValueError(f"no image of {images.name} has a label; want labelled images")
    return _Images(torch.cat(latents), torch.cat(embeddings), torch.cat(labels))


def _word(name: LatentName | str) -> str:
    return name if isinstance(name, str) else name.name


def _readable(
    classifier: Any,
    latents: np.ndarray,
    words: Mapping[int, str],
    class_names: Sequence[str] | None,
) -> pd.DataFrame:
    rows = []
    # of two classes there is one classifier, for the second
    classes = classifier.classes_[-len(classifier.estimators_) :]
    for label, one in zip(classes, classifier.estimators_, strict=True):
        weight = one.coef_[0] if hasattr(one, "coef_") else np.zeros(len(latents))
        order = np.argsort(-np.abs(weight), kind="stable")
        name = class_names[label] if class_names else str(label)
        for at in order[weight[order] != 0]:
            latent = int(latents[at])
            rows.append((name, latent, words.get(latent, str(latent)), float(weight[at])))
    return pd.DataFrame(rows, columns=["class", "latent", "name", "weight"])


def _row(right: np.ndarray, by_probe: np.ndarray, n: int, seed: int) -> dict[str, float]:
    both = bootstrap_mean(np.stack([right, by_probe, by_probe - right], 1), seed=seed)
    return {
        "n_concepts": n,
        "accuracy": both.mean[0],
        "accuracy_low": both.low[0],
        "accuracy_high": both.high[0],
        "probe_accuracy": both.mean[1],
        "below_probe": both.mean[2],
        "below_probe_low": both.low[2],
        "below_probe_high": both.high[2],
    }
