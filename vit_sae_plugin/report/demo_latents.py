"""Which latents the demo shows: the best, the middling and the worst, by a rule that it states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vit_sae_plugin.analysis import LatentAtlas

RULE = (
    "Of the latents that are active on at least 0.5 % of the images, not dense, and most active "
    "on a patch of each reference image, sorted by label entropy: the first, those around the "
    "middle and the last, leaving out a latent whose leading class its group has already."
)
_MIN_FREQUENCY = 0.005
_MOST, _FEW = 8, 3


@dataclass
class DemoLatents:
    """Latents by how much the labels of their reference images vary."""

    purest: list[int]
    middling: list[int]
    least_pure: list[int]
    n_eligible: int
    """How many the rule chose from."""
    n_of_one_class: int
    """How many of those have one class on at least 8 of 10 reference images."""
    n_of_no_class: int
    """How many have no class on more than 3 of 10."""

    @property
    def all(self) -> list[int]:
        return [*self.purest, *self.middling, *self.least_pure]


def demo_latents(atlas: LatentAtlas, n_of_each: int = 8) -> DemoLatents:
    """Choose latents by ``RULE``, which shows what an SAE does well and what it does not."""
    table = atlas.latents
    table = table[(table["frequency"] >= _MIN_FREQUENCY) & ~table["is_dense"]]
    entropy = table["label_entropy"].dropna().round(9).sort_values(kind="stable")
    labels = {}
    for latent in entropy.index:
        images = atlas.reference_images(latent)
        if images["row"].notna().all():
            labels[int(latent)] = images["label"]
    order = list(labels)
    largest = {latent: _largest_class(label) for latent, label in labels.items()}
    middle = sorted(order, key=lambda latent: abs(order.index(latent) - (len(order) - 1) / 2))
    shares = [n / len(labels[latent]) for latent, (_, n) in largest.items()]

    def first(ranked: Sequence[int]) -> list[int]:
        chosen: dict[int, int] = {}
        for latent in ranked:
            if len(chosen) < n_of_each:
                chosen.setdefault(largest[latent][0], latent)
        return list(chosen.values())

    purest = first(order)
    rest = [latent for latent in order if latent not in purest]
    least_pure = first(rest[::-1])[::-1]
    between = [latent for latent in middle if latent not in purest and latent not in least_pure]
    return DemoLatents(
        purest=purest,
        middling=sorted(first(between), key=order.index),
        least_pure=least_pure,
        n_eligible=len(order),
        n_of_one_class=sum(share >= _MOST / 10 for share in shares),
        n_of_no_class=sum(share <= _FEW / 10 for share in shares),
    )


def in_common(class_names: Sequence[str]) -> tuple[str, int]:
    """What most images have in common, and how many: their class, or a word of its name.

    ``["red ring", "blue ring", "red ring"]`` gives ``("ring", 3)``: a latent may respond to a
    shape of any colour. Of a class and its words that are as frequent the class is given.
    """
    counts: Counter[str] = Counter()
    for name in class_names:
        counts.update(dict.fromkeys([name, *name.split()], 1))
    most = max(counts.values())
    return max((text for text in counts if counts[text] == most), key=_n_words), most


def _n_words(text: str) -> int:
    return len(text.split())


def _largest_class(labels: pd.Series) -> tuple[int, int]:
    counts = labels.value_counts()
    return int(counts.index[0]), int(counts.iloc[0])
