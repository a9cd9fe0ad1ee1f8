"""What a model answers, before and after latents are changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.attached_sae.attribution import Score
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.evaluation.classifier_heads import zero_shot_head
from vit_sae_plugin.evaluation.masking import Head
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.prompt_templates import Template, named_templates

_HEADS_KEPT = 32
_NAMED = ("shapes", "openai", "own")


@dataclass(frozen=True)
class Answer:
    """One class, and how probable the model finds it among those asked for."""

    name: str
    """Of the class."""
    before: float
    """Its probability with nothing changed."""
    after: float
    """Its probability with the latents changed."""


@dataclass(frozen=True)
class Prediction:
    """What a model answers to one picture."""

    answers: tuple[Answer, ...]
    """The classes that lead before or after, the most probable before first."""
    before: str
    """The class that leads with nothing changed."""
    after: str
    """The class that leads with the latents changed."""


class Classifier:
    """A head over classes, with the scale that makes probabilities of its logits."""

    def __init__(self, head: Head, class_names: Sequence[str], logit_scale: float) -> None:
        self.class_names = tuple(class_names)
        self._head, self._scale = head, logit_scale

    def log_probabilities(self, embeds: Float[Tensor, "n d_embed"]) -> Float[Tensor, "n classes"]:
        """Among the classes: the softmax of the scaled logits."""
        return functional.log_softmax(self._scale * self._head(embeds).float(), dim=-1)

    @torch.no_grad()
    def prediction(
        self, before: Float[Tensor, "1 d_embed"], after: Float[Tensor, "1 d_embed"], n: int
    ) -> Prediction:
        """The answer to one output and to another; the first ``n`` classes of each."""
        first, second = self.log_probabilities(torch.cat([before, after])).exp().cpu()
        n = min(n, len(self.class_names))
        order = torch.argsort(first, descending=True, stable=True).tolist()
        leading = {*order[:n], *second.topk(n).indices.tolist()}
        chosen = [i for i in order if i in leading]
        if len(chosen) > n:  # those that one of the two leads with matter more than lower ranks
            by_either = sorted(chosen, key=lambda i: -max(float(first[i]), float(second[i])))[:n]
            chosen = [i for i in chosen if i in by_either]
        answers = (Answer(self.class_names[i], float(first[i]), float(second[i])) for i in chosen)
        names = (self.class_names[int(values.argmax())] for values in (first, second))
        return Prediction(tuple(answers), *names)

    def lead(self, embeds: Float[Tensor, "1 d_embed"]) -> Score:
        """How far the class that leads for this output is ahead of the next, in logits.

        As ``attribute`` takes it. Unlike a probability it doesn't stand still near 1.
        """
        with torch.no_grad():
            order = self.log_probabilities(embeds)[0].argsort(descending=True).tolist()
        first, second = (*order, order[0])[:2]  # of a single class: 0

        def score(outputs: Float[Tensor, "n d_embed"]) -> Float[Tensor, " n"]:
            logits = self.log_probabilities(outputs)
            return logits[:, first] - logits[:, second]

        return score


class Classifiers:
    """Zero-shot classifiers of one model, by class list and template; the last ones are kept.

    Args:
        model: any hooked model.
        images: whose own templates ``"own"`` are.
        probe: a head and its classes, for a model that has no text tower.
    """

    def __init__(
        self, model: HookedViT, images: ImageSource, probe: Classifier | None = None
    ) -> None:
        self._model, self._images, self._probe = model, images, probe
        self._kept: OrderedDict[tuple[tuple[str, ...], str], Classifier] = OrderedDict()

    @property
    def is_zero_shot(self) -> bool:
        """Whether the model reads class names."""
        return can_read_text(self._model)

    @property
    def can_answer(self) -> bool:
        """Whether there is anything that classifies."""
        return self.is_zero_shot or self._probe is not None

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates to choose from, the one to begin with first."""
        single = "a photo of a {}."
        if self._model.model_name == "shapes-clip":
            return ("shapes", "{}", "a photo of a {}")
        own = ("own",) if self._images.templates else ()
        return (*own, single, "{}", "openai") if own else (single, "{}", "openai")

    def get(self, class_names: tuple[str, ...], template: str) -> Classifier:
        """The classifier of these classes; a probe has its own.

        Raises:
            ValueError: the model can't tell these classes apart, or the template is none.
        """
        if self._probe is not None:
            return self._probe
        key = (class_names, template)
        if key not in self._kept:
            templates = _templates(template, self._model, self._images)
            head = zero_shot_head(self._model, class_names, templates)
            scale = self._model.logit_scale
            self._kept[key] = Classifier(head, class_names, 1.0 if scale is None else scale.item())
            if len(self._kept) > _HEADS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def can_read_text(model: HookedViT) -> bool:
    """Whether class names reach a model: it has a text tower and a tokenizer."""
    return model.tower.text_method is not None and model.tokenizer is not None


def _templates(typed: str, model: HookedViT, images: ImageSource) -> tuple[Template, ...]:
    """Templates by name, or the one that was typed; never a file, whatever was typed."""
    if typed in _NAMED:
        return named_templates(typed, model.model_name, images)
    return named_templates([typed], model.model_name, images)
