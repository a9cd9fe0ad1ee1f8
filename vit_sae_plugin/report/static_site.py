"""A report that opens from disk: an index of latents, a page for each, and explained images.

The pages are fixed files; what they show lies beside them in ``.js`` files, which a browser loads
from disk where it refuses to load JSON. A page loads only the part it shows, and pictures when
they scroll into view, so that thousands of latents stay quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource, UnreadableImageError, open_images
from vit_sae_plugin.datasets.image_decoding import decode_image
from vit_sae_plugin.fingerprints import model_fingerprint, short
from vit_sae_plugin.report.explained_images import images_to_explain, write_explained_images
from vit_sae_plugin.report.reference_masks import ReferenceMasks
from vit_sae_plugin.report.reference_pictures import write_reference_pictures
from vit_sae_plugin.report.report_folder import check_report_options, clear_report_folder
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
    explain: Sequence[Any] | None = None,
    n_explained: int = 12,
    latents: Sequence[int] | None = None,
    n_latents: int | None = None,
    names: Mapping[int, str] | None = None,
    title: str | None = None,
    thumbnail_size: int = 192,
    source: ActivationSource | None = None,
    progress: bool = True,
) -> Path:
    """Write the report as a folder of files that needs neither a server nor a network.

    Each reference image goes through model and SAE once more, for the masks. One that can't be
    read any more is left out, with a warning.

    Args:
        atlas: made by :func:`vit_sae_plugin.analysis.analyze`.
        images: the source that was analysed, or what :func:`open_images` takes.
        model: the model the SAE reads.
        sae: the SAE that the atlas was made from.
        folder: where to write: a new or empty folder, or that of an earlier report, whose data and
            pictures are removed.
        explain: images that get an explain page: indices, pictures, arrays or files. None: images
            spread evenly over the source. An SAE that reads no patches has no such pages.
        n_explained: how many, where ``explain`` is None.
        latents: the latents to show. None: all that are not dead.
        n_latents: show at most that many of them: those with the lowest label entropy, then, of
            latents without one, those that are not dense, the strongest first. None: all.
        names: names of latents, where they have been named.
        title: heading of the report.
        thumbnail_size: longer side of the pictures, in pixels.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.
        progress: show progress bars.

    Returns:
        The page to open, ``index.html`` in the folder.

    Raises:
        ValueError: the atlas was made from another model, SAE or data set; there is no such latent
            or image, or it can't be read; the folder holds other files.
    """
    image_source = open_images(images)
    check_report_options(
        folder,
        explain=explain,
        n_explained=n_explained,
        n_latents=n_latents,
        n_images=image_source.n_images,
    )
    _check_belongs_together(atlas, image_source, model, sae)
    attached = AttachedSAE(model, sae, source)
    shown = _shown_latents(atlas, latents, n_latents)
    if explain is None:
        chosen: Sequence[int | Image.Image] = images_to_explain(atlas, image_source, n_explained)
    else:
        chosen = _asked_for(explain, atlas)
    has_patches = attached.layout.has("patch")

    folder = Path(folder)
    clear_report_folder(folder)
    for part in ("data/latents", "data/explain", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for page in resources.files("vit_sae_plugin.report").joinpath("site").iterdir():
        (folder / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")

    # small pictures are shown enlarged, where JPEG's blocks would stand out
    extension = "png" if max(_pair(model.cfg.image_size)) <= 96 else "jpg"
    missing: dict[int, str] = {}
    masks = ReferenceMasks(list(atlas.references.values()), shown, atlas.info.grid, folder)
    write_reference_pictures(
        folder / "images",
        masks,
        image_source,
        attached,
        size=thumbnail_size,
        extension=extension,
        missing=missing,
        progress=progress,
    )
    explained = write_explained_images(
        folder,
        atlas,
        image_source,
        attached,
        chosen if has_patches else [],
        set(shown),
        extension,
        missing=missing,
        progress=progress,
    )
    if missing:
        first = next(iter(missing))
        warnings.warn(
            f"the report lacks {len(missing)} images that can't be read any more, such as image "
            f"{first} ({missing[first]})",
            stacklevel=2,
        )
    for number, start in enumerate(range(0, len(shown), LATENTS_IN_A_FILE)):
        some = shown[start : start + LATENTS_IN_A_FILE]
        details = latent_details(atlas, some, masks)
        write_data(folder / f"data/latents/{number:05d}.js", f"latents/{number:05d}", details)
    index = index_data(
        atlas,
        shown,
        masks,
        explained,
        names=names or {},
        title=title or _title(atlas),
        has_patches=has_patches,
        extension=extension,
        latents_in_a_file=LATENTS_IN_A_FILE,
    )
    write_data(folder / "data/atlas.js", "atlas", index)
    return folder / "index.html"


def _check_belongs_together(
    atlas: LatentAtlas, images: ImageSource, model: HookedViT, sae: SAE[Any]
) -> None:
    check_same_sae(atlas, sae)
    for what, former, now in (
        ("model", atlas.info.model_sha256, model_fingerprint(model)),
        ("data set", atlas.info.data_sha256, images.fingerprint()),
    ):
        if former != now:
            raise ValueError(
                f"the atlas was made from the {what} {short(former)}, but this one is "
                f"{short(now)}; pass the one that was analysed, or make an atlas with analyze()"
            )


def _shown_latents(
    atlas: LatentAtlas, latents: Sequence[int] | None, n_latents: int | None
) -> list[int]:
    if latents is None:
        chosen = [int(i) for i in np.flatnonzero(~atlas.latents["is_dead"].to_numpy())]
    else:
        chosen = sorted({atlas.check_latent(latent) for latent in latents})
    if n_latents is None or n_latents >= len(chosen):
        return chosen
    ranked = atlas.latents.loc[chosen].sort_values(
        ["label_entropy", "is_dense", "max_activation"], ascending=[True, True, False]
    )
    return sorted(int(i) for i in ranked.index[:n_latents])


def _asked_for(explain: Sequence[Any], atlas: LatentAtlas) -> list[int | Image.Image]:
    """Indices as they are, anything else as a picture, read as the analysis reads it."""
    skipped = atlas.skipped_images
    reasons = dict(zip(skipped["index"], skipped["reason"], strict=True)) if len(skipped) else {}
    chosen: list[int | Image.Image] = []
    for position, item in enumerate(explain):
        try:
            if not isinstance(item, Integral):
                chosen.append(decode_image(item))
                continue
        except UnreadableImageError as error:
            what = f" ({item})" if isinstance(item, str | Path) else ""
            raise ValueError(f"explain[{position}]{what} can't be read: {error}") from None
        index = int(item)
        if index in reasons:
            raise ValueError(f"image {index} can't be explained: {reasons[index]}")
        chosen.append(index)
    return chosen


def _title(atlas: LatentAtlas) -> str:
    metadata = atlas.info.sae_metadata
    return f"{metadata.get('model_name') or 'Latents'}, {metadata.get('hook_name')}"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
