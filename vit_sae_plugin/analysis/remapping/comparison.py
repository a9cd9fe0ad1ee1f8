"""What a comparison of two models found, as tables with named rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from vit_sae_plugin.analysis.remapping.class_levels import MODELS, ClassLevels
from vit_sae_plugin.analysis.remapping.latent_changes import (
    CHANGES,
    classify_changes,
    overlap_of_top,
)
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.remapping import RemappingResult
from vit_sae_plugin.evaluation.stream_change import shares_of_change

FALLEN = 0.05
"""Explained variance lost from plain to adapted model, above which a comparison says so."""


@dataclass
class ModelComparison:
    """A plain and an adapted model, seen through one SAE. Made by ``compare_models``."""

    pair: AttachedPair
    """The SAE on both models."""
    images: ImageSource
    """Those that were scored; ``effects.index`` are their numbers."""
    levels: ClassLevels
    """Class-level latents in both."""
    effects: RemappingResult
    """What exchanging latents does."""
    class_names: list[str]
    """Label index → name."""
    low: float
    """Frequency in a class below which a latent is low."""
    high: float
    """From which on it is high."""
    ks: tuple[int, ...]
    """How many of a class's first latents are compared."""
    settings: dict[str, Any]
    """What a reader must know to compare numbers."""

    @property
    def quality(self) -> pd.DataFrame:
        """How well the SAE describes each model: index ``model`` and ``tokens``."""
        return self.levels.quality

    @property
    def notes(self) -> list[str]:
        """What a reader should be warned of."""
        explained = self.quality["explained_variance"].xs("all", level="tokens")
        plain, adapted = explained["plain"], explained["adapted"]
        if adapted >= plain - FALLEN:
            return []
        return [
            f"the SAE describes the adapted model less well: explained variance {adapted:.3f}, "
            f"beside {plain:.3f} of the plain one; latents tell less of what the adapted model does"
        ]

    @cached_property
    def changes(self) -> np.ndarray:
        """``"stays high"``, ``"rises"``, ``"falls"`` or ``""``: ``[n_classes, d_sae]``."""
        plain, adapted = self.levels.frequency()
        return classify_changes(plain, adapted, self.low, self.high)

    def latents(self) -> pd.DataFrame:
        """Each class's latents that are not low in both models: index ``label`` and ``latent``.

        ``tokens_per_image`` and ``frequency`` (share of images) in each model, and ``change``.
        """
        frequency, tokens = self.levels.frequency(), self.levels.tokens_per_image()
        label, latent = np.nonzero((frequency >= self.low).any(0))
        columns: dict[str, Any] = {"class": [self.class_names[at] for at in label]}
        for name, values in (("tokens_per_image", tokens), ("frequency", frequency)):
            for model, of_model in zip(MODELS, values, strict=True):
                columns[f"{name}_{model}"] = of_model[label, latent]
        columns["change"] = self.changes[label, latent]
        index = pd.MultiIndex.from_arrays([label, latent], names=["label", "latent"])
        return pd.DataFrame(columns, index=index)

    def changes_by_class(self) -> pd.DataFrame:
        """How many latents of each class stay high, rise and fall: index ``label`` and ``class``.

        ``rises_by_chance``, ``falls_by_chance``: the same from one half of the class's images to
        the other in the plain model, with half as many images and so with more chance.
        """
        one, other = (self.levels.frequency(half)[0] for half in (0, 1))
        by_chance = classify_changes(one, other, self.low, self.high)
        columns = {name.replace(" ", "_"): (self.changes == name).sum(1) for name in CHANGES}
        for name in CHANGES[1:]:
            columns[f"{name}_by_chance"] = (by_chance == name).sum(1)
        return pd.DataFrame(columns, index=self._classes())

    @cached_property
    def _overlaps(self) -> dict[str, pd.DataFrame]:
        """``overlap_of_top`` of each pair that ``overlap`` compares."""
        halves = [self.levels.tokens_per_image(half) for half in (0, 1)]
        pairs = {
            "models": tuple(self.levels.tokens_per_image()),
            "models, other images": (halves[0][0], halves[1][1]),
            "plain, other images": (halves[0][0], halves[1][0]),
        }
        return {name: overlap_of_top(*pair, ks=self.ks) for name, pair in pairs.items()}

    def overlap_by_class(self) -> pd.DataFrame:
        """``overlap_of_top`` of the two models, for each class and k."""
        table = self._overlaps["models"]
        names = [self.class_names[label] for label in table.index.get_level_values("label")]
        return table.set_index(pd.Index(names, name="class"), append=True).swaplevel()

    def overlap(self, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Means over classes, with bootstrap intervals over them: index ``k`` and ``compared``.

        ``compared``: ``"models"``, on all images; and on half of them each, ``"models, other
        images"`` (plain on one half, adapted on the other) beside ``"plain, other images"`` (plain
        on both): how far other images alone change the top.
        """
        rows = {}
        for compared, table in self._overlaps.items():
            for k in self.ks:
                row: dict[str, float] = {}
                for column in table:
                    values = table[column].xs(k, level="k").dropna()
                    row |= _with_interval(column, values.to_numpy(), confidence, seed)
                rows[k, compared] = row
        result = pd.DataFrame.from_dict(rows, orient="index")
        result.index = pd.MultiIndex.from_tuples(rows, names=["k", "compared"])
        return result.sort_index(level="k", sort_remaining=False)

    def over_classes(self) -> pd.DataFrame:
        """Each latent in the whole data set, classes weighing alike: index ``latent``.

        ``frequency_plain``, ``frequency_adapted``: means over classes; in how many classes it
        ``stays_high``, ``rises`` and ``falls``; ``top_class``: where most tokens of an
        image have it, in either model; missing for a latent that is never active.
        """
        frequency = self.levels.frequency()
        means = frequency.mean(1)
        columns: dict[str, Any] = {
            "frequency_plain": means[0],
            "frequency_adapted": means[1],
        }
        for name in CHANGES:
            columns[name.replace(" ", "_")] = (self.changes == name).sum(0)
        most = self.levels.tokens_per_image().max(0)
        names = np.array(self.class_names, dtype=object)[most.argmax(0)]
        columns["top_class"] = np.where(most.max(0) > 0, names, None)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(names), name="latent"))

    def stream_change(self, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """See ``shares_of_change``."""
        return shares_of_change(self.effects.changes, confidence, seed)

    def summary(
        self, data_set: str | None = None, split: str = "", confidence: float = 0.95, seed: int = 0
    ) -> pd.DataFrame:
        """One row in the form of PatchSAE's tables: index ``data_set`` and ``split``.

        ``high``, ``high_to_low``, ``low_to_high``: latents of a mean class that stay high, fall and
        rise; the accuracy of both models and its change with an interval over images.
        """
        counts = self.changes_by_class().mean()
        plain, adapted = (self.effects.own(model) for model in MODELS)
        row = {
            "high": counts["stays_high"],
            "high_to_low": counts["falls"],
            "low_to_high": counts["rises"],
            "low_to_high_by_chance": counts["rises_by_chance"],
            "accuracy_plain": plain.mean(),
            "accuracy_adapted": adapted.mean(),
            **_with_interval("delta", adapted - plain.astype(float), confidence, seed),
            "n_classes": len(self.class_names),
            "n_images": len(plain),
        }
        name = self.settings["images"] if data_set is None else data_set
        index = pd.MultiIndex.from_tuples([(name, split)], names=["data_set", "split"])
        return pd.DataFrame([row], index=index)

    def report(self, data_set: str | None = None, split: str = "") -> EvaluationReport:
        """All tables, to print and to save as CSV. The SAE's quality comes first."""
        tables = {
            "quality": self.quality,
            "summary": self.summary(data_set, split),
            "effects": self.effects.table(),
            "stream_change": self.stream_change(),
            "overlap": self.overlap(),
            "changes_by_class": self.changes_by_class(),
            "overlap_by_class": self.overlap_by_class(),
            "latents_by_class": self.latents(),
            "latents": self.over_classes(),
        }
        return EvaluationReport(tables, self.settings, self.notes)

    def save(self, folder: str | Path, data_set: str | None = None, split: str = "") -> Path:
        """Write each table as ``NAME.csv``; returns the folder."""
        return self.report(data_set, split).save(folder)

    def _classes(self) -> pd.MultiIndex:
        labels = range(len(self.class_names))
        return pd.MultiIndex.from_arrays([labels, self.class_names], names=["label", "class"])


def _with_interval(
    name: str, values: Float[np.ndarray, " n"], confidence: float, seed: int
) -> dict[str, float]:
    """A mean and its bounds as columns; NaN without values."""
    if len(values) == 0:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    mean, low, high = bootstrap_mean(values, confidence=confidence, seed=seed)
    return {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
