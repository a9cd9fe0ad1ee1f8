"""What a run costs in bytes, hours and dollars, from measured rates: the tables of docs/scaling.md.

    make bench                            # measures the rates, into bench-results/bench.json
    python -m benchmarks.scaling_costs --bench bench-results/bench.json  # takes them
    python -m benchmarks.scaling_costs    # prints the tables

The second renews docs/scaling.md.

The job: the residual stream of ViT-B/32 behind block 10, all 50 tokens, kept as bfloat16, and a
``patchsae`` of 768 → 6,144 trained on them for one epoch. ``scaling_rates.json`` holds what was
measured, and on what machine; ``published_rates.csv`` what others published and what is assumed
for machines that were not at hand; ``instance_prices.csv`` prices with date and source.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scaling.md"
RATES, PUBLISHED, PRICES = (
    HERE / name for name in ("scaling_rates.json", "published_rates.csv", "instance_prices.csv")
)
N_IMAGES = {"1.28 million images": 1_280_000, "1 billion images": 1_000_000_000}
PARTS = ("decode", "tower", "write", "read", "steps")
DOING = {
    "decode": "decoding",
    "tower": "the tower",
    "write": "writing",
    "read": "reading",
    "steps": "SAE steps",
}
HERE_MACHINE = "2 cores"
HOOK = "blocks.10.hook_resid_post"
N_DECODED, N_SEEN, N_WRITTEN = 128, 32, 2_000
"""Images of a round of decoding, of the tower, and of writing and reading."""


@dataclass(frozen=True)
class Job:
    """How much of what each image takes."""

    n_tokens: int = 50
    d_in: int = 768
    d_sae: int = 6_144
    bytes_per_number: int = 2
    tower_flop: float = 2 * 4.41e9
    """timm's count of multiply-adds of this tower, times two."""

    @property
    def bytes_per_image(self) -> int:
        """What the cache holds of an image."""
        return self.n_tokens * self.d_in * self.bytes_per_number

    @property
    def step_flop(self) -> float:
        """Of an image's rows: five matrix products forward and backward."""
        return 5 * 2 * self.d_in * self.d_sae * self.n_tokens

    def images_per_second(self, part: str, rate: float, unit: str) -> float:
        """A rate in any unit as images a second."""
        amount = {
            "images/s": 1.0,
            "rows/s": self.n_tokens,
            "bytes/s": self.bytes_per_image,
            "FLOP/s": self.tower_flop if part == "tower" else self.step_flop,
        }
        return rate / amount[unit]


@dataclass(frozen=True)
class Machine:
    """What one machine does in a second, and what an hour of it costs."""

    name: str
    price: dict[str, str]
    images_per_second: dict[str, float]
    """By part."""
    kinds: dict[str, str]
    """By part: measured, published or assumed."""

    def hours(self, part: str, n_images: int) -> float:
        """That a part takes if it runs alone."""
        return n_images / self.images_per_second[part] / 3600

    def slowest(self, parts: tuple[str, ...]) -> str:
        """The part that the others wait for where they run side by side."""
        return min(parts, key=lambda part: self.images_per_second[part])

    @property
    def usd_per_hour(self) -> float:
        """The price."""
        return float(self.price["usd_per_hour"])


def machines(job: Job) -> list[Machine]:
    """The machine that was measured, then those known from elsewhere."""
    prices = {row["instance"]: row for row in _rows(PRICES)}
    measured = json.loads(RATES.read_text(encoding="utf-8"))["rates"]
    rates = {
        HERE_MACHINE: {part: (measured[part], UNITS[part], "measured") for part in PARTS},
    }
    for row in _rows(PUBLISHED):
        of_machine = rates.setdefault(row["machine"], {})
        of_machine[row["part"]] = (float(row["rate"]), row["unit"], row["kind"])
    instances = {HERE_MACHINE: "m7g.large", "8 × H100": "p5.48xlarge"}
    return [
        Machine(
            name,
            prices[instances.get(name, name)],
            {part: job.images_per_second(part, *found[part][:2]) for part in PARTS},
            {part: found[part][2] for part in PARTS},
        )
        for name, found in rates.items()
    ]


UNITS = {
    "decode": "images/s",
    "tower": "images/s",
    "write": "bytes/s",
    "read": "bytes/s",
    "steps": "rows/s",
}


def tables(job: Job | None = None) -> str:
    """The tables of the page, as Markdown."""
    job = job or Job()
    all_machines = machines(job)
    lines = [_bytes_table(job), _rates_table(job, all_machines)]
    lines += [_cost_table(job, title, n, all_machines) for title, n in N_IMAGES.items()]
    lines += [_plan_table(job, all_machines)]
    return "\n\n".join(lines)


def _bytes_table(job: Job) -> str:
    lines = [
        "| images | rows | cached, bfloat16 | float32 | a month of S3 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for title, n in N_IMAGES.items():
        size = n * job.bytes_per_image
        lines.append(
            f"| {title} | {_short(n * job.n_tokens)} | {_size(size)} | "
            f"{_size(size * 4 // job.bytes_per_number)} | {_usd(storage_usd(size))} |"
        )
    return "\n".join(lines)


def storage_usd(size: float) -> float:
    """A month of storage."""
    price = next(row for row in _rows(PRICES) if row["instance"] == "S3 Standard")
    return size / 1e9 * float(price["usd_per_hour"])


def _rates_table(job: Job, all_machines: list[Machine]) -> str:
    lines = [
        "| images a second | " + " | ".join(machine.name for machine in all_machines) + " |",
        "| --- |" + " --- |" * len(all_machines),
    ]
    for part in PARTS:
        cells = [
            f"{_short(machine.images_per_second[part])} ({machine.kinds[part]})"
            for machine in all_machines
        ]
        lines.append(f"| {DOING[part]} | " + " | ".join(cells) + " |")
    prices = [f"${machine.usd_per_hour:g}" for machine in all_machines]
    lines.append("| an hour costs | " + " | ".join(prices) + " |")
    return "\n".join(lines)


def _cost_table(job: Job, title: str, n_images: int, all_machines: list[Machine]) -> str:
    lines = [
        f"| {title} | " + " | ".join(machine.name for machine in all_machines) + " |",
        "| --- |" + " --- |" * len(all_machines),
    ]
    for part in PARTS:
        cells = []
        for machine in all_machines:
            hours = machine.hours(part, n_images)
            cells.append(f"{_hours(hours)}, {_usd(hours * machine.usd_per_hour)}")
        lines.append(f"| {DOING[part]} | " + " | ".join(cells) + " |")
    for what, parts in (
        ("writing the cache waits for", ("decode", "tower", "write")),
        ("training from it waits for", ("read", "steps")),
        ("training as images stream waits for", ("decode", "tower", "steps")),
    ):
        cells = []
        for machine in all_machines:
            slowest = machine.slowest(parts)
            hours = machine.hours(slowest, n_images)
            cost = _usd(hours * machine.usd_per_hour)
            cells.append(f"{DOING[slowest]}: {_hours(hours)}, {cost}")
        lines.append(f"| *{what}* | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plan_table(job: Job, all_machines: list[Machine]) -> str:
    names = " | ".join(machine.name for machine in all_machines)
    lines = [f"| | {names} |", "| --- |" + " --- |" * len(all_machines)]
    for title, n_images in N_IMAGES.items():
        cells = [_machines_for(machine, n_images) for machine in all_machines]
        lines.append(f"| machines to cache {title} in a day | " + " | ".join(cells) + " |")
    for title, n_images in N_IMAGES.items():
        cells = [_break_even(machine, n_images, job) for machine in all_machines]
        lines.append(
            f"| {title}: SAEs from which a cache, kept a month, costs less than streaming for "
            "each | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _machines_for(machine: Machine, n_images: int) -> str:
    slowest = machine.slowest(("decode", "tower", "write"))
    return f"{math.ceil(machine.hours(slowest, n_images) / 24):,}"


def _break_even(machine: Machine, n_images: int, job: Job) -> str:
    """Training runs, one after the other, from which writing once and reading again is cheaper."""
    n = break_even(machine, n_images, storage_usd(n_images * job.bytes_per_image))
    return "never" if n is None else f"{n:,}"


def break_even(machine: Machine, n_images: int, storage: float) -> int | None:
    """The fewest runs for which the cache costs less; None if it never does."""

    def usd(*parts: str) -> float:
        return machine.hours(machine.slowest(parts), n_images) * machine.usd_per_hour

    once = usd("decode", "tower", "write") + storage
    saved = usd("decode", "tower", "steps") - usd("read", "steps")
    return None if saved <= 0 else math.floor(once / saved) + 1


def renewed(page: str) -> str:
    """The page with its tables computed again."""
    start, end = "<!-- computed: python -m benchmarks.scaling_costs -->", "<!-- end -->"
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE} lacks {start!r} or {end!r}; want both, around the tables")
    return f"{before}{start}\n\n{tables()}\n\n{end}{after}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _short(number: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            scale = 1e3 if letter == " k" else size
            return f"{number / scale:,.3g}{letter}" if number / scale < 1000 else f"{number:,.0f}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e12:,.3g} TB" if n_bytes >= 1e12 else f"{n_bytes / 1e9:,.3g} GB"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    if hours < 1:
        return f"{hours * 60:.2g} min"
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _usd(amount: float) -> str:
    if amount < 0.01:
        return "<$0.01"
    return f"${amount:,.0f}" if amount >= 10 else f"${amount:.2f}"


def measure(rounds: int = 7) -> list[Ratio]:
    """The five parts on this machine, each as a share of the tower's rate, in images a second."""
    job = Job()
    with TemporaryDirectory() as folder:
        runs, n_images = _parts(job, Path(folder))
        seconds = seconds_in_turns(runs, rounds)
    each = {part: [s / n_images[part] for s in seconds[part]] for part in PARTS}
    lines = []
    for part in PARTS:
        per_second = 1 / sorted(each[part])[rounds // 2]
        in_unit = per_second * {"bytes/s": job.bytes_per_image, "rows/s": job.n_tokens}.get(
            UNITS[part], 1
        )
        lines.append(
            ratio_of(
                f"{DOING[part]}, images a second",
                each["tower"],  # rates are the inverse of times
                each[part],
                "the tower",
                note=f"{in_unit:,.0f} {UNITS[part]}",
                rates={part: in_unit},
            )
        )
    return lines


def _parts(job: Job, folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What to time of each part, and how many images it amounts to."""
    from benchmarks.image_loader import write_photos
    from benchmarks.sae_steps import CASES, Sizes, make_step
    from benchmarks.store_rate import load
    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.datasets import FolderImages, ImageLoader

    model = load("ViT-B-32")
    source = ActivationSource.from_model(model, HOOK)
    (folder / "photos").mkdir()
    write_photos(folder / "photos", N_DECODED)
    photos = FolderImages(folder / "photos")
    pixels = torch.randn(N_SEEN, 3, 224, 224)
    sizes = Sizes(d_in=job.d_in, d_sae=job.d_sae)
    step = make_step(CASES[0], sizes, sizes.rows())
    shard = os.urandom(N_WRITTEN * job.bytes_per_image)

    def decode() -> None:
        for _ in ImageLoader(
            photos,
            model.require_preprocess(),
            batch_size_images=32,
            n_workers=os.cpu_count() or 1,
        ):
            pass

    def write() -> None:
        with (folder / "shard.bin").open("wb") as file:
            file.write(shard)
            file.flush()
            os.fsync(file.fileno())

    def read() -> None:
        with (folder / "shard.bin").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read()

    runs = {
        "decode": decode,
        "tower": lambda: source.activations(model, pixels),
        "write": write,
        "read": read,
        "steps": step,
    }
    n_images = {
        "decode": N_DECODED,
        "tower": N_SEEN,
        "write": N_WRITTEN,
        "read": N_WRITTEN,
        "steps": sizes.batch / job.n_tokens,
    }
    return runs, n_images


def take_rates(bench: Path) -> None:
    """Keep what `make bench` measured, with its machine, in ``scaling_rates.json``.

    Reading is the cache's own, shuffled, if the benchmark of the cache was run too.
    """
    sections = json.loads(bench.read_text(encoding="utf-8"))["sections"]
    section = sections.get("scaling", {})
    rates = {
        name: rate for line in section.get("table", []) for name, rate in line["rates"].items()
    }
    for line in sections.get("cache", {}).get("table", []):
        if "sequential_bytes_per_second" in line["rates"]:
            rates["read"] = line["rates"]["bytes_per_second"]
    missing = [part for part in PARTS if part not in rates]
    if missing:
        raise ValueError(
            f"{bench} has no rates of {', '.join(missing)}; measure them with: "
            "python -m benchmarks.bench --only scaling"
        )
    kept = {"machine": section["machine"], "rates": {part: round(rates[part], 1) for part in PARTS}}
    RATES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, help="take the rates of this bench.json")
    parser.add_argument("--write", action="store_true", help="renew docs/scaling.md")
    args = parser.parse_args()
    if args.bench is not None:
        take_rates(args.bench)
    if args.bench is not None or args.write:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"renewed: {PAGE}")
    else:
        print(tables())


if __name__ == "__main__":
    main()
