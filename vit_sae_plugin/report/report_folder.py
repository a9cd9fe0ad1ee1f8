"""Where a report may be written, and what it may show: checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from vit_sae_plugin.atomic_files import is_aside
from vit_sae_plugin.evaluation.evaluation_report import REPORT_FILE

_MARK = "// Made by vit-sae: a report of latents."


def check_report_options(
    folder: str | Path,
    *,
    explain: Sequence[Any] | None = None,
    n_explained: int = 12,
    n_explained_references: int | None = None,
    n_latents: int | None = None,
    masking: str | Path | None = None,
    n_images: int | None = None,
) -> None:
    """Check what can be checked before the images are looked at. Nothing is written.

    Args:
        folder, explain, n_explained, n_explained_references, n_latents, masking: as
            ``write_report`` takes them.
        n_images: images of the source; None if that isn't known.

    Raises:
        ValueError: the folder is a file, or holds files that are no report; a number is too small;
            ``explain`` asks for an image that the source doesn't have.
    """
    check_report_folder(folder)
    if n_explained < 0:
        raise ValueError(f"n_explained is {n_explained}; want 0 (none) or more images to explain")
    if n_explained_references is not None and n_explained_references < 0:
        raise ValueError(
            f"n_explained_references is {n_explained_references}; want 0 (none) or more images"
        )
    if n_latents is not None and n_latents < 1:
        raise ValueError(f"n_latents is {n_latents}; want 1 or more latents to show, or None: all")
    if masking is not None and not (Path(masking) / REPORT_FILE).is_file():
        raise ValueError(
            f"masking is {masking}, which holds no {REPORT_FILE}; want the folder that "
            "vit-sae eval --suite masking wrote"
        )
    for item in explain or ():
        if isinstance(item, Integral):
            index = int(item)
            if index < 0 or (n_images is not None and index >= n_images):
                wanted = "0 or more" if n_images is None else f"0 to {n_images - 1}"
                raise ValueError(f"there is no image {index} to explain; want {wanted}")


def check_report_folder(folder: str | Path) -> None:
    """Check that a report can be written here: a new or empty folder, or that of an earlier one.

    Raises:
        ValueError: otherwise.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"can't write a report to {folder}: {existing} is a file; name a folder")
    others = existing == folder and any(not is_aside(path) for path in folder.iterdir())
    if others and not _holds_report(folder):
        raise ValueError(
            f"{folder} holds files that are no report; choose a new or empty folder, since a "
            "report replaces files"
        )


def _holds_report(folder: Path) -> bool:
    script = folder / "site.js"
    if not script.is_file():
        return False
    with script.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n") == _MARK
