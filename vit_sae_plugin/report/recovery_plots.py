"""Plots that set several SAEs side by side: the sparsity–fidelity frontier, recovery over k."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from vit_sae_plugin.evaluation import EvaluationReport

# Okabe and Ito's colours, distinct to the colour-blind; markers tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
LOG_METRICS = ("fvu", "fvu_per_sample", "nmse", "nmae", "probe_kl")
METRICS = ("cosine_similarity", "fvu", "cknna_latents_raw", "cknna_latents_unit")
LABELS = {
    "l0": "active latents a row (L0)",
    "k": "latents kept (k)",
    "zero_fraction": "share of latents that are zero",
    "fvu": "fraction of variance unexplained",
    "fvu_per_sample": "fraction of variance unexplained, per sample",
    "cosine_similarity": "cosine similarity",
    "nmae": "normalised absolute error",
    "nmse": "normalised squared error",
    "euclidean": "Euclidean distance",
    "cknna_latents_raw": "CKNNA of latents, rows as they are",
    "cknna_latents_unit": "CKNNA of latents, unit rows",
    "cknna_latents_raw_biased": "CKNNA of latents, rows as they are (biased)",
    "cknna_reconstruction_raw": "CKNNA of reconstructions, rows as they are",
    "cknna_reconstruction_unit": "CKNNA of reconstructions, unit rows",
    "probe_agreement": "same answer of the linear probe",
    "probe_kl": "KL of the probe's answers (nats)",
    "decoder_orthogonality": "decoder's mean squared overlap",
    "n_dead": "dead latents",
}


Reports = EvaluationReport | Sequence[EvaluationReport]
"""Of one SAE; or of several that differ in their seed alone: then lines are means, and bars and
bands reach from the lowest to the highest."""


def plot_frontier(
    reports: Mapping[str, Reports],
    metrics: Sequence[str] = METRICS,
    *,
    curves: Collection[str] = (),
    modality: str = "image",
) -> Figure:
    """Fidelity against sparsity: a point for each SAE by its own rule, or a curve over k.

    Args:
        reports: name of an SAE → its report of ``evaluate_embeddings``, or one a seed. SAEs whose
            names differ only in a last ``NAME=VALUE``, such as ``"TopK k=8"``, share a colour and a
            line.
        metrics: columns of the tables, a panel each.
        curves: names of SAEs that work at any sparsity: drawn at every k of their
            ``progressive_recovery`` table, at the L0 they really have there.
        modality: which rows of the tables.

    Raises:
        ValueError: nothing to plot, or a report without this modality or a column asked for.
    """
    lines: dict[str, pd.DataFrame] = {}
    for name, of_seeds in reports.items():
        if name in curves:
            lines[name] = _line(name, of_seeds, "progressive_recovery", modality, "l0", metrics)
        else:
            point = _line(name, of_seeds, "embeddings", modality, "l0", metrics)
            family = family_of(name)
            lines[family] = pd.concat([lines[family], point]) if family in lines else point
    lines = {name: line.sort_values("l0") for name, line in lines.items()}
    styles = {name: _Style(number, dense=name in curves) for number, name in enumerate(lines)}
    return _panels(lines, styles, "l0", metrics, modality)


def plot_progressive_recovery(
    reports: Mapping[str, Reports],
    metrics: Sequence[str] = METRICS,
    *,
    modality: str = "image",
    x: str = "k",
) -> Figure:
    """How reconstructions get better as more latents are kept: a line for each SAE.

    Args:
        reports: name of an SAE → its report of ``evaluate_embeddings``, or one a seed. Names that
            differ only in a last ``NAME=VALUE`` share a colour and differ in their dashes.
        metrics: columns of the ``progressive_recovery`` table, a panel each.
        modality: which of its rows.
        x: ``"k"``, latents allowed, or ``"l0"``, latents that are really active.

    Raises:
        ValueError: nothing to plot, or a report without this modality or a column asked for.
    """
    lines = {
        name: _line(name, of_seeds, "progressive_recovery", modality, x, metrics)
        for name, of_seeds in reports.items()
    }
    members: dict[str, list[str]] = {}
    for name in lines:
        members.setdefault(family_of(name), []).append(name)
    styles = {
        name: _Style(number, dash, dense=True)
        for number, names in enumerate(members.values())
        for dash, name in enumerate(names)
    }
    return _panels(lines, styles, x, metrics, modality)


def family_of(name: str) -> str:
    """``"TopK k=8"`` → ``"TopK"``: the name of an SAE without a setting at its end."""
    return re.sub(r"\s+\S+=\S*$", "", name)


@dataclass(frozen=True)
class _Style:
    """How a line looks: colour and marker by number, dashes by number; small markers if dense."""

    number: int
    dash: int = 0
    dense: bool = False

    @property
    def color(self) -> str:
        return COLORS[self.number % len(COLORS)]

    def settings(self) -> dict[str, Any]:
        return {
            "color": self.color,
            "marker": MARKERS[self.number % len(MARKERS)],
            "linestyle": DASHES[self.dash % len(DASHES)],
            "markersize": 3.5 if self.dense else 6,
            "linewidth": 1.8 if self.dense else 1.0,
        }


def _line(
    name: str, reports: Reports, table_name: str, modality: str, x: str, metrics: Sequence[str]
) -> pd.DataFrame:
    """``x`` and ``metrics`` of one SAE, means over seeds; ``(metric, "low")`` and ``"high"``."""
    of_seeds = [reports] if isinstance(reports, EvaluationReport) else list(reports)
    rows = []
    for report in of_seeds:
        table = getattr(report, table_name)
        known = table.index.get_level_values("modality").unique().to_list()
        if modality not in known:
            raise ValueError(f"the report has no {modality!r} rows in {table_name}; it has {known}")
        found = table.loc[[modality]].reset_index()
        if missing := {x, *metrics} - set(found.columns):
            raise ValueError(
                f"{name!r} has no column {sorted(missing)}; it has {list(found.columns)}"
            )
        rows.append(found[[x, *metrics]].astype(float))
    if not rows:
        raise ValueError(f"{name!r} has no report; want at least one")
    at_each = pd.concat(rows).groupby(level=0)
    line = at_each.mean()
    for metric in metrics:
        line[metric, "low"], line[metric, "high"] = at_each[metric].min(), at_each[metric].max()
    return line


def _panels(
    lines: Mapping[str, pd.DataFrame],
    styles: Mapping[str, _Style],
    x: str,
    metrics: Sequence[str],
    modality: str,
) -> Figure:
    if not lines or not metrics:
        raise ValueError("nothing to plot: want at least one report and one metric")
    figure = Figure(figsize=(3.9 * len(metrics) + 0.4, 4.3), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for name, line in lines.items():
            style = styles[name]
            ax.plot(line[x], line[metric], label=name, **style.settings())
            low, high = line[metric, "low"], line[metric, "high"]
            if style.dense:
                ax.fill_between(line[x], low, high, color=style.color, alpha=0.2, linewidth=0)
            else:
                ax.vlines(line[x], low, high, color=style.color, linewidth=1.8)
        _dress(ax, x, metric, pd.concat([line[metric] for line in lines.values()]))
    handles, labels = axes[0].get_legend_handles_labels()
    n_columns = min(len(labels), max(2, 2 * len(metrics)))
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, frameon=False)
    figure.suptitle(f"{modality} rows", fontsize=10, color="0.35")
    return figure


def _dress(ax: Axes, x: str, metric: str, values: pd.Series) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.set_xscale("log", base=4)
    ax.xaxis.set_major_formatter(plain)
    ax.xaxis.set_minor_formatter(NullFormatter())
    if metric in LOG_METRICS and (values > 0).all():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(plain)
        # Within one power of ten there may be no major tick to read a value from.
        is_short = values.max() < 10 * values.min()
        ax.yaxis.set_minor_formatter(plain if is_short else NullFormatter())
    ax.set_xlabel(LABELS.get(x, x))
    ax.set_title(LABELS.get(metric, metric), fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
