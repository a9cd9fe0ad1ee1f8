"""Plots and HTML pages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "check_report_folder": "report_folder",
    "check_report_options": "report_folder",
    "draw_card_picture": "card_picture",
    "export_neuronpedia": "neuronpedia",
    "plot_activation_curves": "plots",
    "plot_class_latents": "plots",
    "plot_latents": "plots",
    "plot_reference_images": "reference_grid",
    "write_card": "card",
    "write_report": "static_site",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
