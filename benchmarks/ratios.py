"""Timed in turns, compared as ratios: how benchmarks measure, and what `make bench` reads.

A benchmark that belongs to `make bench` has ``measure(rounds) -> list[Ratio]``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Ratio:
    """One line of the table."""

    name: str
    """What was measured."""
    ratio: float
    """The median over rounds."""
    low: float
    """The smallest of all rounds."""
    high: float
    """The largest of all rounds."""
    against: str
    """What it is measured against, in the same rounds."""
    goal: str | None = None
    """``"≤ 1.1"`` or ``"≥ 0.95"``; None: measured for its own sake."""
    note: str = ""
    """Absolute figures and whatever else a reader should know."""
    rates: dict[str, float] = field(default_factory=dict)
    """Absolute figures by name and unit, such as ``{"images_per_second": 61.2}``: what
    ``benchmarks/scaling_costs.py`` computes with."""

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return self.ratio <= float(bound) if sign == "≤" else self.ratio >= float(bound)


def seconds_in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each run in each round; within a round they take turns, in changing order, so that
    a slow spell of the machine strikes each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        names = list(runs) if number % 2 else list(reversed(runs))
        for name in names:
            start = clock()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio_of(
    name: str,
    above: list[float],
    below: list[float],
    against: str,
    goal: str | None = None,
    note: str = "",
    rates: dict[str, float] | None = None,
) -> Ratio:
    """The rounds' ratios ``above ÷ below``, as one line."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    median = statistics.median(ratios)
    return Ratio(name, median, min(ratios), max(ratios), against, goal, note, rates or {})
