"""The masking study: which latents decide a class (PatchSAE, section 4.2).

An image's residual stream is replaced by a reconstruction in which only its class's first k latents
are kept (*on*), or only they are removed (*off*), and one sees how often the image is still
classified rightly. What it costs: the blocks below the SAE and its encoder run once an image. The
decoder is affine, so k latents' part in the reconstruction is a product with k of its rows, added
up from one k to the next. Each condition then runs the blocks above the SAE, several at a time,
and of the last of them only what the output depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE, UpperRun
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.latent_ranking import RANKINGS, LatentRanking

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
"""The numbers of latents that PatchSAE's paper masks; all of them are a condition of its own."""

Head = Callable[[Tensor], Tensor]
"""From the model's output ``[n, d_embed]`` to logits ``[n, n_classes]``."""


class Condition(NamedTuple):
    """One way to change the reconstruction."""

    ranking: str
    """``"class"``, …, or ``""`` where nothing is ranked."""
    draw: int
    """Of a random ranking."""
    mask: str
    """``"on"``, ``"off"``, ``"all on"``, ``"all off"`` or ``"original"``."""
    error_term: bool
    """Whether what the SAE doesn't describe is added."""
    k: int
    """Latents kept or removed."""


@dataclass
class MaskingResult:
    """Which image is classified rightly under which condition."""

    conditions: list[Condition]
    """In the order of the columns."""
    correct: Bool[np.ndarray, "images conditions"]
    """Whether an image is given its label."""
    label: Int[np.ndarray, " images"]
    """Its label."""
    image_id: list[str]
    """Its id in the source."""
    class_names: list[str]
    """Label index → name."""
    settings: dict[str, Any]
    """What a reader must know to compare numbers."""
    first_latents: pd.DataFrame
    """The latents that are masked first: a row for each ranking that differs between classes, each
    class and each place in its order."""

    def overall(self, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Accuracy of each condition with a bootstrap interval over images.

        Random draws are put together: an image's value is its mean over them.
        """
        return self._table(np.arange(len(self.label)), confidence, seed)

    def by_class(self, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """As ``overall`` for each class that has images."""
        parts = {}
        for label in np.unique(self.label):
            rows = np.flatnonzero(self.label == label)
            parts[(int(label), self.class_names[label])] = self._table(rows, confidence, seed)
        return pd.concat(parts, names=["label", "class"])

    def _table(self, rows: np.ndarray, confidence: float, seed: int) -> pd.DataFrame:
        columns: dict[tuple[Any, ...], list[int]] = {}
        for at, condition in enumerate(self.conditions):
            key = (condition.ranking, condition.mask, condition.error_term, condition.k)
            columns.setdefault(key, []).append(at)
        values = np.stack([self.correct[rows][:, at].mean(1) for at in columns.values()], axis=1)
        interval = bootstrap_mean(values, confidence=confidence, seed=seed)
        index = pd.MultiIndex.from_tuples(
            list(columns), names=["ranking", "mask", "error_term", "k"]
        )
        return pd.DataFrame(
            {
                "accuracy": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n_images": len(rows),
            },
            index=index,
        )


class MaskingStudy:
    """The conditions of a study, and how a batch of images goes through them all.

    Args:
        attached: the SAE on its model.
        ranking: from other images than those scored.
        head: from the model's output to logits.
        ks: numbers of latents; those above ``d_sae`` are trimmed to it.
        rankings: which orders of latents to mask by.
        n_draws: random orders.
        error_terms: without the part that the SAE doesn't describe, with it, or both.
        seed: of the random orders.

    Raises:
        ValueError: the ranking is of another SAE's width; an unknown ranking; a ``k`` below 1.
    """

    def __init__(
        self,
        attached: AttachedSAE,
        ranking: LatentRanking,
        head: Head,
        *,
        ks: Sequence[int] = KS,
        rankings: Sequence[str] = RANKINGS,
        n_draws: int = 3,
        error_terms: Sequence[bool] = (False, True),
        seed: int = 0,
    ):
        if ranking.d_sae != attached.d_sae:
            raise ValueError(
                f"the ranking is of {ranking.d_sae} latents, but the SAE has {attached.d_sae}; "
                "want one made with this SAE"
            )
        check_conditions(ks, rankings, n_draws, error_terms)
        self.attached = attached
        self.head = head
        self.ks = sorted({min(k, attached.d_sae) for k in ks})
        self.error_terms = list(dict.fromkeys(error_terms))
        self.matrix = attached.rows.decoder_matrix()
        self.orders = {
            (name, draw): torch.from_numpy(
                np.ascontiguousarray(ranking.order(name, self.ks[-1], seed=seed, draw=draw))
            )
            for name in dict.fromkeys(rankings)
            for draw in range(n_draws if name == "random" else 1)
        }
        self.conditions = self._conditions()

    def _conditions(self) -> list[Condition]:
        conditions = [Condition("", 0, "original", False, 0)]
        for error_term in self.error_terms:
            if not error_term:  # with it, everything on is the original
                conditions.append(Condition("", 0, "all on", False, self.attached.d_sae))
            conditions.append(Condition("", 0, "all off", error_term, 0))
        for name, draw in self.orders:
            for k in self.ks:
                for mask in ("on", "off"):
                    conditions += [Condition(name, draw, mask, e, k) for e in self.error_terms]
        return conditions

    def first_latents(self, class_names: Sequence[str], n: int = 10) -> pd.DataFrame:
        """The first ``n`` latents of each class, by the rankings that are the class's own."""
        rows = [
            (ranking, label, class_names[label], place + 1, latent)
            for (ranking, _), order in self.orders.items()
            if ranking in ("class", "selective")
            for label, latents in enumerate(order[:, :n].tolist())
            for place, latent in enumerate(latents)
        ]
        columns = ["ranking", "label", "class", "place", "latent"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[:4])

    @torch.no_grad()
    def correct(
        self, pixels: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"]
    ) -> Bool[np.ndarray, "batch conditions"]:
        """Whether each image is given its label, under each condition."""
        run = UpperRun(self.attached, pixels)
        outputs = run.outputs(self._reconstructions(run, labels))
        answers = torch.stack([self.head(embeds).argmax(-1).cpu() for embeds in outputs])
        return (answers == labels.cpu()).T.numpy()

    def _reconstructions(self, run: UpperRun, labels: Tensor) -> Iterator[Tensor]:
        """What stands where the SAE writes, for one condition after another, in their order."""
        target, rows = run.target_btd, self.attached.rows
        latents = self.attached.encode(run.acts_btd)
        skip = rows.skip(run.acts_btd)  # what a transcoder hands past its latents
        full = (rows.decode(latents) + skip).to(target)
        empty = (self._decoded(run, torch.zeros_like(latents)) + skip).to(target)
        error = target - full
        yield target
        for error_term in self.error_terms:
            if not error_term:
                yield full
            yield empty + error if error_term else empty
        for order in self.orders.values():
            chosen = order.to(latents.device)[labels.to(latents.device)]
            for k, part in zip(self.ks, self._parts(run, latents, empty, chosen), strict=True):
                # all of them: exactly, for what a norm makes of a rounding error isn't small
                everything = k == self.attached.d_sae
                for on in (True, False):
                    if everything:
                        masked = full if on else empty
                    else:
                        masked = empty + part if on else full - part
                    for error_term in self.error_terms:
                        yield masked + error if error_term else masked

    def _parts(
        self, run: UpperRun, latents: Tensor, empty: Tensor, chosen: Int[Tensor, "batch k"]
    ) -> Iterator[Tensor]:
        """What the first k latents of each image add to its reconstruction, for each k."""
        if self.matrix is None:
            kept = torch.zeros_like(latents)
            nothing = self._decoded(run, kept)
            for start, stop in zip([0, *self.ks], self.ks, strict=False):
                index = chosen[:, None, start:stop].expand(-1, latents.shape[1], -1)
                kept.scatter_(-1, index, latents.gather(-1, index))
                yield (self._decoded(run, kept) - nothing).to(empty)
            return
        part = torch.zeros_like(empty)
        for start, stop in zip([0, *self.ks], self.ks, strict=False):
            more = chosen[:, start:stop]
            values = latents.gather(-1, more[:, None].expand(-1, latents.shape[1], -1))
            part = part + (values @ self.matrix[more]).to(part)
            yield part

    def _decoded(self, run: UpperRun, latents: Tensor) -> Tensor:
        if self.attached.rows.keeps_state:
            self.attached.encode(run.acts_btd)
        return self.attached.decode(latents)


def check_conditions(
    ks: Sequence[int], rankings: Sequence[str], n_draws: int, error_terms: Sequence[bool]
) -> None:
    """Refuse conditions that there are not.

    Raises:
        ValueError: an unknown ranking, a ``k`` below 1, no draw, or nothing to do.
    """
    if unknown := set(rankings) - set(RANKINGS):
        raise ValueError(f"rankings holds {sorted(unknown)}; want some of {RANKINGS}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks is {tuple(ks)}; want numbers of latents from 1 on")
    if n_draws < 1 or not error_terms:
        raise ValueError(
            f"n_draws is {n_draws} and error_terms {tuple(error_terms)}; want 1 or more draws, "
            "and False, True or both"
        )


def check_splits(
    ranking: LatentRanking | ImageSource, images: ImageSource, allow_same_images: bool
) -> None:
    """Refuse to rank and score on the same images, unless that is asked for.

    Args:
        ranking: the order of latents, or the images to count it on.
        images: those to score.
        allow_same_images: it is asked for.

    Raises:
        ValueError: they are the same, or their classes are not as many.
    """
    if not images.class_names:
        raise ValueError(f"{images.name} has no labels; want labelled images, to classify")
    if isinstance(ranking, LatentRanking):
        n_classes, fingerprint = ranking.n_classes, ranking.fingerprint
    else:
        n_classes, fingerprint = len(ranking.class_names or ()), ranking.fingerprint()
    if n_classes != len(images.class_names):
        raise ValueError(
            f"the ranking is of {n_classes} classes, but {images.name} has "
            f"{len(images.class_names)}; want the same classes in the same order"
        )
    if not allow_same_images and fingerprint == images.fingerprint():
        raise ValueError(
            f"latents would be ranked and scored on the same images, {images.name}, which flatters "
            "them; want two splits, or allow_same_images=True"
        )


def check_every_class(ranking: LatentRanking, images: ImageSource) -> LatentRanking:
    """The ranking, if each class had images to rank latents by.

    Raises:
        ValueError: one had none.
    """
    names = images.class_names or ()
    if missing := [names[at] for at in np.flatnonzero(ranking.n_images == 0)]:
        raise ValueError(
            f"{len(missing)} classes have no image to rank latents by, among them {missing[0]!r}; "
            "want images of every class"
        )
    return ranking
