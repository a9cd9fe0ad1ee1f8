"""What every method does to a model: put in what it learns, and say what that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.hooked_vit import HookedViT, TowerDescription


@dataclass
class BaseModel:
    """The parts of a model that is about to be adapted; the module is changed in place."""

    module: Any
    """The CLIP: open_clip's or transformers'."""

    tower: TowerDescription
    """Where it keeps its vision tower."""

    tokenizer: Callable | None
    """From a list of texts to token ids."""

    model_name: str
    """What ``HookedViT.from_pretrained`` took."""

    encode_text: Callable[[list[str]], Tensor]
    """From texts to embeddings, before anything is changed."""

    @classmethod
    def of(cls, model: HookedViT) -> BaseModel:
        """The parts of a wrapped model."""
        return cls(
            model.bare_model, model.tower, model.tokenizer, model.model_name, model.encode_text
        )

    def width(self) -> int:
        """Width of the vision tower's residual stream."""
        blocks = self.module.get_submodule(self.tower.blocks)
        return int(blocks[0].get_submodule(self.tower.block.ln1).weight.shape[-1])

    def require_tokenizer(self) -> Callable:
        """The tokenizer.

        Raises:
            ValueError: the model has none, or no text tower.
        """
        if self.tower.text_method is None or self.tokenizer is None:
            lacking = "text tower" if self.tower.text_method is None else "tokenizer"
            raise ValueError(
                f"{self.model_name} has no {lacking}, so it can't be adapted to classes by their "
                "names; want a CLIP, such as 'ViT-B-16' or 'hf:openai/clip-vit-base-patch16'"
            )
        return self.tokenizer


@dataclass
class Insertion:
    """What a method has put into a model."""

    parameters: dict[str, nn.Parameter]
    """All that is learnt, by the names under which it is saved."""

    tower: TowerDescription
    """Where the model keeps its vision tower now."""

    tokenizer: Callable | None
    """From a list of texts to token ids, as the model takes them now."""

    finish: Callable[[], None] = lambda: None
    """Called once the parameters have their last values: LoRA's are added to the weights."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give the parameters their values.

        Raises:
            ValueError: a tensor is missing, is of another shape, or belongs nowhere; nothing is
                loaded then.
        """
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != found:
            name = next(n for n in [*shapes, *found] if shapes.get(n) != found.get(n))
            raise ValueError(
                f"{name} is {found.get(name, 'missing')} in the file, and "
                f"{shapes.get(name, 'nothing')} in the model; want a file of this model and depth"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put what ``config.method`` learns into a model, with first values.

    A method is a file here with a function ``insert`` of the same arguments; a new one is such a
    file, its name in ``METHODS`` and its settings in the presets.

    Args:
        base: the model; changed in place.
        config: a complete one.
        class_names: the classes that are learnt.
        generator: of first values.
    """
    method = import_module(f"vit_sae_plugin.adaptation.{config.method}")
    # layers draw first values of their own, which are overwritten: the global generator stays
    with torch.random.fork_rng(devices=[]):
        return method.insert(base, config, class_names, generator)


def n_blocks(model: HookedViT, method: str) -> int:
    """How many blocks prompts may go into: MaPLe's go into both towers alike."""
    if method != "maple":
        return model.cfg.n_layers
    from vit_sae_plugin.adaptation.prompted_text import text_parts

    return min(model.cfg.n_layers, text_parts(model.bare_model).n_layers(model.bare_model))
