"""Run the notebooks in examples/notebooks/ and keep them with what they really printed and drew.

    pip install -e ".[notebooks]"
    python scripts/make_notebooks.py                 # all of them
    python scripts/make_notebooks.py 01_first_sae    # one
    python scripts/make_notebooks.py --words         # where no code has changed: its words alone

A notebook is written as a Python script with cells (`# %%`); jupytext makes the `.ipynb` of it, and
nbclient runs that in a folder where no run leaves anything beside the notebooks. All run in the
same folder, so that later ones find the SAE of the first.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
MAX_BYTES = 1_000_000


def make(script: Path, folder: Path, timeout_s: int) -> Path:
    """Run one in this folder and write its ``.ipynb`` beside the script.

    Raises:
        RuntimeError: with what it drew the notebook is larger than a megabyte, or it shows where
            on this machine it was run.
    """
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=timeout_s, resources=resources).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran says nothing
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if png := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = _smaller(png)
                    output.data.pop("image/jpeg", None)  # the same picture once more
    made = script.with_suffix(".ipynb")
    text = _write(notebook, made)
    for place in (folder, Path.home(), FOLDER.parents[1]):
        if json.dumps(f"{place}{os.sep}")[1:-1] in text:
            raise RuntimeError(f"{made.name} shows the folder {place}; print no paths")
    if (n_bytes := made.stat().st_size) > MAX_BYTES:
        raise RuntimeError(
            f"{made.name} has {n_bytes:,} bytes; want at most {MAX_BYTES:,}: draw less"
        )
    return made


def change_words(script: Path) -> Path:
    """Bring the ``.ipynb``'s words up to the script, and keep what its code printed and drew.

    Raises:
        RuntimeError: the code has changed, so what is kept isn't what it prints any more.
    """
    import jupytext

    made = script.with_suffix(".ipynb")
    notebook, kept = jupytext.read(script), jupytext.read(made)
    ran = [cell for cell in kept.cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in ran]:
        raise RuntimeError(
            f"the code of {made.name} has changed since it ran; run it, without --words"
        )
    for new, old in zip(code, ran, strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    notebook.metadata = kept.metadata
    _write(notebook, made)
    return made


def _write(notebook: NotebookNode, made: Path) -> str:
    import jupytext

    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # random ones would change with every run
    text = jupytext.writes(notebook, fmt="ipynb")
    made.write_text(text, encoding="utf-8")
    return text


def _smaller(png: str) -> str:
    """A figure in two thirds of the bytes: its colours rounded to 5 bits, by at most 4 of 255."""
    colors = np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)
    rounded = np.minimum((colors + 4) // 8 * 8, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(rounded).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01_first_sae (default: all)")
    parser.add_argument("--folder", type=Path, help="where they run (default: one that is deleted)")
    parser.add_argument("--words", action="store_true", help="run nothing: change the words alone")
    parser.add_argument("--timeout-s", type=int, default=1800, help="of a cell")
    args = parser.parse_args()
    scripts = {script.stem: script for script in sorted(FOLDER.glob("*.py"))}
    if unknown := sorted(set(args.names) - set(scripts)):
        parser.error(f"there is no notebook {unknown[0]!r}; want some of {', '.join(scripts)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.names or scripts:
            script = scripts[name]
            made = (
                change_words(script)
                if args.words
                else make(script, folder.resolve(), args.timeout_s)
            )
            print(f"{made.name}: {made.stat().st_size / 1e3:,.0f} kB", flush=True)


if __name__ == "__main__":
    main()
