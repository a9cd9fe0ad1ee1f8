"""A report that opens from disk: an index of latents, a page for each, and explained images.

The pages are fixed files; what they show lies beside them in ``.js`` files, which a browser loads
from disk where it refuses to load JSON. A page loads only the part it shows, and pictures when
they scroll into view, so that thousands of latents stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.datasets import ImageSource, open_images
from vit_sae_plugin.report.explained_images import write_explained_images
from vit_sae_plugin.report.reference_pictures import write_reference_pictures
from vit_sae_plugin.report.site_data import index_data, latent_details, write_data

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

LATENTS_IN_A_FILE = 32


def write_report(
    atlas: LatentAtlas,
    images: Any,
    model: HookedViT,
    sae: SAE[Any],
    folder: str | Path,
    *,
    explain: Sequence[int | Image.Image] | None = None,
    n_explained_images: int = 12,
    latents: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
    title: str | None = None,
    thumbnail_size: int = 192,
    source: ActivationSource | None = None,
    progress: bool = True,
) -> Path:
    """Write the report as a folder of files that needs neither a server nor a network.

    Each reference image goes through model and SAE once more, for the masks.

    Args:
        atlas: made by :func:`vit_sae_plugin.analysis.analyze`.
        images: the source that was analysed, or what :func:`open_images` takes.
        model: the model the SAE reads.
        sae: the SAE that the atlas was made from.
        folder: where to write; made if missing. Files of an earlier report are replaced.
        explain: image indices, or pictures, that get an explain page. None: images spread evenly
            over the source.
        n_explained_images: how many, where ``explain`` is None.
        latents: the latents to show. None: all that are not dead.
        names: names of latents, where they have been named.
        title: heading of the report.
        thumbnail_size: longer side of the pictures, in pixels.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.
        progress: show progress bars.

    Returns:
        The page to open, ``index.html`` in the folder.

    Raises:
        ValueError: ``latents`` names one that the atlas doesn't have; the source lacks an image.
    """
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    image_source = open_images(images)
    folder = Path(folder)
    shown = _shown_latents(atlas, latents)
    for part in ("data/latents", "data/explain", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    # small pictures are shown enlarged, where JPEG's blocks would stand out
    extension = "png" if max(_pair(model.cfg.image_size)) <= 96 else "jpg"
    pictures = write_reference_pictures(
        folder / "images",
        atlas,
        image_source,
        model,
        sae,
        source,
        shown,
        size=thumbnail_size,
        extension=extension,
        progress=progress,
    )
    chosen = _images_to_explain(image_source, n_explained_images) if explain is None else explain
    explained = write_explained_images(
        folder, atlas, image_source, model, sae, source, chosen, set(shown), extension
    )
    for number, start in enumerate(range(0, len(shown), LATENTS_IN_A_FILE)):
        some = shown[start : start + LATENTS_IN_A_FILE]
        details = latent_details(atlas, some, pictures)
        write_data(folder / f"data/latents/{number:05d}.js", f"latents/{number:05d}", details)
    index = index_data(
        atlas,
        shown,
        pictures,
        explained,
        names=names or {},
        title=title or _title(atlas),
        extension=extension,
        latents_in_a_file=LATENTS_IN_A_FILE,
    )
    write_data(folder / "data/atlas.js", "atlas", index)
    for page in resources.files("vit_sae_plugin.report").joinpath("site").iterdir():
        (folder / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    return folder / "index.html"


def _shown_latents(atlas: LatentAtlas, latents: Sequence[int] | None) -> list[int]:
    if latents is None:
        return [int(i) for i in np.flatnonzero(~atlas.latents["is_dead"].to_numpy())]
    for latent in latents:
        if not 0 <= latent < atlas.d_sae:
            raise ValueError(f"there is no latent {latent}; want 0 to {atlas.d_sae - 1}")
    return sorted({int(i) for i in latents})


def _title(atlas: LatentAtlas) -> str:
    metadata = atlas.info.sae_metadata
    return f"{metadata.get('model_name') or 'Latents'}, {metadata.get('hook_name')}"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _images_to_explain(source: ImageSource, n: int) -> list[int]:
    """Spread over the source; the first ones of a stream, which can't be counted beforehand."""
    if source.n_images is None:
        return list(range(n))
    n = min(n, source.n_images)
    return [int(i) for i in np.linspace(0, source.n_images - 1, n).round()] if n else []
