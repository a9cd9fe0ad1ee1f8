"""What made the model's answer to an explained image: a section of its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.analysis.pictures.explanation import logit_score
from vit_sae_plugin.attached_sae import AttachedSAE, Attribution, attribute, zero_shot_score
from vit_sae_plugin.attached_sae.attribution import Score
from vit_sae_plugin.prompt_templates import Template, named_templates
from vit_sae_plugin.report.site_data import number

PREDICTED = "predicted"
_LATENTS_OF_ANSWER, _LATENTS_OF_PATCH, _CANDIDATES = 20, 6, 5


class Answers:
    """Which latents, in which patches, made a logit, for one picture after another.

    Args:
        attached: the SAE on its model.
        atlas: its classes are those that may be predicted.
        logit: ``"predicted"``, the class that the model would choose; or what
            ``vit_sae_plugin.analysis.explain`` takes, the same for each picture.
        templates: prompt templates around a class's name.

    Raises:
        ValueError: the atlas has no classes to predict, or no such one; or the model can't
            classify by names.
    """

    def __init__(
        self,
        attached: AttachedSAE,
        atlas: LatentAtlas,
        logit: int | str | Score,
        templates: str | Path | Sequence[Template] | None = None,
    ) -> None:
        model = attached.model
        if not callable(logit) and (model.tower.text_method is None or model.tokenizer is None):
            raise ValueError(
                f"logit is {logit!r}, but {model.model_name} has no text tower and tokenizer to "
                "classify with; pass a function from its output to one number each"
            )
        self._attached = attached
        self._scale = 1.0 if model.logit_scale is None else model.logit_scale.item()
        self._score: Score | None = None
        names = atlas.info.class_names or []
        if logit == PREDICTED:
            if len(names) < 2:
                raise ValueError(
                    f"logit is {PREDICTED!r}, but the atlas has {len(names)} classes to choose "
                    "from; want images of several classes, a text, or a function"
                )
            self._classifier = model.zero_shot_classifier(
                names, named_templates(templates, model.model_name)
            )
            return
        self._score = logit_score(model, atlas, logit, templates)
        self._label = logit if isinstance(logit, int) else None
        self._what = logit if isinstance(logit, str) else None

    def of(self, picture: Image.Image) -> dict[str, Any]:
        """What the page of this picture shows of it."""
        model = self._attached.model
        pixels = model.require_preprocess()(picture)[None].to(model.cfg.device)
        if self._score is not None:
            found = attribute(self._attached, pixels, self._score)
            return {"class": self._label, "what": self._what, **_parts(found)}
        with torch.no_grad():
            embeds = torch.nn.functional.normalize(model(pixels), dim=-1)
            logits = self._scale * (embeds @ self._classifier.to(embeds))[0].float().cpu()
        shares = logits.softmax(0)
        order = logits.argsort(descending=True, stable=True)[:_CANDIDATES].tolist()
        score = zero_shot_score(self._classifier, order[0], self._scale)
        return {
            "class": order[0],
            "what": None,
            "candidates": [[i, number(logits[i]), number(shares[i])] for i in order],
            **_parts(attribute(self._attached, pixels, score)),
        }


def _parts(found: Attribution) -> dict[str, Any]:
    """An attribution as plain values.

    Returns:
        ``score``; ``total``, all parts together, and ``elsewhere``, those in tokens that are no
        patches; ``patches``, the sum of all latents at each patch; ``latents``, the largest parts
        first: latent, part, activation summed over tokens, and its patches with its part in each.
        The first ``n_listed`` are those of the image; the others lead at some patch.
    """
    patch_of_token = found.layout.patch_of_token.numpy()
    patch = patch_of_token[found.token]
    by_latent = found.by_latent
    listed = [int(latent) for latent in by_latent.index[:_LATENTS_OF_ANSWER]]
    order = np.argsort(-np.abs(found.value), kind="stable")
    leading = dict.fromkeys(listed)
    n_at_patch: dict[int, int] = {}
    for at in order:
        here = int(patch[at])
        if here >= 0 and n_at_patch.get(here, 0) < _LATENTS_OF_PATCH:
            n_at_patch[here] = n_at_patch.get(here, 0) + 1
            leading[int(found.latent[at])] = None
    latents = []
    for latent in leading:
        there = np.flatnonzero((found.latent == latent) & (patch >= 0))
        row = by_latent.loc[latent]
        parts = [number(value) for value in found.value[there]]
        part, activation = number(row["attribution"]), number(row["activation"])
        latents.append([latent, part, activation, patch[there].tolist(), parts])
    return {
        "score": number(found.score),
        "total": number(found.value.sum()),
        "elsewhere": number(found.value[patch < 0].sum()),
        "patches": [number(value) or 0 for value in found.on_grid().ravel()],
        "n_listed": len(listed),
        "latents": latents,
    }
