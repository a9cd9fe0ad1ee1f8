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
    what it takes away. Framed pictures were found by this search alone.

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
    largest = max(
        float(frame.abs().to_numpy().max())
        for frame in (result.contributions, result.cosine_contributions)
    )
    draw = _Cards(pictures, colors, largest or 1.0, images.class_names)
    n, common = len(result.by_concepts), result.n_in_common
    page = Template(_file("search_page.html")).substitute(
        title=html.escape(f"Search: {result.question}"),
        question=_question(result, colors, query_image),
        rule=(
            "Bars under a picture: what each concept adds to its score (to the left: takes away). "
            "Framed: found by this search alone."
        ),
        legend="".join(
            f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
            for name, color in colors.items()
        ),
        by_concepts=_said_by_concepts(result),
        by_cosine=_said_by_cosine(result),
        concept_cards=draw(result.by_concepts, result.contributions, "plain_rank", "cosine"),
        cosine_cards=draw(
            result.by_cosine, result.cosine_contributions, "concept_rank", "concepts"
        ),
        foot=f"{common} of {n} pictures are found by both. {html.escape(images.name)}",
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

    def __call__(
        self, found: pd.DataFrame, parts: pd.DataFrame, other: str, other_name: str
    ) -> str:
        n = len(found)
        return "".join(
            self._card(rank, row, parts.loc[rank], int(row[other]), other_name, n)
            for rank, row in found.iterrows()
        )

    def _card(
        self, rank: Any, row: pd.Series, parts: pd.Series, other: int, other_name: str, n: int
    ) -> str:
        place = f"no. {other:,} by {other_name}"
        only = " only" if other > n else ""
        picture = self._pictures.get(int(row["image_index"]))
        shown = (
            f'<img src="{picture}" alt="">' if picture else '<span class="gone">not readable</span>'
        )
        score = f"{row['score']:.2f} &middot; cosine {row['cosine']:.2f}"
        return (
            f'<figure class="image{only}" title="{html.escape(str(row["id"]))}">{shown}'
            f'<b><span class="rank">{rank}</span>&ensp;{html.escape(self._name(row))}</b>'
            f"<small>{score}<br>{place}</small>{self._bars(parts)}</figure>"
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
        f"{html.escape(concept.name)} {concept.weight:+g}<small>{_latents(concept.latents)}</small>"
        "</span>"
        for concept in result.concepts
    )
    if query_image is not None and not chips:
        chips = '<span class="chip">as it is</span>'
    return f'<div class="asked">{picture}{chips}</div>'


def _latents(latents: Sequence[int]) -> str:
    shown = ", ".join(map(str, latents[:4]))
    more = f" and {len(latents) - 4} more" if len(latents) > 4 else ""
    return f"latent{'s' if len(latents) > 1 else ''} {shown}{more}"


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
