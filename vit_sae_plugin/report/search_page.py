"""The page of a search: images found by concepts beside those of plain cosine, and why."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from vit_sae_plugin.analysis.html_pieces import data_uri
from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.concepts.search import OTHERS
from vit_sae_plugin.datasets.image_lookup import images_by_index

if TYPE_CHECKING:
    from vit_sae_plugin.concepts.concept_query import WeightedConcept
    from vit_sae_plugin.concepts.search import SearchResult
    from vit_sae_plugin.datasets import ImageSource

# told apart also by those who don't see red and green alike (Okabe and Ito)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a5195", "#6b6b6b")
_REST_COLOR = "#b9b4a8"
_BAR, _GAP, _WIDTH = 6, 3, 130


def write_search_page(
    path: str | Path,
    result: SearchResult,
    images: ImageSource,
    *,
    query_image: Image.Image | None = None,
    thumbnail_size: int = 160,
) -> Path:
    """Write one HTML file that holds everything it shows, and return its path.

    Under each picture a bar for each concept says what it adds to the picture's score, to the left
    what it takes away. Where there was a plain search, it stands beside, and framed pictures were
    found by one search alone.

    Args:
        path: the file.
        result: of a search.
        images: the source that was indexed; a picture that can't be read is left out.
        query_image: the picture that was searched with, if any.
        thumbnail_size: longer side of the pictures, in pixels.
    """
    path = Path(path)
    wanted = {*result.by_concepts["image_index"], *result.by_cosine["image_index"]}
    pictures = {
        index: data_uri(_thumbnail(picture, thumbnail_size))
        for index, picture in images_by_index(images, wanted, missing={})
    }
    colors = _colors([str(name) for name in result.contributions])
    shown = pd.concat([result.contributions, result.cosine_contributions])
    largest = float(shown.abs().to_numpy().max())
    draw = _Cards(pictures, colors, largest or 1.0, images.class_names)
    sides = [
        _side("concepts", "By concepts", _said_by_concepts(result), draw.by_concepts(result)),
        _side("cosine", "By plain cosine", _said_by_cosine(result), draw.by_cosine(result)),
    ]
    is_beside = result.has_plain_search
    page = Template(_file("search_page.html")).substitute(
        title=html.escape(f"Search: {result.question}"),
        question=_question(result, colors, query_image),
        rule=(
            "Bars under a picture: what each concept adds to its score (to the left: takes away)."
            + (" Framed: found by this search alone." if is_beside else "")
        ),
        legend="".join(
            f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
            for name, color in colors.items()
        ),
        sides=f'<div class="sides">{"".join(sides)}</div>' if is_beside else sides[0],
        foot=f"{_said_in_common(result)} {html.escape(images.name)}",
        style=_file("site/site.css") + _file("search_page.css"),
    )
    write_text_atomically(path, page)
    return path


class _Cards:
    def __init__(
        self,
        pictures: Mapping[int, str],
        colors: Mapping[str, str],
        largest: float,
        class_names: Sequence[str] | None,
    ) -> None:
        self._pictures, self._colors, self._largest = pictures, colors, largest
        self._class_names = class_names

    def by_concepts(self, result: SearchResult) -> str:
        return self._drawn(result.by_concepts, result.contributions, "plain_rank", "cosine")

    def by_cosine(self, result: SearchResult) -> str:
        parts = result.cosine_contributions
        return self._drawn(result.by_cosine, parts, "concept_rank", "concepts")

    def _drawn(self, found: pd.DataFrame, parts: pd.DataFrame, other: str, other_name: str) -> str:
        return "".join(
            self._card(rank, row, parts.loc[rank], row.get(other), other_name, len(found))
            for rank, row in found.iterrows()
        )

    def _card(
        self,
        rank: Any,
        row: pd.Series,
        parts: pd.Series,
        other: int | None,
        other_name: str,
        n: int,
    ) -> str:
        only = "" if other is None or other <= n else " only"
        picture = self._pictures.get(int(row["image_index"]))
        shown = (
            f'<img src="{picture}" alt="">' if picture else '<span class="gone">not readable</span>'
        )
        told = f"{row['score']:.2f}"
        if other is not None:
            place = f"no. {int(other):,} by {other_name}"
            told += f" &middot; cosine {row['cosine']:.2f}<br>{place}"
        return (
            f'<figure class="image{only}" title="{html.escape(str(row["id"]))}">{shown}'
            f'<b><span class="rank">{rank}</span>&ensp;{html.escape(self._name(row))}</b>'
            f"<small>{told}</small>{self._bars(parts)}</figure>"
        )

    def _name(self, row: pd.Series) -> str:
        label = int(row["label"])
        names = self._class_names
        if label < 0 or not names or label >= len(names):
            return str(row["id"])
        return str(names[label])

    def _bars(self, parts: pd.Series) -> str:
        """From a common zero line, which stands left where nothing is taken away."""
        half = _WIDTH / 2
        height = len(parts) * (_BAR + _GAP)
        drawn = [
            f'<line x1="{half}" x2="{half}" y1="0" y2="{height}" stroke="currentColor" '
            'stroke-opacity=".25"/>'
        ]
        for at, (name, value) in enumerate(parts.items()):
            length = max(half * abs(float(value)) / self._largest, 0.5)
            start = half if value >= 0 else half - length
            drawn.append(
                f'<rect x="{start:.1f}" y="{at * (_BAR + _GAP)}" width="{length:.1f}" '
                f'height="{_BAR}" rx="1.5" fill="{self._colors[str(name)]}">'
                f"<title>{html.escape(str(name))}: {float(value):+.3f}</title></rect>"
            )
        return f'<svg class="bars" viewBox="0 0 {_WIDTH} {height}">{"".join(drawn)}</svg>'


def _colors(names: Sequence[str]) -> dict[str, str]:
    named = [name for name in names if name != OTHERS]
    colors = dict(zip(named, (_COLORS * (len(named) // len(_COLORS) + 1)), strict=False))
    return {name: colors.get(name, _REST_COLOR) for name in names}


def _question(
    result: SearchResult, colors: Mapping[str, str], query_image: Image.Image | None
) -> str:
    picture = ""
    if query_image is not None:
        picture = f'<img src="{data_uri(_thumbnail(query_image, 160))}" alt="the image asked with">'
    chips = "".join(
        f'<span class="chip"><i style="background:{colors[concept.name]}"></i>'
        f"{html.escape(concept.name)} {concept.weight:+g}{_latents(concept)}</span>"
        for concept in result.concepts
    )
    if query_image is not None and not chips:
        chips = '<span class="chip">as it is</span>'
    return f'<div class="asked">{picture}{chips}</div>'


def _latents(concept: WeightedConcept) -> str:
    latents = concept.latents
    if not concept.is_word:
        return ""  # its name says it
    shown = ", ".join(map(str, latents[:4]))
    more = f" and {len(latents) - 4} more" if len(latents) > 4 else ""
    return f"<small>latent{'s' if len(latents) > 1 else ''} {shown}{more}</small>"


def _side(name: str, title: str, note: str, cards: str) -> str:
    return (
        f'<section class="side" id="{name}"><h2>{title}</h2><p class="note">{note}</p>'
        f'<div class="found">{cards}</div></section>'
    )


def _said_in_common(result: SearchResult) -> str:
    if result.has_plain_search:
        n, common = len(result.by_concepts), result.n_in_common
        return f"{common} of {n} pictures are found by both."
    return "There is no plain search beside: no word that a text tower could read."


def _said_by_concepts(result: SearchResult) -> str:
    if result.is_by_image:
        return (
            "Likeness of latents to the picture's, each counting by how rare it is, plus the "
            "weights times how strongly the changed concepts are active."
        )
    return (
        "Each image's score: the weights times how strongly its latents of these names are active, "
        "as a share of their largest activation."
    )


def _said_by_cosine(result: SearchResult) -> str:
    if result.is_by_image:
        return "Images whose embeddings are most like the picture's, which knows of no changes."
    return "Images whose embeddings are most like the same weighted sum of text embeddings."


def _thumbnail(image: Image.Image, size: int) -> Image.Image:
    image = image.convert("RGB")
    if max(image.size) < size:  # small pictures stay sharp
        factor = size // max(image.size) or 1
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((size, size))
    return image


def _file(name: str) -> str:
    return (resources.files("vit_sae_plugin.report") / name).read_text(encoding="utf-8")
