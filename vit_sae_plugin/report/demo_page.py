"""One HTML page about one training run, in the report's style: curves, measures, a few latents."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pandas as pd
from PIL import Image

from vit_sae_plugin.analysis.html_pieces import data_uri
from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.report.page_pieces import INK, html_table, inline_svg, page_file


@dataclass
class LatentCard:
    """What the page shows of one latent."""

    latent: int
    """Index of the latent in the SAE."""
    caption: str
    """What its reference images have in common, such as the label most of them carry."""
    activated_frequency: float
    """Share of images in which any token is above zero."""
    label_entropy: float
    """Entropy in nats of the labels of its reference images (PatchSAE, section 3)."""
    images: list[Image.Image] = field(default_factory=list)
    """Reference images, most strongly activating first, their active patches already marked."""


@dataclass
class LatentGroup:
    """Some latents under a heading."""

    title: str
    note: str
    """What they have in common, as plain text."""
    latents: Sequence[LatentCard]


def write_demo_page(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    curves: pd.DataFrame,
    reconstruction: pd.DataFrame,
    splicing: pd.DataFrame,
    groups: Sequence[LatentGroup],
    rule: str,
    report: str,
    n_in_report: int,
    commands: Sequence[str],
) -> Path:
    """Write the page and return its path.

    Args:
        summary: paragraphs at the top that say what one sees, as plain text.
        curves: one row a logged training step, with columns ``n_tokens``, ``loss``, ``l0``,
            ``explained_variance`` and ``n_dead_latents``.
        reconstruction, splicing: tables with named rows and columns, shown as they are.
        groups: latents, one card each, in the order given.
        rule: how they were chosen, as plain text.
        report: the folder of the browsable report, from the page's own folder.
        n_in_report: how many latents that shows.
        commands: shell commands to go on with, shown at the end.
    """
    path = Path(path)
    page = Template(page_file("demo_page.html")).substitute(
        title=html.escape(title),
        summary="".join(f"<p>{html.escape(text)}</p>" for text in summary),
        curves=_curves_svg(curves),
        reconstruction=html_table(reconstruction),
        splicing=html_table(splicing),
        style=page_file("site/site.css") + page_file("demo_page.css"),
        report=html.escape(report),
        n_in_report=f"{n_in_report:,}",
        strip="".join(_picture(card.images[0]) for group in groups[:1] for card in group.latents),
        rule=html.escape(rule),
        n_latents=sum(len(group.latents) for group in groups),
        groups="".join(_group(group, report) for group in groups),
        commands=html.escape("\n".join(commands)),
    )
    write_text_atomically(path, page)
    return path


def _curves_svg(curves: pd.DataFrame) -> str:
    """The four curves as one inline SVG whose lines and text take the page's colours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panels = [
        ("loss", "Loss", True),
        ("l0", "L0: active latents per token", False),
        ("explained_variance", "Explained variance", False),
        ("n_dead_latents", "Dead latents", False),
    ]
    figure = Figure(figsize=(11.2, 2.5), layout="constrained")
    millions = curves["n_tokens"] / 1e6
    for axis, (column, name, logarithmic) in zip(figure.subplots(1, 4), panels, strict=True):
        axis.plot(millions, curves[column], color="#2f6fde", linewidth=1.6)
        axis.set_title(name, fontsize=9.5, loc="left", color=INK)
        axis.set_xlabel("million tokens", fontsize=8, color=INK)
        if logarithmic and (curves[column] > 0).all():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            top = float(curves[column].max())
            axis.set_ylim(0, 1 if column == "explained_variance" else max(top * 1.08, 1))
        axis.tick_params(labelsize=8, colors=INK, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.grid(True, color=INK, alpha=0.18, linewidth=0.6)
    return inline_svg(figure)


def _group(group: LatentGroup, report: str) -> str:
    return (
        f"<h3>{html.escape(group.title)}</h3><p class=note>{html.escape(group.note)}</p>"
        f'<div class="latents">{"".join(_card(card, report) for card in group.latents)}</div>'
    )


def _card(card: LatentCard, report: str) -> str:
    link = f"{html.escape(report)}/latent.html#{card.latent}"
    return (
        f'<a class="latent" href="{link}"><b>{html.escape(card.caption)}</b>'
        f"<span>latent {card.latent} · on {card.activated_frequency:.1%} of images · "
        f"label entropy {card.label_entropy:.2f}</span>"
        f'<span class="pictures">{"".join(map(_picture, card.images))}</span></a>'
    )


def _picture(image: Image.Image) -> str:
    return f'<img src="{data_uri(image)}" alt="">'
