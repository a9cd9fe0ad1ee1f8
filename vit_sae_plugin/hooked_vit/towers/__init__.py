"""One small file for each model family: how to recognise it and where it keeps its parts.

A family is a module with ``describe(model) -> TowerDescription | None``: None means "not mine".
A new family is a new file here and its name in ``FAMILIES``.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.towers.refusals import what_it_is

FAMILIES = {
    "open_clip_vit": "open_clip",
    "open_clip_timm": "open_clip",
    "transformers_clip": "transformers",
    "transformers_siglip": "transformers",
    "transformers_vit": "transformers",
    "transformers_deit": "transformers",
    "transformers_mae": "transformers",
    "transformers_beit": "transformers",
    "transformers_dinov2": "transformers",
    "transformers_dinov3": "transformers",
    "timm_vit": "timm",
    "timm_eva": "timm",
    "timm_beit": "timm",
    "timm_relpos": "timm",
    "torchvision_vit": "torchvision",
}
"""File in this folder to the library whose models it describes."""


def describe(model: nn.Module) -> TowerDescription:
    """The description of a model of a known family.

    Raises:
        UnsupportedTowerError: no family recognises the model, or one does but cannot hook it.
    """
    model = getattr(model, "_orig_mod", model)  # the model inside torch.compile's wrapper
    # A model of a library, or of a class derived from its classes, knows that library's name.
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    for family, library in FAMILIES.items():
        if library in libraries:
            tower = import_module(f"{__name__}.{family}").describe(model)
            if tower is not None:
                return tower
    what = what_it_is(model)
    if what is not None:
        raise UnsupportedTowerError(f"there is no vision transformer to hook: {what}")
    raise UnsupportedTowerError(
        f"{type(model).__module__}.{type(model).__qualname__} is of no known family "
        f"({', '.join(FAMILIES)}); for a vision transformer of your own pass "
        "tower=TowerDescription(...), as examples/custom_vit.py shows; for a PEFT model pass "
        "model.get_base_model(), whose layers are the adapted ones"
    )
