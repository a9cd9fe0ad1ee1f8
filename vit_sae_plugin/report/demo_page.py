"""One self-contained HTML page about one training run: curves, measures, and a few latents."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pandas as pd
from PIL import Image


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


def write_demo_page(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    curves: pd.DataFrame,
    reconstruction: pd.DataFrame,
    splicing: pd.DataFrame,
    latents: Sequence[LatentCard],
    commands: Sequence[str],
) -> Path:
    """Write the page and return its path.

    Args:
        summary: paragraphs at the top that say what one sees, as plain text.
        curves: one row a logged training step, with columns ``n_tokens``, ``loss``, ``l0``,
            ``explained_variance`` and ``n_dead_latents``.
        reconstruction, splicing: tables with named rows and columns, shown as they are.
        latents: one card each, in the order given.
        commands: shell commands to go on with, shown at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _PAGE.substitute(
        title=html.escape(title),
        summary="".join(f"<p>{html.escape(text)}</p>" for text in summary),
        curves=_curves_svg(curves),
        reconstruction=_table(reconstruction),
        splicing=_table(splicing),
        n_latents=len(latents),
        latents="".join(_card(card) for card in latents),
        commands=html.escape("\n".join(commands)),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _curves_svg(curves: pd.DataFrame) -> str:
    """The four curves as one inline SVG whose lines and text take the page's colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panels = [
        ("loss", "Loss", True),
        ("l0", "L0: active latents per token", False),
        ("explained_variance", "Explained variance", False),
        ("n_dead_latents", "Dead latents", False),
    ]
    figure = Figure(figsize=(11.2, 2.5), layout="constrained")
    FigureCanvasSVG(figure)
    millions = curves["n_tokens"] / 1e6
    for axis, (column, name, logarithmic) in zip(figure.subplots(1, 4), panels, strict=True):
        axis.plot(millions, curves[column], color="#2f6fde", linewidth=1.6)
        axis.set_title(name, fontsize=9.5, loc="left", color="#808890")
        axis.set_xlabel("million tokens", fontsize=8, color="#808890")
        if logarithmic and (curves[column] > 0).all():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            top = float(curves[column].max())
            axis.set_ylim(0, 1 if column == "explained_variance" else max(top * 1.08, 1))
        axis.tick_params(labelsize=8, colors="#808890", length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#808890")
        axis.grid(True, color="#808890", alpha=0.18, linewidth=0.6)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(_words(column))}</th>" for column in frame.columns)
    rows = "".join(
        f"<tr><th>{html.escape(_words(name))}</th>"
        + "".join(f"<td>{html.escape(_number(value))}</td>" for value in row)
        + "</tr>"
        for name, row in zip(frame.index, frame.itertuples(index=False), strict=True)
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _number(value: object) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    number = float(value)  # type: ignore[arg-type]
    return f"{number:,.0f}" if number.is_integer() and abs(number) >= 10 else f"{number:.4g}"


def _card(card: LatentCard) -> str:
    images = "".join(f'<img src="{_data_uri(image)}" alt="">' for image in card.images)
    return (
        f'<figure class="latent"><figcaption><b>{html.escape(card.caption)}</b>'
        f"<span>latent {card.latent} · on {card.activated_frequency:.1%} of images · "
        f"label entropy {card.label_entropy:.2f}</span></figcaption>"
        f'<div class="strip">{images}</div></figure>'
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1b1f24; --soft: #5d6670; --line: #e3e6ea; --paper: #ffffff; --card: #f7f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa3ad; --line: #30363d; --paper: #14171b; --card: #1c2026; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 48px 28px 80px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 14px; }
h2 { font-size: 18px; margin: 44px 0 6px; letter-spacing: -.005em; }
p { max-width: 76ch; margin: 0 0 10px; }
.note { color: var(--soft); font-size: 13.5px; }
svg { width: 100%; height: auto; display: block; margin-top: 12px; }
.tables { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums;
  margin: 10px 0 18px; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; max-width: 118px; }
tbody th { text-align: left; font-weight: 500; padding-left: 0; white-space: nowrap; }
.latents { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr));
  margin-top: 16px; }
.latent { margin: 0; padding: 13px 14px 14px; background: var(--card); border-radius: 10px;
  border: 1px solid var(--line); }
.latent b { display: block; font-weight: 600; }
.latent span { color: var(--soft); font-size: 12.5px; }
.strip { display: grid; grid-template-columns: repeat(5, 1fr); gap: 5px; margin-top: 9px; }
.strip img { width: 100%; aspect-ratio: 1; border-radius: 5px; display: block; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; overflow-x: auto; font-size: 13px; }
</style></head><body><main>
<h1>$title</h1>
$summary
<h2>Training</h2>
$curves
<h2>How good is it?</h2>
<p class="note">On held-out scenes. Reconstruction quality, for all tokens of an image, for its
class token, and for its patches:</p>
<div class="tables">$reconstruction</div>
<p class="note">What the model still knows when the reconstruction, or zeros, take the place of
its activations. Recovered: 1 is as good as the original, 0 as bad as zeros.</p>
<div class="tables">$splicing</div>
<h2>$n_latents latents and what they respond to</h2>
<p class="note">The latents with the lowest label entropy among those active on patches of 0.5–20 %
of the images: each row shows the images that activate one latent most, bright where it is active,
dimmed elsewhere.</p>
<div class="latents">$latents</div>
<h2>Go on</h2>
<pre>$commands</pre>
</main></body></html>
""")
