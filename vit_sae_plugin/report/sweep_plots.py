"""A sweep in pictures: fidelity against sparsity, and how each SAE got there."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vit_sae_plugin.report.page_pieces import INK
from vit_sae_plugin.report.plots import new_figure
from vit_sae_plugin.report.recovery_plots import COLORS, DASHES, LABELS
from vit_sae_plugin.training.sweep import MemberResult, SweepResults
from vit_sae_plugin.training.sweep.sweep_results import SPARSITY_SETTINGS

_COLORS = (*COLORS[:-1], "#8f6ad9")  # the last of those is black, which a dark page hides
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}
_SHORT = {"l1_coefficient": "λ", "relative_l1_coefficient": "λ", "l0_coefficient": "λ"}
_KNOBS = tuple(SPARSITY_SETTINGS)
_NAMED_FIRST = ("sae.d_sae", "lr", "optimizer", "lr_scheduler_name", "training_tokens")


@dataclass
class Family:
    """Members that differ in how sparse they are and in nothing else: one line of a plot."""

    label: str
    members: list[MemberResult]
    color: str
    marker: str

    def label_of(self, member: MemberResult) -> str:
        """What sets a member apart from the others, such as ``"k=8"``; its name, if nothing."""
        for name in _KNOBS:
            values = [other.settings.get(name) for other in self.members]
            if len({json.dumps(value) for value in values}) > 1:
                short = name.removeprefix("sae.")
                return f"{_SHORT.get(short, short)}={_number(member.settings.get(name))}"
        return "" if len(self.members) == 1 else member.name


def families(results: SweepResults) -> list[Family]:
    """The lines of a sweep's plots, in the order of its members."""
    groups: dict[str, list[MemberResult]] = {}
    for member in results.members:
        rest = {name: value for name, value in member.settings.items() if name not in _KNOBS}
        rest = {name: value for name, value in rest.items() if not name.endswith("_path")}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(member)
    markers = list(_MARKERS)
    return [
        Family(
            _label(members[0], [other[0] for other in groups.values()]),
            members,
            _COLORS[number % len(_COLORS)],
            markers[number % len(markers)],
        )
        for number, members in enumerate(groups.values())
    ]


def _label(member: MemberResult, others: Sequence[MemberResult]) -> str:
    """The architecture, and what tells this family from others of it at the same hook."""
    kind = ("sae.architecture", "hook_name", "hook_name_out")
    alike = [
        other
        for other in others
        if all(other.settings.get(name) == member.settings.get(name) for name in kind)
    ]
    differing = {
        name
        for name, value in member.settings.items()
        if name not in _KNOBS
        and not name.endswith("_path")
        and any(other.settings.get(name) != value for other in alike)
    }
    # of settings that follow one another, such as a schedule's steps, the first says enough
    named = [name for name in _NAMED_FIRST if name in differing] or sorted(differing)[:2]
    parts = [str(member.settings["sae.architecture"])]
    hooks = {str(other.settings["hook_name"]) for other in others}
    if len(hooks) > 1:
        parts[0] += f" at {_apart(str(member.settings['hook_name']), hooks)}"
    for name in named:
        parts.append(f"{name.removeprefix('sae.')}={_number(member.settings[name])}")
    return ", ".join(parts)


def _apart(hook_name: str, hooks: Collection[str]) -> str:
    """A hook's name, ``"blocks.2.hook_resid_post"``, without the last part if all share it."""
    layers = {hook.rpartition(".")[2] for hook in hooks}
    return hook_name.rpartition(".")[0] if len(layers) == 1 else hook_name


def fidelity(member: MemberResult) -> tuple[float, float] | None:
    """L0 and fraction of variance unexplained, on held-out images if they were measured."""
    found = member.measures()
    prefix = "held_out_" if "held_out_explained_variance" in found else ""
    if f"{prefix}l0" not in found:
        return None
    point = found[f"{prefix}l0"], 1 - found[f"{prefix}explained_variance"]
    return point if np.isfinite(point).all() else None


def plot_sweep_frontier(hooks: Mapping[str, Sequence[Family]]) -> Figure:
    """Fraction of variance unexplained against L0: a panel a hook, a line a family, a point a
    member.

    Lower and further left is better. Members that have no finite measure are left out; those that
    were stopped are drawn hollow.

    Args:
        hooks: what is read → families that read it.
    """
    figure = new_figure(4.9 * len(hooks) + 0.2, 4.4)
    panels = figure.subplots(1, len(hooks), squeeze=False)[0]
    for axes, (hook, chosen) in zip(panels, hooks.items(), strict=True):
        draw_frontier(axes, chosen)
        axes.set_title(hook, fontsize=9.5)
    marks = [
        Line2D([], [], color=family.color, marker=family.marker, label=family.label)
        for chosen in hooks.values()
        for family in chosen
    ]
    n_columns = max(1, min(len(marks), 2 * len(hooks)))
    figure.legend(
        handles=marks, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=8.5
    )
    return figure


def frontier_panel(chosen: Sequence[Family], *, small: bool = False) -> Figure:
    """One panel of ``plot_sweep_frontier`` without its legend, for a page that has one."""
    figure = new_figure(*((4.9, 3.6) if small else (6.6, 4.3)))
    draw_frontier(figure.add_subplot(), chosen)
    return figure


def draw_frontier(axes: Axes, chosen: Sequence[Family]) -> None:
    """Draw the families' lines and points."""
    values = []
    for number, family in enumerate(chosen):
        points = [(p, m) for m in family.members if (p := fidelity(m)) is not None]
        points.sort(key=lambda pair: pair[0])
        if not points:
            continue
        xy = np.array([point for point, _ in points])
        values.append(xy)
        axes.plot(*xy.T, color=family.color, linewidth=1.2, alpha=0.75)
        for (x, y), member in points:
            done = member.status == "finished"
            axes.plot(
                *(x, y),
                color=family.color,
                marker=family.marker,
                markersize=7,
                markerfacecolor=family.color if done else "none",
                linestyle="none",
            )
            axes.annotate(
                family.label_of(member),
                (x, y),
                xytext=(6, 5) if number % 2 == 0 else (-6, -6),
                textcoords="offset points",
                ha="left" if number % 2 == 0 else "right",
                va="bottom" if number % 2 == 0 else "top",
                fontsize=8,
                color=INK,
            )
    axes.margins(0.12, 0.12)
    if values:
        _scale(axes, np.concatenate(values))
    _dress(axes, LABELS["l0"], LABELS["fvu"])


def plot_sweep_curves(chosen: Sequence[Family], measure: str) -> Figure:
    """A measure of the training batches against the rows seen, a line a member.

    Args:
        chosen: of these families.
        measure: ``"fvu"``, ``"l0"`` or ``"dead_share"``.
    """
    figure = new_figure(4.9, 3.1)
    axes = figure.add_subplot()
    for family in chosen:
        for number, member in enumerate(family.members):
            lines = member.metrics
            if lines.empty:
                continue
            values = {
                "fvu": 1 - lines["explained_variance"],
                "l0": lines["l0"],
                "dead_share": lines["n_dead_latents"] / member.settings["sae.d_sae"],
            }[measure]
            dash = DASHES[number % len(DASHES)]
            axes.plot(lines["n_tokens"], values, color=family.color, linestyle=dash, linewidth=1.5)
    if measure != "dead_share":
        axes.set_yscale("log")
        _readable_log(axes.yaxis, *axes.get_ylim())
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.02))
    names = {"fvu": LABELS["fvu"], "l0": LABELS["l0"], "dead_share": "dead latents"}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))
    _dress(axes, "rows seen", names[measure])
    return figure


def legend_html(chosen: Sequence[Family]) -> str:
    """The families' marks and names, for the side of their plots."""
    entries = []
    for family in chosen:
        mark = f'<i style="color:{family.color}">{_MARKERS[family.marker]}</i>'
        names = ", ".join(member.name for member in family.members)
        entries.append(
            f"<li>{mark}<b>{html.escape(family.label)}</b><span>{html.escape(names)}</span></li>"
        )
    return f'<ul class="lines">{"".join(entries)}</ul>'


_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def _scale(axes: Axes, points: np.ndarray) -> None:
    """Log scales where values are above 0, with numbers that can be read off."""
    scales = (axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)
    for values, (set_scale, axis) in zip(points.T, scales, strict=True):
        low, high = values.min(), values.max()
        if low > 0 and high > 1.5 * low:
            set_scale("log")
            _readable_log(axis, low, high)
        elif low > 0:  # close together, or one alone
            axis.set_view_interval(0.6 * low, 1.4 * high, ignore=True)
            axis.set_major_locator(MaxNLocator(5))


def _readable_log(axis: Axis, low: float, high: float) -> None:
    """A log axis with some four to nine numbers on it, whatever its range."""
    decades = np.log10(high / low)
    steps = (1, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2.2 else (1,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_locator(NullLocator())


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    axes.set_axisbelow(True)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tokens(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
