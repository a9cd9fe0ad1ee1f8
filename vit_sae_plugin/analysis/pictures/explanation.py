"""Which latents an image activates: as a whole, and at each patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from PIL import Image

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.aggregation import make_aggregation
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae, warn_of_another_model
from vit_sae_plugin.analysis.html_pieces import card, data_uri, text
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, highlight
from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.seen_region import Region, seen_region
from vit_sae_plugin.analysis.pictures.shown_list import ShownList
from vit_sae_plugin.attached_sae import AttachedSAE, Attribution, attribute, zero_shot_score
from vit_sae_plugin.attached_sae.attribution import Method, Score
from vit_sae_plugin.datasets.image_decoding import decode_image
from vit_sae_plugin.prompt_templates import Template, named_templates

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout


@dataclass(repr=False)
class LatentInImage:
    """One latent of an explanation: how strong it is here, where, and what it is elsewhere."""

    latent: int
    """Index of the latent."""
    value: float
    """Its value in this image, under the explanation's aggregation; its activation at the patch
    asked for; or its part in the logit asked for."""
    heatmap: Heatmap
    """Where in the image it is active."""
    statistics: pd.Series
    """Its row of ``atlas.latents``."""
    reference_images: pd.DataFrame
    """As ``LatentAtlas.reference_images`` gives them."""

    def __repr__(self) -> str:
        return f"LatentInImage(latent {self.latent}, value {self.value:.3g})"

    def _repr_html_(self) -> str:
        """A card: the picture with the mask, the value here, and what the latent is elsewhere."""
        picture = data_uri(highlight(self.heatmap, size=self.heatmap.size_of_region(128)))
        return card(
            128,
            f'<img src="{picture}"><br><b>{self.latent}</b> &middot; {self.value:.3g}<br>on '
            f"{self.statistics['frequency']:.1%} of images<br>"
            f"{text(self.statistics['top_class_name'])}",
        )


@dataclass(repr=False)
class Explanation:
    """The latents of one image, made by ``explain``."""

    image: Image.Image
    """The picture."""
    region: Region
    """The part of it that the model sees."""
    aggregation: str
    """How latents are ranked at image level."""
    latents: ShownList[LatentInImage]
    """The strongest latents at image level, the strongest first."""
    atlas: LatentAtlas
    """Where statistics and reference images come from."""
    token: Int[np.ndarray, " n"]
    """Token of each positive activation, in order."""
    latent: Int[np.ndarray, " n"]
    """Latent of each positive activation."""
    activation: Float[np.ndarray, " n"]
    """Each positive activation."""
    layout: TokenLayout
    """What each token is."""
    attribution: Attribution | None = None
    """Which latents, in which tokens, made the logit asked for; None if none was."""

    @property
    def table(self) -> pd.DataFrame:
        """The strongest latents with their value here and their statistics."""
        return self._table(self.latents)

    def at_patch(self, row: int, column: int, n_latents: int = 10) -> ShownList[LatentInImage]:
        """The latents most active at one patch, the most active first; in a notebook, as cards.

        Raises:
            ValueError: no such patch, or the SAE doesn't read it.
        """
        n_rows, n_columns = self.layout.grid
        if not (0 <= row < n_rows and 0 <= column < n_columns):
            raise ValueError(
                f"there is no patch ({row}, {column}); the grid has {n_rows} rows and "
                f"{n_columns} columns, counted from 0"
            )
        found = (self.layout.patch_of_token == row * n_columns + column).nonzero().flatten()
        if len(found) == 0:
            raise ValueError(
                f"this SAE doesn't read patch ({row}, {column}); want one of its token selection"
            )
        here = self.token == int(found[0])
        order = np.argsort(-self.activation[here], kind="stable")[:n_latents]
        return ShownList(
            self._latent(int(latent), float(value))
            for latent, value in zip(
                self.latent[here][order], self.activation[here][order], strict=True
            )
        )

    def heatmap(self, latent: int) -> Heatmap:
        """Where in this image a latent is active.

        Raises:
            ValueError: there is no such latent.
        """
        latent = self.atlas.check_latent(latent)
        tokens = torch.zeros(len(self.layout.patch_of_token))
        here = self.latent == latent
        tokens[torch.from_numpy(self.token[here])] = torch.from_numpy(self.activation[here])
        grid = self.layout.on_grid(tokens).numpy()
        return Heatmap(self.image, latent, grid, self.region)

    def _latent(self, latent: int, value: float) -> LatentInImage:
        return LatentInImage(
            latent,
            value,
            self.heatmap(latent),
            self.atlas.latents.loc[latent],
            self.atlas.reference_images(latent),
        )

    def _table(self, latents: list[LatentInImage]) -> pd.DataFrame:
        index = pd.Index([one.latent for one in latents], name="latent")
        values = pd.DataFrame({"value": [one.value for one in latents]}, index=index)
        columns = ["frequency", "mean_activation", "label_entropy", "top_class_name"]
        return values.join(self.atlas.latents[columns])

    def __repr__(self) -> str:
        strongest = ", ".join(f"{one.latent}: {one.value:.3g}" for one in self.latents[:3])
        return f"Explanation({len(self.latents)} latents by {self.aggregation}; {strongest}, …)"

    def _repr_html_(self) -> str:
        """The picture, and its strongest latents, each with its mask."""
        height = max(1, round(260 * self.image.height / self.image.width))
        whole = data_uri(self.image.resize((260, height)))
        by = f"Strongest latents by <b>{text(self.aggregation)}</b>"
        shown = "".join(one._repr_html_() for one in self.latents)
        return card(260, f'<img src="{whole}"><br>{by}') + shown


def explain(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    image: Any,
    *,
    n_latents: int = 10,
    aggregation: str | None = None,
    logit: int | str | Score | None = None,
    method: Method = "gradient",
    templates: str | Path | Sequence[Template] | None = None,
    source: ActivationSource | None = None,
) -> Explanation:
    """Find the latents that an image activates most, with masks, statistics and references;
    or, with ``logit``, those that made the model's answer.

    Args:
        model: the model the SAE reads.
        sae: the SAE that the atlas was made from.
        atlas: made by ``analyze``.
        image: a picture of any size, the path of one, or a uint8 array, read as ``analyze``
            reads it: upright, transparency on white (see ``decode_image``).
        n_latents: how many to list at image level.
        aggregation: a name in ``atlas.references``; None: the atlas's default.
        logit: rank latents by their part in this number instead, of either sign: a class of the
            atlas (its index), a text such as ``"a photo of a dog"``, or a function from the model's
            output ``[n, d_embed]`` to one number each.
        method: how their part is found: ``"gradient"``, ``"integrated_gradients"`` or
            ``"ablation"``; see ``attribute``.
        templates: prompt templates around a class's name, as ``evaluate_sae`` takes them.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.

    Raises:
        ValueError: the atlas was made from another SAE, or lacks this aggregation; or the SAE
            reads no patches.
        UnreadableImageError: the picture can't be read.
    """
    check_same_sae(atlas, sae)
    warn_of_another_model(atlas, model)
    attached = AttachedSAE(model, sae, source)
    score = None if logit is None else logit_score(model, atlas, logit, templates)
    return explain_attached(
        attached,
        atlas,
        image,
        n_latents=n_latents,
        aggregation=aggregation,
        score=score,
        method=method,
    )


def explain_attached(
    attached: AttachedSAE,
    atlas: LatentAtlas,
    image: Any,
    *,
    n_latents: int = 10,
    aggregation: str | None = None,
    score: Score | None = None,
    method: Method = "gradient",
) -> Explanation:
    """``explain`` for many images: the SAE is known to be the atlas's."""
    name = atlas.default_aggregation if aggregation is None else aggregation
    if name not in atlas.info.aggregations:
        known = ", ".join(map(repr, atlas.info.aggregations))
        raise ValueError(f"this atlas has no aggregation {name!r}; want one of {known}")
    layout = attached.require_patches()
    image = decode_image(image)
    tokens = next(encode_images(attached, [image]))
    image_level = make_aggregation(atlas.info.aggregations[name])(tokens[None])[0].cpu()
    tokens = tokens.cpu()
    token, latent = (tokens > 0).nonzero(as_tuple=True)
    explanation = Explanation(
        image=image,
        region=seen_region(attached.model.require_preprocess(), image.size),
        aggregation=name,
        latents=ShownList(),
        atlas=atlas,
        token=token.numpy(),
        latent=latent.numpy(),
        activation=tokens[token, latent].numpy(),
        layout=layout,
    )
    if score is not None:
        pixels = attached.model.require_preprocess()(image)[None].to(attached.model.cfg.device)
        explanation.attribution = attribute(attached, pixels, score, method)
        parts = explanation.attribution.by_latent["attribution"].iloc[:n_latents]
        explanation.latents.extend(
            explanation._latent(int(one), float(part)) for one, part in parts.items()
        )
        return explanation
    order = torch.argsort(image_level, descending=True, stable=True)[:n_latents]
    explanation.latents.extend(
        explanation._latent(int(one), float(image_level[one]))
        for one in order
        if image_level[one] > 0
    )
    return explanation


def logit_score(
    model: HookedViT,
    atlas: LatentAtlas,
    logit: int | str | Score,
    templates: str | Path | Sequence[Template] | None = None,
) -> Score:
    """The number that ``explain(..., logit=…)`` explains, as a function of the model's output.

    Raises:
        ValueError: the atlas has no such class, or the model no text tower.
    """
    if callable(logit):
        return logit
    scale = 1.0 if model.logit_scale is None else model.logit_scale.item()
    if isinstance(logit, str):
        classifier = model.zero_shot_classifier([logit], [lambda name: name])
        return zero_shot_score(classifier, 0, scale)
    names = atlas.info.class_names or []
    if not 0 <= logit < len(names):
        raise ValueError(
            f"logit is {logit}; want a class from 0 to {len(names) - 1} of the atlas, a text or a "
            "function"
            if names
            else f"logit is {logit}, but the atlas has no classes; want a text or a function"
        )
    classifier = model.zero_shot_classifier(
        [names[logit]], named_templates(templates, model.model_name)
    )
    return zero_shot_score(classifier, 0, scale)
