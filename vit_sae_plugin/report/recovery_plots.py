"""Plots that set several SAEs side by side: the sparsity–fidelity frontier, recovery over k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from vit_sae_plugin.evaluation import EvaluationReport

# Okabe and Ito's colours, distinct to the colour-blind; markers tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
    "cknna_latents": "CKNNA of latents with inputs",
    "cknna_latents_biased": "CKNNA of latents with inputs (biased)",
    "cknna_reconstruction": "CKNNA of reconstructions with inputs",
    "probe_agreement": "same answer of the linear probe",
    "probe_kl": "KL of the probe's answers (nats)",
    "decoder_orthogonality": "decoder's mean squared overlap",
    "n_dead": "dead latents",
}


def plot_frontier(
    reports: Mapping[str, EvaluationReport],
    metrics: Sequence[str] = ("cosine_similarity", "fvu"),
    *,
    modality: str = "image",
) -> Figure:
    """Fidelity against sparsity: a point for each SAE by its own rule.

    Args:
        reports: name of an SAE → its report of ``evaluate_embeddings``. Names that are equal up to
            the first ``" k="`` share a colour and are joined by a line.
        metrics: columns of the ``embeddings`` table, a panel each.
        modality: which of its rows.
    """
    families: dict[str, list[pd.Series]] = {}
    for name, report in reports.items():
        row = _rows(report, "embeddings", modality)
        families.setdefault(name.split(" k=")[0], []).append(row)
    lines = {
        name: pd.DataFrame(rows).sort_values("l0").reset_index(drop=True)
        for name, rows in families.items()
    }
    return _panels(lines, "l0", metrics, modality)


def plot_progressive_recovery(
    reports: Mapping[str, EvaluationReport],
    metrics: Sequence[str] = ("cosine_similarity", "fvu", "cknna_latents"),
    *,
    modality: str = "image",
    x: str = "k",
) -> Figure:
    """How reconstructions get better as more latents are kept: a line for each SAE.

    Args:
        reports: name of an SAE → its report of ``evaluate_embeddings``.
        metrics: columns of the ``progressive_recovery`` table, a panel each.
        modality: which of its rows.
        x: ``"k"``, latents allowed, or ``"l0"``, latents that are really active.
    """
    lines = {
        name: _rows(report, "progressive_recovery", modality).reset_index()
        for name, report in reports.items()
    }
    return _panels(lines, x, metrics, modality)


def _rows(report: EvaluationReport, table_name: str, modality: str) -> pd.DataFrame | pd.Series:
    table = getattr(report, table_name)
    known = table.index.get_level_values("modality").unique().to_list()
    if modality not in known:
        raise ValueError(f"the report has no {modality!r} rows in {table_name}; it has {known}")
    return table.loc[modality]


def _panels(
    lines: Mapping[str, pd.DataFrame], x: str, metrics: Sequence[str], modality: str
) -> Figure:
    if not lines or not metrics:
        raise ValueError("nothing to plot: want at least one report and one metric")
    figure = Figure(figsize=(4.2 * len(metrics), 3.8), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for number, (name, line) in enumerate(lines.items()):
            missing = {x, metric} - set(line.columns)
            if missing:
                raise ValueError(
                    f"{name!r} has no column {sorted(missing)}; it has {list(line.columns)}"
                )
            ax.plot(
                line[x],
                line[metric],
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                label=name,
            )
        _dress(ax, x, metric)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{modality} rows", fontsize=10, color="0.35")
    return figure


def _dress(ax: Axes, x: str, metric: str) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(LABELS.get(x, x))
    ax.set_ylabel(LABELS.get(metric, metric))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
