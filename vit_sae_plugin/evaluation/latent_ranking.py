"""Which latents count most for a class, by what they did on images of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Int

from vit_sae_plugin.aggregation import make_aggregation

if TYPE_CHECKING:
    from vit_sae_plugin.aggregation import AggregationRule
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.datasets import ImageSource

Ranking = Literal["class", "selective", "dataset", "random"]
RANKINGS: tuple[str, ...] = get_args(Ranking)


class CountedClasses(Protocol):
    """What a saved atlas offers a ranking."""

    class_counts: Any
    class_n_images: Any
    info: Any


@dataclass(frozen=True)
class LatentRanking:
    """Class-level latents (PatchSAE, Eq. 4), and the orders that follow from them.

    - ``"class"``: by the class's own level, the highest first.
    - ``"selective"``: by the share of a latent's level an image that falls on the class, classes
      weighing alike, among the latents that are strong in it (see ``min_level``).
    - ``"dataset"``: by the level in all classes, the same order for each class.
    - ``"random"``: a random order of the latents that are active in any class.
    """

    levels: Float[np.ndarray, "n_classes d_sae"]
    """Sum over the class's images of each latent's image-level value."""
    n_images: Int[np.ndarray, " n_classes"]
    """Images of each class that were counted."""
    fingerprint: str | None = None
    """Of the image source they come from."""
    min_level: float = 0.1
    """A latent is strong in a class if its level there is at least this share of the class's
    highest: otherwise a latent of one odd image would lead ``"selective"``."""

    @classmethod
    def from_atlas(cls, atlas: CountedClasses) -> Self:
        """The class-level counts of a saved atlas.

        Raises:
            ValueError: the atlas counted no labelled images.
        """
        n_images = np.asarray(atlas.class_n_images)
        if n_images.sum() == 0:
            raise ValueError("the atlas counted no labelled images; want one of images with labels")
        levels = np.asarray(atlas.class_counts, dtype=np.float64)
        return cls(levels, n_images, atlas.info.data_sha256)

    @classmethod
    @torch.no_grad()
    def from_images(
        cls,
        attached: AttachedSAE,
        images: ImageSource,
        *,
        aggregation: AggregationRule = "mean",
        **walk: Any,
    ) -> Self:
        """Count in one pass over labelled images.

        Args:
            attached: the SAE on its model.
            images: labelled images, none of which is to be scored later.
            aggregation: from the tokens of an image to its value for each latent.
            walk: settings of ``vit_sae_plugin.activations.ImageWalk``.

        Raises:
            ValueError: the images have no labels.
        """
        if not images.class_names:
            raise ValueError(
                f"{images.name} has no labels; want labelled images, to rank for their classes"
            )
        rule = make_aggregation(aggregation)
        levels = torch.zeros(len(images.class_names), attached.d_sae, dtype=torch.float64)
        n_images = torch.zeros(len(images.class_names), dtype=torch.int64)
        for batch in attached.walk(images, **walk):
            for part, latents in attached.encode_parts(attached.activations(batch.pixels)):
                label = batch.label[part]
                labelled = label >= 0
                values = rule(latents).cpu()[labelled].to(levels)
                levels.index_add_(0, label[labelled], values)
            n_images += torch.bincount(batch.label[batch.label >= 0], minlength=len(n_images))
        return cls(levels.numpy(), n_images.numpy(), images.fingerprint())

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.levels)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.levels.shape[1]

    def order(
        self, ranking: str, n: int, *, seed: int = 0, draw: int = 0
    ) -> Int[np.ndarray, "n_classes n"]:
        """The first ``n`` latents for each class. Ties go to the lower index.

        Args:
            ranking: ``"class"``, ``"selective"``, ``"dataset"`` or ``"random"``.
            n: how many, at most ``d_sae``.
            seed, draw: of a random order.

        Raises:
            ValueError: the ranking is unknown.
        """
        if ranking not in RANKINGS:
            raise ValueError(f"ranking is {ranking!r}; want one of {', '.join(RANKINGS)}")
        if ranking == "random":
            return self._random_orders(n, seed, draw)
        if ranking == "dataset":
            keys = np.broadcast_to(self.levels.sum(0), self.levels.shape)
        else:
            keys = self.levels if ranking == "class" else self._selectivity()
        return np.argsort(-keys, axis=1, kind="stable")[:, :n]

    def _selectivity(self) -> Float[np.ndarray, "n_classes d_sae"]:
        per_image = self.levels / np.maximum(self.n_images, 1)[:, None]
        share = per_image / np.maximum(per_image.sum(0), np.finfo(np.float64).tiny)
        strong = per_image >= self.min_level * per_image.max(1, keepdims=True)
        # behind the latents strong enough, the others in the order of their level
        return np.where(strong, 1 + share, per_image / (per_image.max() + 1))

    def _random_orders(self, n: int, seed: int, draw: int) -> Int[np.ndarray, "n_classes n"]:
        active = self.levels.sum(0) > 0
        orders = []
        for label in range(self.n_classes):
            generator = np.random.default_rng([seed, draw, label])
            order = generator.permutation(self.d_sae)
            orders.append(order[np.argsort(~active[order], kind="stable")][:n])
        return np.stack(orders)
