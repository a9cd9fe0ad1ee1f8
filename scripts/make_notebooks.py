"""Run the notebooks in examples/notebooks/ and keep them with what they really printed and drew.

    python scripts/make_notebooks.py                 # all of them
    python scripts/make_notebooks.py 01_first_sae    # one

A notebook is written as a Python script with cells (`# %%`); jupytext makes the `.ipynb` of it, and
nbclient runs that in a folder of its own, so that no run leaves anything beside the notebooks.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
MAX_BYTES = 1_000_000


def make(script: Path, demo: Path | None, timeout_s: int) -> Path:
    """Run one and write its ``.ipynb``.

    Raises:
        RuntimeError: the notebook is larger than a megabyte with what it drew.
    """
    notebook = jupytext.read(script)
    with tempfile.TemporaryDirectory() as folder:
        if demo is not None:
            (Path(folder) / "demo-results").symlink_to(demo.resolve())
        client = NotebookClient(
            notebook, timeout=timeout_s, resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran says nothing
        outputs = cell.get("outputs", [])
        cell["outputs"] = [o for o in outputs if o.get("name") != "stderr"]  # progress, warnings
    made = script.with_suffix(".ipynb")
    jupytext.write(notebook, made)
    if made.stat().st_size > MAX_BYTES:
        raise RuntimeError(
            f"{made.name} has {made.stat().st_size:,} bytes; want at most {MAX_BYTES:,}: draw less"
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01_first_sae (default: all)")
    parser.add_argument("--demo", type=Path, help="a demo's folder, whose SAE 04 and 05 then take")
    parser.add_argument("--timeout-s", type=int, default=1800, help="of a cell")
    args = parser.parse_args()
    if shutil.which("jupyter") is None:
        parser.error("Jupyter isn't installed; pip install 'vit-sae-plugin[docs]'")
    scripts = sorted(FOLDER.glob("*.py"))
    for script in scripts:
        if not args.names or script.stem in args.names:
            made = make(script, args.demo, args.timeout_s)
            print(f"{made.name}: {made.stat().st_size / 1e3:,.0f} kB", flush=True)


if __name__ == "__main__":
    main()
