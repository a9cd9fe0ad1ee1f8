"""What an adaptation is: the method, the images that it learns from, and how it is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from vit_sae_plugin.adaptation.presets import PRESETS
from vit_sae_plugin.field_types import check_field_types, check_values
from vit_sae_plugin.near_names import near_names

METHODS = ("maple", "coop", "vpt", "lora", "linear_probe")
"""The names of the methods, each of them in a file of its own."""
_OF_PROMPTS = ("n_prompts", "round_prompts_to_half")
_OWN_SETTINGS = {
    "maple": (*_OF_PROMPTS, "depth", "text_init"),
    "coop": (*_OF_PROMPTS, "text_init"),
    "vpt": (*_OF_PROMPTS, "depth", "templates"),
    "lora": ("lora_rank", "lora_alpha", "templates"),
    "linear_probe": ("templates",),
}
"""Method to the settings that not all of them have."""


@dataclass
class AdaptationConfig:
    """How a CLIP is adapted to the classes of some images.

    Whatever is None is taken from the preset, for this method; ``complete`` fills it in. A setting
    that belongs to other methods is refused.
    """

    method: Literal["maple", "coop", "vpt", "lora", "linear_probe"] = "maple"
    """``"maple"``: deep prompts in both towers; ``"coop"``: prompts in the text tower;
    ``"vpt"``: deep prompts in the vision tower; ``"lora"``: low-rank changes of the vision tower's
    attention; ``"linear_probe"``: a linear classifier on image embeddings."""

    shots: int | None = 16
    """Training images of each class, drawn with ``seed`` (None: all images)."""

    seed: int = 1
    """Of the images drawn, of first values, of the order of images and of augmentation."""

    half: Literal["base", "novel", "all"] = "base"
    """Which half of the classes is learnt from; the images are drawn before the halves are cut."""

    preset: str = "published"
    """Where settings come from that aren't given: ``"published"``, for CLIPs of the size of
    ViT-B/16, or ``"shapes"``, for small towers such as ``shapes-clip``."""

    n_prompts: int | None = None
    """Prompt tokens (MaPLe, CoOp, VPT)."""

    depth: int | None = None
    """Blocks that get prompts of their own, from the first on (MaPLe, VPT)."""

    text_init: str | None = None
    """Words in front of the class name (MaPLe, CoOp). The first ``n_prompts`` of them give the
    learnt tokens their first values and the others stay; where there are fewer, as in an empty
    text, all tokens are learnt from random values."""

    templates: str | list[str] | None = None
    """The text prompts of VPT, LoRA and the linear probe's first weights: ``"openai"`` (80),
    ``"shapes"``, or a list with ``{}`` in each. None: those that the images' authors use, if they
    are known, and otherwise those in the words that the model was trained on."""

    lora_rank: int | None = None
    """Rank of the changes (LoRA)."""

    lora_alpha: float | None = None
    """The changes are multiplied by ``lora_alpha / lora_rank`` (LoRA)."""

    round_prompts_to_half: bool = False
    """Round prompts to 16 bits where they enter a tower, as the published code does."""

    optimizer: Literal["sgd", "adamw"] | None = None
    """Stochastic gradient descent, or AdamW."""

    lr: float | None = None
    """Learning rate at its highest: the second epoch's, from which a cosine falls to zero."""

    epochs: int | None = None
    """Passes over the training images."""

    batch_size_images: int | None = None
    """Images a step; the last batch of an epoch is left out where it would be smaller."""

    momentum: float = 0.9
    """Of stochastic gradient descent."""

    weight_decay: float = 5e-4
    """On all that is learnt."""

    warmup_lr: float = 1e-5
    """Learning rate of the whole first epoch (where there is more than one)."""

    crop_scale: tuple[float, float] | None = None
    """Each training image is cut to a random part of this share of its area, and of an aspect
    ratio from 3/4 to 4/3, then scaled to the model's size; (1, 1): whole images."""

    flip: bool | None = None
    """Mirror every other training image."""

    def __post_init__(self) -> None:
        if isinstance(self.crop_scale, list):
            self.crop_scale = tuple(self.crop_scale)
        _check_name("method", self.method, METHODS)
        _check_name("preset", self.preset, PRESETS)
        check_field_types(self)
        self._check_numbers()
        theirs = {name for names in _OWN_SETTINGS.values() for name in names}
        for name in sorted(theirs - set(_OWN_SETTINGS[self.method])):
            if getattr(self, name) not in (None, False):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but method {self.method!r} has no such "
                    "setting; leave it out"
                )

    def _check_numbers(self) -> None:
        for name in ("shots", "n_prompts", "depth", "lora_rank", "epochs", "batch_size_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; want 1 or more")
        for name in ("lr", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; want a number above 0")
        for name in ("momentum", "weight_decay", "warmup_lr"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; want 0 or more")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale is {self.crop_scale}; want the smallest and the largest share of the "
                "area, such as (0.08, 1.0)"
            )
        if self.text_init is not None and "{}" in self.text_init:
            raise ValueError(
                f"text_init is {self.text_init!r}; want the words in front of the class name only"
            )

    def complete(self, n_layers: int) -> Self:
        """The same, with everything that was None taken from the preset.

        Args:
            n_layers: blocks of the vision tower (MaPLe: of the tower with fewer): the published
                depths, of 12 blocks, become the same share of them.

        Raises:
            ValueError: ``depth`` is more than that.
        """
        given = dict(PRESETS[self.preset][self.method])
        share = given.pop("depth_share", None)
        if share is not None:
            given["depth"] = max(1, round(share * n_layers))
        chosen = {name: value for name, value in given.items() if getattr(self, name) is None}
        full = replace(self, **chosen)
        if full.depth is not None and full.depth > n_layers:
            raise ValueError(
                f"depth is {full.depth}, but the model has {n_layers} blocks; want 1 to {n_layers}"
            )
        return full

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        values = asdict(self)
        if values["crop_scale"] is not None:
            values["crop_scale"] = list(values["crop_scale"])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that ``to_dict`` made plain.

        Raises:
            ValueError: an unknown setting (near names are listed), or one of the wrong type.
        """
        names = [entry.name for entry in fields(cls)]
        for name in values:
            _check_name("setting", name, names)
        _check_name("method", values.get("method", cls.method), METHODS)
        check_values(values, cls)
        return cls(**values)


def _check_name(what: str, name: Any, known: Any) -> None:
    if name not in list(known):
        near = near_names(str(name), known, n=3) or list(known)
        raise ValueError(f"there is no {what} {name!r}; near names: {', '.join(near)}")
