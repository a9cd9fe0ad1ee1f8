"""Plots and HTML pages, imported on first use: matplotlib is slow to import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .card import write_card as write_card
    from .card_picture import draw_card_picture as draw_card_picture
    from .neuronpedia import export_neuronpedia as export_neuronpedia
    from .plots import plot_activation_curves as plot_activation_curves
    from .plots import plot_class_latents as plot_class_latents
    from .plots import plot_latents as plot_latents
    from .reference_grid import plot_reference_images as plot_reference_images
    from .report_folder import check_report_folder as check_report_folder
    from .report_folder import check_report_options as check_report_options
    from .static_site import write_report as write_report
    from .sweep_page import write_sweep_page as write_sweep_page

_HOME_OF = {
    "write_card": "card",
    "draw_card_picture": "card_picture",
    "export_neuronpedia": "neuronpedia",
    "plot_activation_curves": "plots",
    "plot_class_latents": "plots",
    "plot_latents": "plots",
    "plot_reference_images": "reference_grid",
    "check_report_folder": "report_folder",
    "check_report_options": "report_folder",
    "write_report": "static_site",
    "write_sweep_page": "sweep_page",
}

__all__ = sorted(_HOME_OF)

if not TYPE_CHECKING:
    # hidden from type checkers, for which a module with __getattr__ has every name there is
    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
