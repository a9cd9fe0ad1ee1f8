"""SAEs side by side in a folder: tables as CSV, the two plots as PNG, and a page with them all."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Template

import pandas as pd

from vit_sae_plugin.atomic_files import folder_beside
from vit_sae_plugin.evaluation import EvaluationReport
from vit_sae_plugin.report.recovery_plots import (
    LABELS,
    METRICS,
    plot_frontier,
    plot_progressive_recovery,
)

PAGE_FILE, TABLE_FILE, RECOVERY_FILE = "index.html", "frontier.csv", "progressive_recovery.csv"
FRONTIER_PLOT, RECOVERY_PLOT = "frontier.png", "progressive_recovery.png"
_COLUMNS = ("n_rows", "l0", "fvu", "cosine_similarity", "cknna_latents_raw", "cknna_latents_unit")


def write_frontier(
    reports: Mapping[str, EvaluationReport],
    folder: str | Path,
    *,
    curves: Collection[str] = (),
    metrics: Sequence[str] = METRICS,
    modality: str = "image",
    notes: Sequence[str] = (),
) -> Path:
    """Write ``index.html``, ``frontier.csv``, ``progressive_recovery.csv`` and two pictures.

    The folder appears, or replaces an earlier one of its kind, when it is complete.

    Args:
        reports: name of an SAE → its report of ``evaluate_embeddings``.
        folder: a new or empty one, or one written by this before.
        curves, metrics, modality: as ``plot_frontier`` takes them.
        notes: what a reader should know, shown on the page.

    Returns:
        The page.

    Raises:
        ValueError: nothing to plot, or the folder holds something else.
    """
    folder = Path(folder)
    check_frontier_folder(folder)
    tables = {
        name: pd.concat(
            {sae: report.tables[name].loc[[modality]] for sae, report in reports.items()},
            names=["sae"],
        ).droplevel("modality")
        for name in ("embeddings", "progressive_recovery")
        if all(name in report.tables for report in reports.values())
    }
    frontier = plot_frontier(reports, metrics, curves=curves, modality=modality)
    recovery = plot_progressive_recovery(reports, metrics, modality=modality)
    with folder_beside(folder) as unfinished:
        tables["embeddings"].to_csv(unfinished / TABLE_FILE)
        tables["progressive_recovery"].to_csv(unfinished / RECOVERY_FILE)
        frontier.savefig(unfinished / FRONTIER_PLOT, dpi=160)
        recovery.savefig(unfinished / RECOVERY_PLOT, dpi=160)
        page = _page(tables["embeddings"], notes)
        (unfinished / PAGE_FILE).write_text(page, encoding="utf-8")
    return folder / PAGE_FILE


def check_frontier_folder(folder: str | Path) -> None:
    """Check that the results can be written here: in a new or empty folder, or over earlier ones.

    Raises:
        ValueError: otherwise.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    ours = {PAGE_FILE, TABLE_FILE, RECOVERY_FILE, FRONTIER_PLOT, RECOVERY_PLOT}
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - ours:
        raise ValueError(
            f"{folder} holds other files; choose a new or empty folder, since this replaces it"
        )


def _page(table: pd.DataFrame, notes: Sequence[str]) -> str:
    columns = [name for name in (*_COLUMNS, "n_dead") if name in table.columns]
    head = "".join(f"<th>{html.escape(LABELS.get(name, name))}</th>" for name in columns)
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th>"
        + "".join(f"<td>{value:.5g}</td>" for value in row)
        + "</tr>"
        for name, row in zip(table.index, table[columns].to_numpy(float), strict=True)
    )
    return _PAGE.substitute(
        table=f"<table><tr><th>SAE</th>{head}</tr>{rows}</table>",
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes),
        frontier=FRONTIER_PLOT,
        recovery=RECOVERY_PLOT,
        frontier_table=TABLE_FILE,
        recovery_table=RECOVERY_FILE,
    )


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SAEs side by side</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 20px; }
img { background: #fff; max-width: 100%; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8884; padding: 4px 10px; text-align: right; }
th:first-child { text-align: left; }
</style></head><body>
<h1>SAEs side by side</h1>
$notes
<h2>Sparsity against fidelity</h2>
<p>A point is an SAE by its own rule; a curve is one that works at any number of latents.
Numbers: <a href="$frontier_table">$frontier_table</a></p>
<img src="$frontier" alt="Each measure against the number of active latents; numbers below">
$table
<h2>Progressive recovery</h2>
<p>The same as more latents are kept of each row. Numbers:
<a href="$recovery_table">$recovery_table</a></p>
<img src="$recovery" alt="Each measure against the number of latents kept">
</body></html>
""")
