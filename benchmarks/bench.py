"""Every rate of this package as a ratio, in one table: what `make bench` prints.

    make bench                                         # everything, into bench-results/
    python -m benchmarks.bench --only shuffle steps    # some sections
    python -m benchmarks.bench --list
    cp bench-results/bench.json benchmarks/results/MACHINE.json   # keep them
    python -m benchmarks.bench --page docs/performance.md   # renew the page from all that are kept

Each section is a benchmark of its own with a process of its own, one after the other; within a
section all that is compared takes turns in one process on the same data. A ratio is the median of
the rounds, beside the smallest and the largest. ``bench.json`` holds the table, the sections'
seconds and a description of the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.ratios import Ratio

SECTIONS = {
    "store": ("benchmarks.store_rate", "Streaming store"),
    "shuffle": ("benchmarks.shuffle_rate", "Shuffle"),
    "cache": ("benchmarks.cache_rate", "Activation cache"),
    "steps": ("benchmarks.sae_steps", "SAE steps"),
    "memory": ("benchmarks.step_memory", "Memory of SAE steps"),
    "libraries": ("benchmarks.other_libraries", "The same training step elsewhere"),
    "end_to_end": ("benchmarks.end_to_end", "End to end"),
    "atlas": ("benchmarks.atlas_rate", "Atlas pass"),
    "sweep": ("benchmarks.sweep_cost", "Sweeps"),
    "ranks": ("benchmarks.ranks_cost", "Several processes"),
    "split": ("benchmarks.split_cost", "Latents split over processes"),
    "cost_curve": ("benchmarks.cost_curve", "How cost grows (fitted exponents)"),
    "scaling": ("benchmarks.scaling_costs", "The parts of a run, for docs/scaling.md"),
}
"""Name → (module with ``measure(rounds)``, heading)."""
PACKAGES = ("torch", "sae-lens", "transformer-lens", "open-clip-torch", "overcomplete", "numpy")
TABLE_FILE = "bench.json"
KEPT = Path(__file__).parent / "results"
"""Whole runs' results, one file a machine: the page's columns, in the order of their names."""
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions and load, without anything that names a person."""
    import torch

    facts: dict[str, Any] = {
        "processor": _from_proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).date().isoformat(),
    }
    facts["packages"] = {}
    for name in PACKAGES:
        try:
            facts["packages"][name] = version(name)
        except PackageNotFoundError:
            facts["packages"][name] = None
    return facts


def _from_proc(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    return next(found, None)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def run_section(name: str, rounds: int, threads: int, limit_s: float) -> dict[str, Any]:
    """One section in a process of its own; says why if it has no result."""
    command = [sys.executable, "-m", "benchmarks.bench", "--section", name]
    command += ["--rounds", str(rounds), "--threads", str(threads)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failure": f"took more than {limit_s:.0f} s", "seconds": limit_s, "table": []}
    seconds = round(time.monotonic() - start, 1)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failure": lines[-1], "seconds": seconds, "table": []}
    return {"table": json.loads(done.stdout.splitlines()[-1]), "seconds": seconds}


def print_section(heading: str, result: dict[str, Any]) -> None:
    """As a table for people."""
    print(f"\n{heading} ({result['seconds']:.0f} s)")
    if "failure" in result:
        print(f"  no result: {result['failure']}")
    table = [Ratio(**line) for line in result["table"]]
    width = max((len(line.name) for line in table), default=0)
    for line in table:
        goal = "" if line.goal is None else f"goal {line.goal} {'met' if line.is_met else 'MISSED'}"
        spread = f"({line.low:.2f} to {line.high:.2f})"
        print(f"  {line.name:{width}}  {line.ratio:7.2f} {spread:18} ÷ {line.against}  {goal}")
        if line.note:
            print(f"  {'':{width}}          {line.note}")


def as_markdown(machines: dict[str, dict[str, Any]]) -> str:
    """All sections as tables, one after the other, in the order of ``SECTIONS``.

    Args:
        machines: processor → its sections, as in ``bench.json``. Each has a column; the absolute
            figures are the first one's.
    """
    parts = []
    for name, (module, heading) in SECTIONS.items():
        tables = {
            processor: {line["name"]: Ratio(**line) for line in sections[name]["table"]}
            for processor, sections in machines.items()
            if sections.get(name, {}).get("table")
        }
        if not tables:
            continue
        columns = ["what", *tables, "÷", "goal", f"on {next(iter(tables))}"]
        rules = ["---", *["---:"] * len(tables), "---", "---", "---"]
        rows = [columns, rules]
        for what in dict.fromkeys(what for table in tables.values() for what in table):
            measured = [table.get(what) for table in tables.values()]
            line = next(filter(None, measured))
            note = line.note if measured[0] else ""
            goal = (line.goal or "").replace(" ", "\u00a0")  # in one line
            rows.append([what, *map(_cell, measured), line.against, goal, note])
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        parts.append("\n".join([f"### {heading}", f"`python -m {module}`", "", *lines]) + "\n")
    return "\n".join(parts)


def _cell(measured: Ratio | None) -> str:
    if measured is None:
        return "–"
    missed = " **missed**" if measured.is_met is False else ""
    return f"{measured.ratio:.2f} ({measured.low:.2f} to {measured.high:.2f}){missed}"


def kept_results(folder: Path = KEPT) -> dict[str, dict[str, Any]]:
    """Processor → sections, of every machine whose results are kept.

    Raises:
        ValueError: none are, or two are of the same processor.
    """
    machines: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        sections = json.loads(path.read_text())["sections"]
        processor = next(iter(sections.values()))["machine"]["processor"]
        processor = re.sub(r"\(R\)|\(TM\)|@|\b(CPU|Processor)\b", " ", processor)
        processor = " ".join(processor.split())
        if processor in machines:
            raise ValueError(f"{path} is of {processor!r}, as another file is; want one of each")
        machines[processor] = sections
    if not machines:
        raise ValueError(f"{folder} has no results; want a bench.json of `make bench`, renamed")
    return machines


def renew_page(page: Path, machines: dict[str, dict[str, Any]]) -> None:
    """Put the tables between the page's two marks.

    Raises:
        ValueError: the page hasn't both marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks {BEGIN.strip()} or {END.strip()}; want both, a line each")
    page.write_text(f"{before}{begin}{as_markdown(machines)}{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison (default: 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that PyTorch uses")
    parser.add_argument("--limit-s", type=float, default=600, help="seconds a section may take")
    parser.add_argument("--output-path", type=Path, default=Path("bench-results"))
    parser.add_argument("--list", action="store_true", help="name the sections and end")
    parser.add_argument("--page", type=Path, help="renew its tables from benchmarks/results")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:12} {heading}" for name, (_, heading) in SECTIONS.items()))
        return
    if args.section:
        import torch

        torch.set_num_threads(args.threads)
        table = importlib.import_module(SECTIONS[args.section][0]).measure(args.rounds)
        print(json.dumps([asdict(line) for line in table]))
        return
    if args.page:
        renew_page(args.page, kept_results())
        return
    path = args.output_path / TABLE_FILE
    known = json.loads(path.read_text())["sections"] if path.is_file() else {}
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items() if name != "packages"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        known[name] = run_section(name, args.rounds, args.threads, args.limit_s)
        known[name]["machine"] = machine
        print_section(SECTIONS[name][1], known[name])
        path.write_text(json.dumps({"sections": known}, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten: {path}")
    if any("failure" in known[name] for name in args.only):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
