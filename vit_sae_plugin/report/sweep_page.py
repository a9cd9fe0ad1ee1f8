"""The page of a sweep: its SAEs side by side, and how each of them trained."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from vit_sae_plugin.atomic_files import write_file_atomically
from vit_sae_plugin.report.page_pieces import html_table, inline_svg
from vit_sae_plugin.report.study_page import Section, write_study_page
from vit_sae_plugin.report.sweep_plots import (
    Family,
    families,
    fidelity,
    frontier_panel,
    legend_html,
    plot_sweep_curves,
    plot_sweep_frontier,
)
from vit_sae_plugin.training.sweep import SweepResults

PAGE_FILE = "index.html"
PLOT_FILE = "frontier.png"
_TOKENS = {"all": "all tokens", "patches": "patches", "cls": "class tokens"}
_WORDS = {
    "sae.architecture": "architecture",
    "n_tokens": "rows seen",
    "l0": "L0",
    "explained_variance": "explained variance",
    "n_dead_latents": "dead latents",
    "held_out_l0": "L0, held out",
    "held_out_explained_variance": "explained variance, held out",
    "held_out_output_cosine": "output cosine, held out",
    "l1_coefficient": "λ",
    "relative_l1_coefficient": "relative λ",
    "l0_coefficient": "λ of L0",
    "hook_name": "hook",
    "d_sae": "latents",
}


def write_sweep_page(
    results: SweepResults, path: str | Path | None = None, *, title: str | None = None
) -> Path:
    """Write a sweep as one self-contained HTML page, with its plot as ``frontier.png`` beside it.

    Args:
        results: of a sweep, finished or not.
        path: of the file; None: ``index.html`` in the sweep's folder.
        title: of the page.

    Returns:
        The page.
    """
    path = results.folder / PAGE_FILE if path is None else Path(path)
    lines = families(results)
    hooks: dict[str, list[Family]] = {}
    for family in lines:
        settings = family.members[0].settings
        out = "" if settings.get("hook_name_out") is None else f" → {settings['hook_name_out']}"
        hooks.setdefault(settings["hook_name"] + out, []).append(family)
    measured = {hook: some for hook, chosen in hooks.items() if (some := _measured(chosen))}
    if measured:
        plot = plot_sweep_frontier(measured)
        write_file_atomically(path.parent / PLOT_FILE, lambda file: plot.savefig(file, dpi=160))
    return write_study_page(
        path,
        title=title or f"Sweep: {len(results.members)} SAEs on one stream",
        lead=[_lead(results, list(hooks))],
        facts=_facts(results),
        sections=[
            _frontier_section(results, measured),
            Section(
                "All members",
                "Training measures are means over the last tenth of the logged steps. "
                "●: no other member at the same hook has both fewer active latents and a better "
                "reconstruction.",
                f'<div class="tables">{html_table(_readable(results))}</div>'
                "<details><summary>Every setting in which they differ</summary>"
                f'<div class="tables">{html_table(_differences(results))}</div></details>',
            ),
            _curves_section(lines),
        ],
        warnings=[
            f"{member.name} was stopped, the others went on: {member.diverged}"
            for member in results.members
            if member.status == "diverged"
        ],
        commands=_commands(results),
    )


def on_frontier(results: SweepResults) -> dict[str, bool]:
    """Which members no other at the same hook beats in both L0 and reconstruction."""
    points = {
        member.name: (
            (member.settings["hook_name"], member.settings.get("hook_name_out")),
            *found,
        )
        for member in results.members
        if member.status != "diverged" and (found := fidelity(member)) is not None
    }
    return {
        member.name: member.name in points
        and not any(
            hook == points[member.name][0]
            and l0 <= points[member.name][1]
            and fvu <= points[member.name][2]
            and (l0, fvu) != points[member.name][1:]
            for hook, l0, fvu in points.values()
        )
        for member in results.members
    }


def _lead(results: SweepResults, hooks: list[str]) -> str:
    one = results.members[0].settings
    model = one.get("model_name") or "a model without a name"
    return (
        f"Each saw the same rows in the same order: {_TOKENS[one['token_kind']]} of {model} at "
        f"{' and '.join(hooks)}, in batches of {one['train_batch_size_tokens']:,}; each image "
        "ran through the model once for all of them."
        if one.get("embeddings_path") is None
        else f"Each saw the same rows of {one['embeddings_path']} in the same order, in batches of "
        f"{one['train_batch_size_tokens']:,}."
    )


def _facts(results: SweepResults) -> dict[str, str]:
    members = results.members
    table = results.table()
    n_done = sum(member.status == "finished" for member in members)
    points = [point for member in members if (point := fidelity(member)) is not None]
    facts = {
        "SAEs finished": f"{n_done}" if n_done == len(members) else f"{n_done} of {len(members)}",
        "rows, the longest run": f"{table['n_tokens'].max():,.0f}",
    }
    if points:
        facts["active latents a row"] = _range([l0 for l0, _ in points], "{:.3g}")
        facts["explained variance"] = _range([1 - fvu for _, fvu in points], "{:.3f}")
    return facts


def _range(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _frontier_section(results: SweepResults, hooks: dict[str, list[Family]]) -> Section:
    held_out = any("held_out_l0" in member.measures() for member in results.members)
    where = "Measured on held-out images." if held_out else "Measured on the last training batches."
    every = [family for chosen in hooks.values() for family in chosen]
    if len(hooks) > 1:
        plots = "".join(
            f"<div><h4>{html.escape(hook)}</h4>"
            f"{inline_svg(frontier_panel(chosen, small=True))}</div>"
            for hook, chosen in hooks.items()
        )
        body = f'<div class="halves">{plots}</div>{legend_html(every)}'
    else:
        plot = inline_svg(frontier_panel(every))
        body = f'<div class="plot-and-lines"><div>{plot}</div>{legend_html(every)}</div>'
    apart = " Rows of different hooks are not equally hard, so each has its own plot."
    return Section(
        "Sparsity against fidelity",
        f"Lower and further left is better. {where} A line joins SAEs that differ in their "
        "sparsity setting alone; hollow marks were stopped or are not finished."
        + (apart if len(hooks) > 1 else ""),
        body,
    )


def _measured(chosen: list[Family]) -> list[Family]:
    return [
        family
        for family in chosen
        if any(fidelity(member) is not None for member in family.members)
    ]


def _curves_section(lines: list[Family]) -> Section:
    lines = [family for family in lines if any(len(m.metrics) > 0 for m in family.members)]
    pictures = "".join(
        f"<div>{inline_svg(plot_sweep_curves(lines, measure))}</div>"
        for measure in ("fvu", "l0", "dead_share")
    )
    return Section(
        "How they trained",
        "Of training batches, which are the same for all: dips and bumps that all lines share are "
        "the rows'. Of one colour, the first member is drawn solid, the next dashed, then dotted.",
        f'<div class="halves">{pictures}{legend_html(lines)}</div>',
    )


def _readable(results: SweepResults) -> pd.DataFrame:
    table = results.short_table()
    best = on_frontier(results)
    names = [f"{name} ●" if best[name] else name for name in table.index]
    measured = list(table.columns[table.columns.get_loc("n_tokens") :])
    settings = [
        name
        for name in table.columns
        if name not in measured and table[name].nunique(dropna=False) > 1
    ]
    table = table[[*settings[:1], *measured[1:], *settings[1:], "n_tokens"]]
    for name in ("lr", "explained_variance", "held_out_explained_variance"):
        if name in table:
            form = "{:g}" if name == "lr" else "{:.4f}"
            table[name] = ["–" if pd.isna(x) else form.format(x) for x in table[name]]
    return table.rename(columns=_WORDS).set_axis(names).rename_axis("")


def _differences(results: SweepResults) -> pd.DataFrame:
    names = [name.removeprefix("sae.") for name in results.varied()]
    table = results.table()
    shown = table[[name for name in names if name in table]]
    return shown.map(lambda value: str(value) if isinstance(value, bool) else value).rename_axis("")


def _commands(results: SweepResults) -> list[str]:
    folder = results.folder
    commands = [f"vit-sae frontier {folder}/*/sae --images SOURCE --output-path frontier"]
    if any(member.status == "unfinished" for member in results.members):
        commands.insert(0, f"vit-sae train --resume {folder}")
    return commands
