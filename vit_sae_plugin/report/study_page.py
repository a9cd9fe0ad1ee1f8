"""A page that is one file: a title, the figures that count, and sections under headings."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.report.page_pieces import page_file


@dataclass
class Section:
    """A part of a page."""

    title: str
    note: str
    """What one sees, as plain text."""
    body: str
    """HTML: tables, inline SVG, pictures as data URIs."""


def write_study_page(
    path: str | Path,
    *,
    title: str,
    lead: Sequence[str],
    facts: Mapping[str, str],
    sections: Sequence[Section],
    warnings: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write the page and return its path.

    Args:
        path: of the file.
        title: plain text, as all texts here.
        lead: paragraphs at the top.
        facts: name to figure, shown large below them.
        sections: in their order.
        warnings: what a reader must know before the figures.
        commands: that made the page, shown at its end.
    """
    path = Path(path)
    page = Template(page_file("study_page.html")).substitute(
        title=html.escape(title),
        style=page_file("site/site.css") + page_file("study_page.css"),
        lead="".join(f"<p>{html.escape(text)}</p>" for text in lead),
        warnings="".join(f'<p class="warning">{html.escape(text)}</p>' for text in warnings),
        facts="".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in facts.items()
        ),
        sections="".join(
            f"<section><h2>{html.escape(one.title)}</h2>"
            f'<p class="note">{html.escape(one.note)}</p>{one.body}</section>'
            for one in sections
        ),
        commands="<pre>" + html.escape("\n".join(commands)) + "</pre>" if commands else "",
    )
    write_text_atomically(path, page)
    return path
