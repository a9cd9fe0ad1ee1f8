"""The causal side of remapping: how much of what adaptation gains hangs on which latents.

One SAE reads a plain and an adapted model. In the adapted model's stream, latents are held at what
they are in the plain model for the same image and token, or silenced; or the adapted model's are
put into the plain one. Each time one sees how often the image is classified rightly, beside the
same done to as many random latents of like frequency. Blocks below the SAE run once an image and
model; what the SAE doesn't describe stays as it is in the model that is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE, UpperRun
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean, bootstrap_ratio
from vit_sae_plugin.evaluation.like_frequency import like_frequency
from vit_sae_plugin.evaluation.masking import Head
from vit_sae_plugin.evaluation.stream_change import SquaredChanges, squared_changes


@dataclass(frozen=True)
class LatentSets:
    """Which latents of each class a study changes; found on other images than those scored."""

    risen: Bool[np.ndarray, "n_classes d_sae"]
    """Low in the plain model, high in the adapted one."""
    used: Bool[np.ndarray, "n_classes d_sae"]
    """Not low in the plain model."""
    frequency: Float[np.ndarray, "n_classes d_sae"]
    """Share of the class's images in which the latent is active in the adapted model."""


class RemappingCondition(NamedTuple):
    """One way to run an image. The index of ``RemappingResult.table``, but for ``draw``."""

    model: str
    """Whose blocks above the SAE run: ``"plain"`` or ``"adapted"``."""
    change: str
    """``"none"``; ``"other head"``: classified by the other model's head; ``"held"``: latents of
    the adapted model held at their values in the plain one; ``"only"``: all latents but these
    silenced; ``"put in"``: latents of the plain model set to their values in the adapted one."""
    latents: str
    """``""``, ``"risen"``, ``"used"``, ``"random"``, ``"all"``, or ``"stream"``: all of them and
    what the SAE doesn't describe, which is the other model's stream."""
    error_term: bool
    """Whether what the SAE doesn't describe is added."""
    draw: int
    """Of random latents."""


@dataclass
class RemappingResult:
    """Which image is classified rightly under which condition, and how far its stream moved."""

    conditions: list[RemappingCondition]
    """In the order of the columns."""
    correct: Bool[np.ndarray, "images conditions"]
    """Whether an image is given its label."""
    label: Int[np.ndarray, " images"]
    """Its label."""
    index: Int[np.ndarray, " images"]
    """Its number in the source."""
    changes: list[SquaredChanges]
    """Of each batch of images."""

    def own(self, model: str) -> Bool[np.ndarray, " images"]:
        """Whether a model, ``"plain"`` or ``"adapted"``, as it is gives each image its label."""
        at = self.conditions.index(RemappingCondition(model, "none", "", True, 0))
        return self.correct[:, at]

    def table(self, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """A row for each condition, with bootstrap intervals over images.

        Random draws are put together: an image's value is its mean over them.

        - ``accuracy``, ``low``, ``high``.
        - ``share_of_gain``: (accuracy − plain) ÷ (adapted − plain), with ``share_low`` and
          ``share_high``; missing where the images don't tell that there is a gain or a loss.
        - ``minus_random``: accuracy − that of the same change of random latents, an image with
          itself, with ``minus_low`` and ``minus_high``; missing where there is no such control.
        - ``n_images``.
        """
        values = self._values()
        correct = np.stack(list(values.values()), axis=1)
        accuracy = bootstrap_mean(correct, confidence=confidence, seed=seed)
        plain = values["plain", "none", "", True]
        adapted = values["adapted", "none", "", True]
        share = bootstrap_ratio(
            correct - plain[:, None],
            np.broadcast_to((adapted - plain)[:, None], correct.shape),
            confidence=confidence,
            seed=seed,
        )
        minus = np.full((3, len(values)), np.nan)
        for at, (model, change, latents, error_term) in enumerate(values):
            control = values.get((model, change, "random", error_term))
            if latents in ("risen", "used") and control is not None:
                difference = correct[:, at] - control
                minus[:, at] = bootstrap_mean(difference, confidence=confidence, seed=seed)
        index = pd.MultiIndex.from_tuples(list(values), names=RemappingCondition._fields[:-1])
        table = pd.DataFrame(index=index)
        table["accuracy"], table["low"], table["high"] = accuracy
        table["share_of_gain"], table["share_low"], table["share_high"] = share
        table["minus_random"], table["minus_low"], table["minus_high"] = minus
        table["n_images"] = len(correct)
        return table

    def _values(self) -> dict[tuple[str, str, str, bool], Float[np.ndarray, " images"]]:
        columns: dict[tuple[str, str, str, bool], list[int]] = {}
        for at, condition in enumerate(self.conditions):
            columns.setdefault(condition[:-1], []).append(at)
        return {key: self.correct[:, at].mean(1) for key, at in columns.items()}


class RemappingStudy:
    """The conditions of a study, and how a batch of images goes through them all.

    Args:
        pair: the SAE on both models.
        sets: each class's latents.
        heads: from each model's output to logits, the plain one's first.
        n_draws: random sets for each change.
        swap_heads: also classify each model's output by the other's head.
        seed: of the random sets.
    """

    def __init__(
        self,
        pair: AttachedPair,
        sets: LatentSets,
        heads: tuple[Head, Head],
        *,
        n_draws: int = 3,
        swap_heads: bool = True,
        seed: int = 0,
    ):
        if n_draws < 1:
            raise ValueError(f"n_draws is {n_draws}; want 1 or more")
        if sets.risen.shape[1] != pair.plain.d_sae:
            raise ValueError(
                f"the sets are of {sets.risen.shape[1]} latents, but the SAE has "
                f"{pair.plain.d_sae}; want sets found with this SAE"
            )
        self.pair = pair
        self.heads = dict(zip(("plain", "adapted"), heads, strict=True))
        self.seed = seed
        self.matrix = pair.plain.rows.decoder_matrix()
        draws = range(n_draws)
        unused = ~sets.used
        chosen: dict[tuple[str, int], np.ndarray] = {("risen", 0): sets.risen}
        chosen[("unused", 0)] = unused
        for draw in draws:
            of_risen = like_frequency(sets.risen, sets.frequency, seed=seed, draw=draw)
            chosen[("like risen", draw)] = of_risen
            of_unused = like_frequency(unused, sets.frequency, seed=seed, draw=draw)
            chosen[("like unused", draw)] = of_unused
        self._chosen = {key: torch.from_numpy(mask) for key, mask in chosen.items()}
        self.conditions = [
            *(RemappingCondition(*row, "", True, 0) for row in _unchanged(swap_heads)),
            *(
                RemappingCondition("adapted", "held", latents, True, draw)
                for latents, draw in _changes(n_draws)
            ),
            *(
                RemappingCondition("adapted", "only", latents, error_term, draw)
                for error_term in (True, False)
                for latents, draw in [("used", 0), *(("random", draw) for draw in draws)]
            ),
            RemappingCondition("adapted", "only", "all", False, 0),
            *(
                RemappingCondition("plain", "put in", latents, True, draw)
                for latents, draw in _changes(n_draws)
            ),
        ]

    @torch.no_grad()
    def run(
        self, pixels: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"]
    ) -> tuple[Bool[np.ndarray, "batch conditions"], SquaredChanges]:
        """Whether each image is given its label under each condition, and how far it moved."""
        pair, found = self.pair, {}
        at = {"plain": _Stream(pair.plain, pixels), "adapted": _Stream(pair.adapted, pixels)}
        for name, stream in at.items():
            conditions = [one for one in self.conditions if one.model == name]
            # conditions with the model's own stream need it run but once
            own = next(iter(stream.run.outputs([stream.z])))
            changed = [one for one in conditions if one.change not in ("none", "other head")]
            outputs = stream.run.outputs(self._changed(changed, at, labels))
            embeds = dict(zip(changed, outputs, strict=True))
            for one in conditions:
                other = "adapted" if name == "plain" else "plain"
                head = self.heads[other if one.change == "other head" else name]
                found[one] = head(embeds.get(one, own)).argmax(-1).cpu()
        answers = torch.stack([found[one] for one in self.conditions])
        moved = squared_changes(
            (at["plain"].z, at["adapted"].z.to(at["plain"].z)),
            (at["plain"].x_hat, at["adapted"].x_hat.to(at["plain"].z)),
            (at["plain"].latents > 0) | (at["adapted"].latents > 0),
            pair.plain.sae.W_dec,
            seed=self.seed,
        )
        return (answers == labels.cpu()).T.numpy(), moved

    def _changed(
        self, conditions: list[RemappingCondition], at: dict[str, _Stream], labels: Tensor
    ) -> Iterator[Tensor]:
        """What stands where the SAE writes, under each condition."""
        for one in conditions:
            stream = at[one.model]
            other = at["adapted" if one.model == "plain" else "plain"]
            if one.latents == "stream":
                yield other.z.to(stream.z)
                continue
            if one.change == "only" and one.latents == "all":
                new = stream.latents
            elif one.change == "only":
                silenced = self._of("unused" if one.latents == "used" else "like unused", one)
                new = stream.latents.masked_fill(self._rows(silenced, labels, stream), 0)
            elif one.latents == "all":
                new = other.latents
            else:
                moved = self._of("risen" if one.latents == "risen" else "like risen", one)
                mask = self._rows(moved, labels, stream)
                new = torch.where(mask, other.latents.to(stream.latents), stream.latents)
            yield self._with_latents(stream, new.to(stream.latents), one.error_term)

    def _of(self, name: str, condition: RemappingCondition) -> Tensor:
        return self._chosen[name, condition.draw]

    def _rows(self, chosen: Tensor, labels: Tensor, stream: _Stream) -> Tensor:
        """Of each image its own class's latents, for all tokens."""
        return chosen[labels.cpu()].to(stream.latents.device)[:, None]

    def _with_latents(self, stream: _Stream, new: Tensor, error_term: bool) -> Tensor:
        base = stream.z if error_term else stream.x_hat
        if self.matrix is None:
            return base + (stream.decoded(new) - stream.decoded(stream.latents)).to(base)
        change = new - stream.latents
        moved = change.any(0).any(0).nonzero().flatten()  # few of them, as latents are sparse
        return base + (change[..., moved] @ self.matrix[moved]).to(base)


class _Stream:
    """A batch of images in one of the models."""

    def __init__(self, attached: AttachedSAE, pixels: Tensor):
        self.attached = attached
        self.run = UpperRun(
            attached, pixels.to(attached.model.cfg.device, attached.model.cfg.dtype)
        )
        self.z = self.run.target_btd
        self.latents = attached.encode(self.run.acts_btd)
        skip = attached.rows.skip(self.run.acts_btd)
        self.x_hat = (attached.decode(self.latents) + skip).to(self.z)

    def decoded(self, latents: Tensor) -> Tensor:
        """A reconstruction by an SAE that scales each row as it last encoded it."""
        if self.attached.rows.keeps_state:
            self.attached.encode(self.run.acts_btd)
        return self.attached.decode(latents)


def _unchanged(swap_heads: bool) -> list[tuple[str, str]]:
    changes = ["none", "other head"] if swap_heads else ["none"]
    return [(model, change) for change in changes for model in ("plain", "adapted")]


def _changes(n_draws: int) -> list[tuple[str, int]]:
    return [("risen", 0), *(("random", draw) for draw in range(n_draws)), ("all", 0), ("stream", 0)]
