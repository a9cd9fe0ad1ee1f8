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
from vit_sae_plugin.analysis import LatentAtlas, LatentName
from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae
from vit_sae_plugin.atomic_files import delete_leftovers, write_into_folder
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.attached_sae.attribution import Score
from vit_sae_plugin.concepts.latent_tree import TREE_FILE, LatentTree
from vit_sae_plugin.datasets import ImageSource, UnreadableImageError, open_images
from vit_sae_plugin.datasets.image_decoding import decode_image
from vit_sae_plugin.fingerprints import model_fingerprint, short
from vit_sae_plugin.hooked_vit.loading.loaded_model import describe_weights
from vit_sae_plugin.prompt_templates import Template
from vit_sae_plugin.report.answers import Answers
from vit_sae_plugin.report.explained_images import ExplainedImages, images_to_explain
from vit_sae_plugin.report.masking_data import masking_data
from vit_sae_plugin.report.reference_masks import ReferenceMasks
from vit_sae_plugin.report.reference_pictures import write_reference_pictures
from vit_sae_plugin.report.report_folder import check_report_options
from vit_sae_plugin.report.site_data import (
    index_data,
    latent_details,
    previews,
    tree_data,
    write_data,
)

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

LATENTS_IN_A_FILE, PREVIEWS_IN_A_FILE = 32, 64
INDEX_PAGE = "index.html"
_EXPLAINED_REFERENCES = 200


def write_report(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    images: Any,
    folder: str | Path,
    *,
    explain: Sequence[Any] | None = None,
    n_explained: int = 12,
    n_explained_references: int | None = None,
    latents: Sequence[int] | None = None,
    n_latents: int | None = None,
    names: Mapping[int, str | LatentName] | None = None,
    logit: int | str | Score | None = None,
    templates: str | Path | Sequence[Template] | None = None,
    masking: str | Path | None = None,
    tree: LatentTree | None = None,
    title: str | None = None,
    thumbnail_size: int = 192,
    source: ActivationSource | None = None,
    progress: bool = True,
) -> Path:
    """Write the report as a folder of files that needs neither a server nor a network.

    Each reference image goes through model and SAE once more, for the masks. One that can't be
    read any more is left out, with a warning.

    Args:
        model: the model the SAE reads.
        sae: the SAE that the atlas was made from.
        atlas: made by ``vit_sae_plugin.analysis.analyze``.
        images: the source that was analysed, or what ``open_images`` takes.
        folder: where to write: a new or empty folder, or that of an earlier report, which stays as
            it is until the new one is whole.
        explain: images that get an explain page: indices, pictures, arrays or files. None: images
            spread evenly over the source. An SAE that reads no patches has no such pages.
        n_explained: how many, where ``explain`` is None.
        n_explained_references: how many reference images get an explain page besides: those of
            most latents. None: 200, or none where ``latents`` or ``n_latents`` leave some out.
        latents: the latents to show. None: all that are not dead.
        n_latents: show this many of them, and those that an explained image lists: those with the
            lowest label entropy, then, of latents without one, those that are not dense, the
            strongest first. None: all.
        names: names of latents. None: ``atlas.names``.
        logit: show which latents, in which patches, made this number, on the page of each image
            of ``explain``: ``"predicted"``, the class that the model chooses among the atlas's; a
            class (its index), a text such as ``"a photo of a dog"``, or a function from the model's
            output ``[n, d_embed]`` to one number each. None: no such section.
        templates: prompt templates around a class's name, as `evaluate_sae` takes them.
        masking: a masking study of this SAE, for a page of its own: the folder that
            ``vit-sae eval --suite masking`` or `masking_report(…).save` wrote.
        tree: of this SAE's latents, for a page of its own. None: the one saved beside the atlas,
            or no such page.
        title: heading of the report. None: the model, its weights in words, and the hook.
        thumbnail_size: longer side of the pictures, in pixels.
        source: hook and tokens the SAE reads; None: as the SAE's metadata say.
        progress: show progress bars.

    Returns:
        The page to open, ``index.html`` in the folder.

    Raises:
        ValueError: the atlas was made from another model, SAE or data set; there is no such latent
            or image, or it can't be read; the folder holds other files; there is nothing that
            ``logit`` could mean; ``masking`` holds no study of this SAE.
    """
    image_source = open_images(images)
    check_report_options(
        folder,
        explain=explain,
        n_explained=n_explained,
        n_explained_references=n_explained_references,
        n_latents=n_latents,
        masking=masking,
        n_images=image_source.n_images,
    )
    _check_belongs_together(atlas, image_source, model, sae)
    named = _latent_names(atlas, names)
    tree = _tree_of(atlas, tree)
    attached = AttachedSAE(model, sae, source)
    shown = _shown_latents(atlas, latents, n_latents)
    shows_all = latents is None and n_latents is None
    if n_explained_references is None:
        n_explained_references = _EXPLAINED_REFERENCES if shows_all else 0
    if explain is None:
        chosen: Sequence[int | Image.Image] = images_to_explain(atlas, image_source, n_explained)
    else:
        chosen = _asked_for(explain, atlas)
    weights = _weights(model, atlas)
    answers = None if logit is None else Answers(attached, atlas, logit, templates)
    study = None if masking is None else masking_data(masking, atlas)
    missing: dict[int, str] = {}

    def write(aside: Path) -> None:
        has_patches = attached.layout.has("patch")
        # small pictures are shown enlarged, where JPEG's blocks would stand out
        extension = "png" if max(model.cfg.image_size) <= 96 else "jpg"
        _lay_out(aside)
        explained = ExplainedImages(aside, atlas, image_source, attached, extension, answers)
        if has_patches:
            explained.add_chosen(chosen, missing, progress=progress)
        if n_latents is not None and latents is None:
            shown[:] = sorted({*shown, *explained.listed_latents})
        tables = list(atlas.references.values())
        masks = ReferenceMasks(tables, shown, attached.layout.grid, aside)
        write_reference_pictures(
            aside,
            masks,
            image_source,
            attached,
            explained,
            n_explained=n_explained_references if has_patches else 0,
            size=thumbnail_size,
            extension=extension,
            missing=missing,
            progress=progress,
        )
        for number, start in enumerate(range(0, len(shown), LATENTS_IN_A_FILE)):
            details = latent_details(atlas, shown[start : start + LATENTS_IN_A_FILE], masks)
            write_data(aside / f"data/latents/{number:05d}.js", f"latents/{number:05d}", details)
        for number, start in enumerate(range(0, len(shown), PREVIEWS_IN_A_FILE)):
            some = previews(atlas, shown[start : start + PREVIEWS_IN_A_FILE], masks)
            write_data(aside / f"data/previews/{number:05d}.js", f"previews/{number:05d}", some)
        entries, n_chosen = explained.entries(set(shown))
        index = index_data(
            atlas,
            shown,
            entries,
            n_chosen=n_chosen,
            names=named,
            title=title or _title(atlas, weights),
            weights=weights,
            has_patches=has_patches,
            has_masking=study is not None,
            has_tree=tree is not None,
            extension=extension,
            latents_in_a_file=LATENTS_IN_A_FILE,
            previews_in_a_file=PREVIEWS_IN_A_FILE,
        )
        write_data(aside / "data/atlas.js", "atlas", index)
        if study is not None:
            write_data(aside / "data/masking.js", "masking", study)
        if tree is not None:
            write_data(aside / "data/tree.js", "tree", tree_data(tree))

    folder = Path(folder)
    delete_leftovers(folder)
    write_into_folder(folder, write, last=INDEX_PAGE)
    if missing:
        first = next(iter(missing))
        warnings.warn(
            f"the report lacks {len(missing)} images that can't be read any more, such as image "
            f"{first} ({missing[first]})",
            stacklevel=2,
        )
    return folder / INDEX_PAGE


def _lay_out(folder: Path) -> None:
    """The fixed files of a report, and the folders of what they show."""
    for part in ("data/latents", "data/previews", "data/explain", "images"):
        (folder / part).mkdir(parents=True)
    for page in resources.files("vit_sae_plugin.report").joinpath("site").iterdir():
        (folder / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")


def _check_belongs_together(
    atlas: LatentAtlas, images: ImageSource, model: HookedViT, sae: SAE[Any]
) -> None:
    check_same_sae(atlas, sae)
    for what, former, now in (
        ("model", atlas.info.model_sha256, model_fingerprint(model)),
        ("data set", atlas.info.data_sha256, images.fingerprint()),
    ):
        if former is not None and former != now:  # embeddings are analysed without their model
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


def _tree_of(atlas: LatentAtlas, tree: LatentTree | None) -> LatentTree | None:
    if tree is not None:
        if tree.sae_sha256 != atlas.info.sae_sha256:
            raise ValueError(
                f"the tree is of the SAE {short(tree.sae_sha256)}, but the atlas was made from "
                f"{short(atlas.info.sae_sha256)}"
            )
        return tree
    if atlas.folder is None or not (atlas.folder / TREE_FILE).is_file():
        return None
    try:
        return LatentTree.load(atlas.folder, atlas.info.sae_sha256)
    except ValueError as error:
        warnings.warn(f"the report has no tree: {error}", stacklevel=3)
        return None


def _latent_names(
    atlas: LatentAtlas, names: Mapping[int, str | LatentName] | None
) -> dict[int, LatentName]:
    if names is None:
        return atlas.names
    return {
        atlas.check_latent(latent): LatentName(name) if isinstance(name, str) else name
        for latent, name in names.items()
    }


def _weights(model: HookedViT, atlas: LatentAtlas) -> str:
    """The model's weights in words; of a model that was wrapped as an object nothing is known."""
    if model.has_pretrained_weights is None:
        return "unknown weights"
    if not model.has_pretrained_weights:
        return "random weights"
    metadata = atlas.info.sae_metadata
    recorded = metadata.get("model_from_pretrained_kwargs") or {}
    words = describe_weights(str(metadata.get("model_name")), recorded)
    return "pretrained weights" if words == "random weights" else words


def _title(atlas: LatentAtlas, weights: str) -> str:
    metadata = atlas.info.sae_metadata
    return f"{metadata.get('model_name') or 'Latents'} ({weights}), {metadata.get('hook_name')}"
