"""Where results are written: what a folder is called, and whether it can be written to, asked
before the work is done."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
    from vit_sae_plugin.datasets import ImageSource


def check_output_folder(folder: str | Path, said_by: str = "--output-path") -> None:
    """Raise unless files can be written in a folder, or in one that would be made there.

    Raises:
        ValueError: it, or a folder above it, is a file, or can't be written to.
    """
    folder = Path(folder)
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError("it is a file")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"can't write to {str(folder)!r} ({reason}); choose another folder with {said_by}"
        ) from None


_LONGEST_NAME = 150


def folder_name(kind: str, images: ImageSource | EmbeddingRows) -> str:
    """A name for what is made of these images or rows: of another data set it has another."""
    plain = re.sub(r"[^\w.-]+", "-", images.name).strip("-")
    plain = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")  # systems allow 255 bytes
    return f"{kind}-{plain}-{images.fingerprint()[:8]}"
