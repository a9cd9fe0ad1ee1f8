"""A linear classifier on image embeddings: the model itself stays as it is.

The linear probe of CLIP (Radford et al. 2021), on embeddings of unit length and without a bias, so
that its weights stand where the text embeddings of class names do; they begin as those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import BaseModel, Insertion
from vit_sae_plugin.adaptation.template_head import TemplateHead


class ProbeHead(nn.Module):
    """Weights for classes that are known by their names: a ``ClassHead``.

    Args:
        weight: one row a class, ``[n_classes, d_embed]``.
        class_names: their names.
    """

    def __init__(self, weight: Tensor, class_names: list[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.class_names = class_names

    def class_weights(
        self, encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str]
    ) -> Tensor:
        """The columns of these classes.

        Raises:
            ValueError: it has not learnt a class of such a name.
        """
        if list(class_names) == self.class_names:
            return self.weight.T
        places = {name: place for place, name in enumerate(self.class_names)}
        unknown = [name for name in class_names if name not in places]
        if unknown:
            raise ValueError(
                f"the linear probe has learnt {len(places)} classes, and {unknown[0]!r} is none of "
                "them; want those that it was trained on (of the same half), or a method that "
                "classifies by text"
            )
        return self.weight[[places[name] for name in class_names]].T


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put a classifier beside a model; saved is its ``weight`` ``[n_classes, d_embed]``."""
    tokenizer = base.require_tokenizer()
    zero_shot = TemplateHead(config.templates, base.model_name)
    head = ProbeHead(zero_shot.class_weights(base.encode_text, class_names).T.clone(), class_names)
    base.module.class_head = head
    return Insertion({"weight": head.weight}, base.tower, tokenizer)
