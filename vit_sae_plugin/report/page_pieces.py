"""The pieces of a page that is one file: its style, tables, and figures as inline SVG."""

from __future__ import annotations

import html
import io
from importlib import resources

import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#808890"
"""Text and axes of figures: a grey that can be read on a light page and on a dark one."""


def page_file(name: str) -> str:
    """A template or a style sheet of this room, by its path."""
    return resources.files("vit_sae_plugin.report").joinpath(name).read_text(encoding="utf-8")


def inline_svg(figure: Figure) -> str:
    """A figure as SVG to put into a page, without a background."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    unwanted = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=unwanted)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def html_table(frame: pd.DataFrame) -> str:
    """A table with the names of its rows; underscores become spaces, what is missing a dash."""
    names = [name or "" for name in frame.index.names]
    head = "".join(f"<th>{html.escape(words(name))}</th>" for name in [*names, *frame.columns])
    rows = []
    for key, row in zip(frame.index, frame.itertuples(index=False), strict=True):
        keys = key if isinstance(key, tuple) else (key,)
        cells = "".join(f"<th>{html.escape(words(one))}</th>" for one in keys)
        cells += "".join(f"<td>{html.escape(number(value))}</td>" for value in row)
        rows.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def words(name: object) -> str:
    """A name of a row or column as people read it."""
    return str(name).replace("_", " ")


def number(value: object) -> str:
    """A number in four digits; a whole one in all of them."""
    if isinstance(value, str):
        return value
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    found = float(value)  # type: ignore[arg-type]
    return f"{found:,.0f}" if found.is_integer() and abs(found) >= 10 else f"{found:.4g}"
