"""How quick a report of many latents is: opened, filtered, searched, sorted and scrolled.

The page's data are drawn: statistics, classes and previews of as many latents as asked for, in the
files that `write_report` writes. Chromium, driven by Selenium, opens the index from disk. Each
figure is the median of several runs, from the event to the second frame after it, painting
included; beside it is the CPU time of the page's thread, which other processes don't lengthen. The
last line says how long the same browser takes for ten million additions here.

    python benchmarks/report_page.py --n-latents 49152
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.report.browser import Browser
from vit_sae_plugin.report.site_data import number, write_data

N_CLASSES, N_IMAGES, PREVIEWS_IN_A_FILE = 1000, 500, 64
AFTER_TWO_FRAMES = (
    "const done = arguments[arguments.length - 1]; const start = performance.now();"
    "{action};"
    "requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)))"
)
INPUT = (
    "const e = document.querySelector('{selector}'); e.value = '{value}';"
    "e.dispatchEvent(new Event('input', {{bubbles: true}}))"
)
ACTIONS = {
    "filter by frequency": INPUT.format(selector="#frequency-low", value="1"),
    "search a class": INPUT.format(selector="#search", value="class 12"),
    "search a number": INPUT.format(selector="#search", value="1999"),
    "choose a class": INPUT.format(selector="#class", value="7"),
    "sort by max": "document.querySelector('[data-sort=max]').click()",
    "scroll half way": "window.scrollTo(0, document.body.scrollHeight / 2)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-latents", type=int, default=49_152)
    parser.add_argument("--n-runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "report"
        write_synthetic_report(folder, args.n_latents)
        size = (folder / "data/atlas.js").stat().st_size / 2**20
        print(f"{args.n_latents:,} latents, {N_CLASSES:,} classes; data/atlas.js {size:.1f} MiB")
        (Path(name) / "profile").mkdir()
        with Browser(Path(name) / "profile", (1440, 1000)) as browser:
            measure(browser, folder, args.n_runs)


def measure(browser: Browser, folder: Path, n_runs: int) -> None:
    opened = []
    for _ in range(n_runs):
        browser.open("about:blank")
        start = time.perf_counter()
        browser.open(f"file://{folder}/index.html")
        browser.wait("return document.querySelectorAll('#rows .strip .picture').length > 20")
        opened.append(time.perf_counter() - start)
    print(f"{'open, first rows with pictures':32} {statistics.median(opened) * 1000:7.0f} ms")
    loop = "let s = 0; const t = performance.now(); for (let i = 0; i < 1e7; i++) s += i % 7;"
    additions = [browser.run(loop + "return performance.now() - t") for _ in range(n_runs)]
    for name, action in ACTIONS.items():
        taken = []
        for _ in range(n_runs):
            browser.open("about:blank")
            browser.open(f"file://{folder}/index.html")
            browser.wait("return document.querySelectorAll('#rows .strip .picture').length > 20")
            before = browser.cpu_seconds()
            wall = browser.run_async(AFTER_TWO_FRAMES.replace("{action}", action))
            taken.append((wall, 1000 * (browser.cpu_seconds() - before)))
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"{name:32} {wall:7.0f} ms, CPU time of the page's thread {cpu:4.0f} ms")
    print(f"{'(ten million additions)':32} {statistics.median(additions):7.0f} ms")


def write_synthetic_report(folder: Path, n: int) -> None:
    """The fixed pages, and drawn data in the files that `write_report` writes."""
    rng = np.random.default_rng(0)
    for part in ("data/previews", "images"):
        (folder / part).mkdir(parents=True)
    for page in resources.files("vit_sae_plugin.report").joinpath("site").iterdir():
        shutil.copy(str(page), folder / page.name)
    for index in range(N_IMAGES):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((192, 192), Image.Resampling.NEAREST)
        picture.save(folder / f"images/{index:07d}.jpg", quality=90)
    frequency = np.exp(rng.normal(-4.5, 1.4, n)).clip(1e-5, 1)
    mean = np.exp(rng.normal(-3, 1, n)) * frequency**0.3
    columns = {
        "frequency": frequency,
        "token_frequency": frequency / 20,
        "mean": mean,
        "max": mean * 30,
        "entropy": rng.beta(5, 2, n) * np.log(10),
        "std": rng.random(n) * 300,
        "n_active_images": (frequency * 1_281_167).round(),
    }
    classes = rng.integers(0, N_CLASSES, (n, 3))
    shares = np.sort(rng.dirichlet(np.ones(4), n)[:, :3])[:, ::-1]
    latents = {
        "id": list(range(n)),
        **{name: [number(value) for value in values] for name, values in columns.items()},
        "dense": (frequency > 0.1).astype(int).tolist(),
        "classes": classes.tolist(),
        "class_shares": [[number(share) for share in row] for row in shares],
        "top_class": classes[:, 0].tolist(),
        "top_class_by_rate": classes[:, 1].tolist(),
    }
    facts = {
        **dict.fromkeys(("hook", "tokens"), "any"),
        **{"data": "drawn data", "model": "a drawn model", "weights": "no weights"},
        **{"architecture": "standard", "d_sae": n, "n_live": n, "n_dead": 0, "n_dense": 0},
        **{"n_images": 1_281_167, "n_skipped_images": 0, "threshold": 0.2, "dense_frequency": 0.1},
        "hashes": {"model": "0" * 64, "SAE": "1" * 64, "data": "2" * 64},
    }
    index = {
        **{"title": "Drawn latents", "facts": facts, "dead": [], "has_patches": True},
        **{"has_masking": False, "has_tree": False, "measures": {}},
        **{"colours": [[230, 159, 0]], "grid": [14, 14], "preview_grid": [8, 8]},
        "classes": [f"class {index}" for index in range(N_CLASSES)],
        **{"aggregations": ["mean"], "extension": "jpg", "latents_in_a_file": 32},
        **{"previews_in_a_file": PREVIEWS_IN_A_FILE, "edges": [], "explained": []},
        **{"n_chosen": 0, "names": {}, "latents": latents},
    }
    write_data(folder / "data/atlas.js", "atlas", index)
    for k in range(-(-n // PREVIEWS_IN_A_FILE)):
        image = rng.integers(0, N_IMAGES, (PREVIEWS_IN_A_FILE, 5)).tolist()
        mask = "".join(f"{digit:x}" for digit in rng.integers(0, 16, 64))
        some = [[[index, mask] for index in row] for row in image]
        write_data(folder / f"data/previews/{k:05d}.js", f"previews/{k:05d}", some)


if __name__ == "__main__":
    main()
