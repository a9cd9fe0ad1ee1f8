"""How atlases, latents, heat maps and explanations show themselves in a notebook."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from vit_sae_plugin.analysis.overlays import highlight

if TYPE_CHECKING:
    from vit_sae_plugin.analysis.explanation import Explanation, LatentInImage
    from vit_sae_plugin.analysis.heatmaps import Heatmap
    from vit_sae_plugin.analysis.latent_atlas import AtlasInfo, LatentAtlas
    from vit_sae_plugin.analysis.latent_view import LatentView

_CARD = "display:inline-block;vertical-align:top;margin:0 14px 14px 0;font-size:12px;width:{}px"


def atlas_html(atlas: LatentAtlas) -> str:
    """A summary, and the ten most frequent latents that are not dense."""
    table, info = atlas.latents, atlas.info
    facts = {
        "latents": f"{atlas.d_sae:,}",
        "dead": f"{int(table['is_dead'].sum()):,}",
        "dense": f"{int(table['is_dense'].sum()):,}",
        "images": f"{info.n_images:,}",
        "skipped": f"{info.n_skipped_images:,}",
        "classes": f"{atlas.n_classes:,}",
    }
    shown = table[~table["is_dense"] & ~table["is_dead"]]
    columns = ["frequency", "mean_activation", "max_activation", "label_entropy", "top_class_name"]
    most_frequent = shown.sort_values("frequency", ascending=False, kind="stable").head(10)
    return (
        f"<div><b>LatentAtlas</b> of {_text(info.sae_metadata.get('hook_name'))} over "
        f"{_text(info.data_name)}<br>"
        + " &middot; ".join(f"{value} {name}" for name, value in facts.items())
        + f"</div>{_table(most_frequent[columns])}"
    )


def info_html(info: AtlasInfo) -> str:
    """What an atlas was made from, as a table."""
    values = {
        name: value[:8] if name.endswith("_sha256") else value
        for name, value in asdict(info).items()
    }
    return _table(pd.DataFrame({"value": map(str, values.values())}, index=list(values)))


def latent_html(view: LatentView) -> str:
    """Statistics, top classes, relatives, and the reference images where they are at hand."""
    pictures = "".join(
        f'<img src="{data_uri(image)}" width="96" style="margin:0 4px 4px 0">'
        for image in view.pictures()
    )
    columns = [
        ("Statistics", view.statistics.to_frame().head(12)),
        ("Top classes", view.top_classes),
        ("Co-active", view.coactive),
        ("Similar", view.similar),
    ]
    tables = "".join(
        f'<div style="display:inline-block;vertical-align:top;margin-right:24px">'
        f"<i>{title}</i>{_table(frame)}</div>"
        for title, frame in columns
    )
    references = "" if pictures else _table(view.reference_images)
    return f"<div><b>Latent {view.latent}</b></div><div>{pictures}</div>{references}{tables}"


def heatmap_html(heatmap: Heatmap) -> str:
    """The picture, bright where the latent is active."""
    return (
        f"<div>Latent {heatmap.latent}, largest activation {_largest(heatmap):.3g}</div>"
        f'<img src="{data_uri(highlight(heatmap))}" style="max-width:360px">'
    )


def explanation_html(explanation: Explanation) -> str:
    """The picture, and its strongest latents, each with its mask."""
    whole = data_uri(_thumbnail(explanation.image, 260))
    cards = "".join(latent_in_image_html(one) for one in explanation.latents)
    return (
        f'<div style="{_CARD.format(260)}"><img src="{whole}"><br>Strongest latents by '
        f"<b>{_text(explanation.aggregation)}</b></div>{cards}"
    )


def latent_in_image_html(one: LatentInImage) -> str:
    """A card: the picture with the latent's mask, its value here, and what it is elsewhere."""
    picture = data_uri(highlight(one.heatmap, size=one.heatmap.size_of_region(128)))
    return (
        f'<div style="{_CARD.format(128)}"><img src="{picture}"><br><b>{one.latent}</b> '
        f"&middot; {one.value:.3g}<br>on {one.statistics['frequency']:.1%} of images<br>"
        f"{_text(one.statistics['top_class_name'])}</div>"
    )


def data_uri(image: Image.Image, image_format: str = "PNG") -> str:
    """A picture as a URI that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format=image_format)
    kind = image_format.lower()
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _thumbnail(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, max(1, round(width * image.height / image.width))))


def _largest(heatmap: Heatmap) -> float:
    peak = heatmap.peak
    return float(heatmap.patches[peak]) if peak is not None else 0.0


def _table(frame: pd.DataFrame) -> str:
    return frame.to_html(float_format=lambda value: f"{value:.4g}", na_rep="", escape=True)


def _text(value: object) -> str:
    return "" if value is None or pd.isna(value) else html.escape(str(value))  # type: ignore[call-overload]
