"""Whether results can be written where they are wanted, asked before the work is done."""

from __future__ import annotations

import tempfile
from pathlib import Path


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
