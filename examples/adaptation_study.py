"""Does adapting CLIP build new concepts, or use those it has otherwise? The whole study, offline.

`shapes-clip` is adapted to outline drawings, on which it does poorly, from 16 images of each base
class. An SAE that was trained on the plain model reads both: which latents of a class rise or fall,
and how much of the gain hangs on them. One page shows it all.

    python examples/adaptation_study.py --output-path study
    python examples/adaptation_study.py --sae demo-results/run/sae --methods all
    python examples/adaptation_study.py --short
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens import SAE

from vit_sae_plugin import HookedViT
from vit_sae_plugin.adaptation import METHODS, AdaptationConfig, adapt
from vit_sae_plugin.analysis.html_pieces import data_uri
from vit_sae_plugin.analysis.remapping.compare import compare_models
from vit_sae_plugin.analysis.remapping.comparison import ModelComparison
from vit_sae_plugin.datasets import ImageSource, open_images
from vit_sae_plugin.evaluation.masking_study import masking_study
from vit_sae_plugin.report.adaptation_plots import plot_accuracies, plot_masking_of_both
from vit_sae_plugin.report.comparison_page import (
    comparison_facts,
    comparison_sections,
    paper_table,
)
from vit_sae_plugin.report.page_pieces import html_table, inline_svg
from vit_sae_plugin.report.study_page import Section, write_study_page
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

NAMES = {"maple": "MaPLe", "coop": "CoOp", "vpt": "VPT", "lora": "LoRA"}
STYLE = "n_objects=1&style=outline"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a 95 % interval of a mean, by the number of seeds."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    n_train: int = 2560
    """Training images that the shots are drawn from."""
    n_ranking: int = 40
    """Images of each class to find latents on: of the training split, and none of the shots."""
    n_test: int = 20
    """Test images of each class."""
    n_masked: int = 320
    """Of them, how many the masking study scores."""
    shots: int = 16
    epochs: int | None = None
    """None: the preset's."""
    sae_tokens: int | None = None
    n_draws: int = 3
    ks: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)


SHORT = Sizes(640, 2, 2, 16, 1, 1, 6000, 1, (1, 50))


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the study; returns its page."""
    args = _arguments(argv)
    sizes = SHORT if args.short else Sizes()
    methods = METHODS if args.methods == ["all"] else args.methods
    seeds = args.seeds[:1] if args.short else args.seeds
    folder = Path(args.output_path)
    started = time.perf_counter()
    plain = HookedViT.from_pretrained("shapes-clip")
    sae = SAE.load_from_disk(args.sae) if args.sae else _trained_sae(plain, folder, sizes)
    train = open_images(f"shapes:train?n_images={sizes.n_train}&{STYLE}")

    comparisons: dict[tuple[str, int, str], ModelComparison] = {}
    adapted: dict[tuple[str, int], HookedViT] = {}
    for method in methods:
        for seed in seeds:
            _say(f"{method}, seed {seed}", started)
            config = AdaptationConfig(
                method=method, preset="shapes", seed=seed, shots=sizes.shots, epochs=sizes.epochs
            )
            model = adapt(plain, train, config, folder / "adapted" / f"{method}-{seed}")
            adapted[method, seed] = model
            for half in ("base",) if method == "linear_probe" else ("base", "novel"):
                found = _compared(plain, model, sae, sizes, half)
                found.save(folder / "tables" / f"{method}-{seed}-{half}", "outlines", half)
                comparisons[method, seed, half] = found
                row = found.summary().iloc[0]
                plain_and_adapted = f"{row['accuracy_plain']:.1%}, {row['accuracy_adapted']:.1%}"
                _say(
                    f"  accuracy on {half} classes, before and after: {plain_and_adapted}", started
                )
    _say("masking", started)
    first = (methods[0], seeds[0])
    masking = {
        name: _masked(model, sae, sizes, comparisons[(*first, "base")], name)
        for name, model in (("plain", plain), ("adapted", adapted[first]))
    }
    table = _accuracies(comparisons)
    summary = pd.concat(
        {key: one.summary("outlines", key[2]).droplevel(0) for key, one in comparisons.items()},
        names=["method", "seed", "half"],
    ).droplevel("half")
    effects = pd.concat(
        {key: one.effects.table() for key, one in comparisons.items()},
        names=["method", "seed", "half"],
    )
    for name, frame in {"accuracy": table, "summary": summary, "effects": effects}.items():
        frame.to_csv(folder / f"{name}.csv")
    for name, frame in masking.items():
        frame.to_csv(folder / f"masking-{name}.csv")
    minutes = (time.perf_counter() - started) / 60
    page = _write_page(folder, table, summary, effects, masking, comparisons, first, minutes)
    print(table.round(3))
    print(over_seeds(table).round(3))
    _say(f"Open this page in a browser:  {page.resolve()}", started)
    return page


def _accuracies(comparisons: dict[tuple[str, int, str], ModelComparison]) -> pd.DataFrame:
    """Base and novel accuracy and their harmonic mean: index ``method`` and ``seed``."""
    rows: dict[tuple[str, int], dict[str, float]] = {("plain", 0): {}}
    for (method, seed, half), found in comparisons.items():
        rows["plain", 0][half] = found.effects.own("plain").mean()
        rows.setdefault((method, seed), {})[half] = found.effects.own("adapted").mean()
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=["base", "novel"])
    table.index = pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
    table["harmonic_mean"] = 2 / (1 / table["base"] + 1 / table["novel"])
    return table


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each column and method, with the t interval of the mean.

    Args:
        table: index ``method`` and ``seed``, and perhaps others.
    """
    levels = [name for name in table.index.names if name != "seed"]
    groups = table.groupby(level=levels, sort=False, dropna=False)
    mean, n = groups.mean(), groups.count()
    half = groups.std(ddof=1) / n**0.5 * n.map(lambda seeds: T_95.get(seeds, math.nan))
    return pd.concat({"mean": mean, "low": mean - half, "high": mean + half}, axis=1).swaplevel(
        axis=1
    )[list(mean.columns)]


def _balanced(split: str, n_of_each: int, half: str = "all") -> ImageSource:
    """Outlines, as many of each class; other scenes than those adapted to."""
    n_images = 64 * max(2 * n_of_each, n_of_each + 20)  # so that each class has enough
    return open_images(
        f"shapes:{split}?n_images={n_images}&seed=5&{STYLE}&shots={n_of_each}&classes={half}"
    )


def _compared(
    plain: HookedViT, adapted: HookedViT, sae: SAE[Any], sizes: Sizes, half: str
) -> ModelComparison:
    """The two models on the test images of half of the classes, latents found on training ones."""
    return compare_models(
        plain,
        adapted,
        sae,
        _balanced("test", sizes.n_test, half),
        ranking=_balanced("train", sizes.n_ranking, half),
        templates="shapes",
        n_draws=sizes.n_draws,
        batch_size_images=32,
    )


def _masked(
    model: HookedViT, sae: SAE[Any], sizes: Sizes, comparison: ModelComparison, name: str
) -> pd.DataFrame:
    """The masking study on the same images, in one of the models."""
    result = masking_study(
        model,
        sae,
        comparison.images,
        ranking=_balanced("train", sizes.n_ranking, "base"),
        n_images=sizes.n_masked,
        ks=sizes.ks,
        rankings=("class", "random"),
        n_draws=1,
        error_terms=(True,),
        templates="shapes",
        source=getattr(comparison.pair, name).source,
        batch_size_images=16,
    )
    return result.overall()


def _trained_sae(model: HookedViT, folder: Path, sizes: Sizes) -> SAE[Any]:
    """A PatchSAE of the plain model on filled scenes, as ``vit-sae demo`` trains it."""
    saved = folder / "sae" / "sae"
    if not (saved / "cfg.json").is_file():
        settings = load_preset("patchsae-shapes") | {"output_path": str(folder / "sae")}
        if sizes.sae_tokens is not None:
            settings |= {"training_tokens": sizes.sae_tokens, "train_batch_size_tokens": 1000}
            settings |= {"lr_warm_up_steps": 1, "lr_decay_steps": 1}
        d_in = model.hook_width(settings["hook_name"])
        complete = complete_settings(settings, d_in=d_in, n_rows_per_epoch=None)
        ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(complete), override_model=model).run()
    return SAE.load_from_disk(saved)


def _write_page(
    folder: Path,
    table: pd.DataFrame,
    summary: pd.DataFrame,
    effects: pd.DataFrame,
    masking: dict[str, pd.DataFrame],
    comparisons: dict[tuple[str, int, str], ModelComparison],
    first: tuple[str, int],
    minutes: float,
) -> Path:
    method, seed = first
    shown = comparisons[(*first, "base")]
    means = over_seeds(table)
    n_seeds = table.groupby(level="method").size().max()
    seeds = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
    before, after = means.loc["plain"], means.loc[method]
    facts = {}
    for name in table:
        if not np.isnan(after[name, "mean"]):
            gain = f"{before[name, 'mean']:.1%} → {after[name, 'mean']:.1%}"
            facts[f"{name.replace('_', ' ')} accuracy"] = gain
    quality, *others = comparison_sections(shown)
    return write_study_page(
        folder / "index.html",
        title="Does adaptation build new concepts?",
        lead=[
            "shapes-clip knows filled shapes. Here it is adapted to line drawings of the same 64 "
            f"classes, from 16 images of each of the 32 base classes, by {_names(table)}. A sparse "
            "autoencoder that was trained on the plain model, on filled scenes, then reads both "
            "models: which of a class's latents rise or fall, and how much of the gain hangs on "
            "them?",
            f"Accuracies are means over {seeds}, with t intervals. Everything below the table is "
            f"of {_shown(method)}, seed {seed}, on base classes, unless it says otherwise; "
            "intervals there are 95 % over images, by bootstrap. "
            f"The study took {minutes:.0f} minutes.",
        ],
        facts=facts | dict(list(comparison_facts(shown).items())[1:]),
        warnings=shown.notes,
        sections=[
            Section(
                "What adaptation gains",
                "Base classes were adapted to, novel ones were not; each half is classified among "
                "its own 32 names.",
                _strip()
                + inline_svg(plot_accuracies(means))
                + f'<div class="tables">{html_table(_readable_means(means))}</div>',
            ),
            quality,
            *others,
            Section(
                "Every adaptation",
                "The same for each method, seed and half of the classes; by chance: latents that "
                "seem to rise from one half of the plain model's images to the other.",
                f'<div class="tables">{html_table(paper_table(summary))}</div>'
                f"<p class=note>Share of the gain that remains, or is reached, with intervals over "
                "images; a dash where the images don't tell that there is a gain.</p>"
                f'<div class="tables">{html_table(_readable_shares(effects))}</div>',
            ),
            Section(
                "On how few latents a class hangs, before and after",
                "Only the class's first latents kept (left), or only they removed (right), in the "
                "plain and in the adapted model; the SAE's error is added.",
                inline_svg(plot_masking_of_both(masking)),
            ),
        ],
        commands=["python examples/adaptation_study.py --output-path study --methods all"],
    )


def _names(table: pd.DataFrame) -> str:
    methods = dict.fromkeys(table.index.get_level_values("method"))
    return ", ".join(_shown(name) for name in methods if name != "plain")


def _shown(method: str) -> str:
    return NAMES.get(method, method.replace("_", " "))


def _strip(n: int = 8) -> str:
    """Some of the scenes, filled and as they are here."""
    rows = []
    for style in ("filled", "outline"):
        some = open_images(f"shapes:test?n_images={n}&seed=5&n_objects=1&style={style}")
        pictures = [some.record(index).load().resize((112, 112)) for index in range(n)]
        images = "".join(f'<img src="{data_uri(one)}" alt="{style}">' for one in pictures)
        rows.append(f'<div class="strips">{images}</div>')
    return "".join(rows)


def _readable_means(means: pd.DataFrame) -> pd.DataFrame:
    columns = dict.fromkeys(means.columns.get_level_values(0))
    cells = {
        name.replace("_", " "): [_cell(*row) for row in means[name].to_numpy(float)]
        for name in columns
    }
    return pd.DataFrame(cells, index=means.index)


def _readable_shares(effects: pd.DataFrame) -> pd.DataFrame:
    chosen = {
        "risen held": ("adapted", "held", "risen", True),
        "random held": ("adapted", "held", "random", True),
        "all held": ("adapted", "held", "all", True),
        "stream held": ("adapted", "held", "stream", True),
        "only used": ("adapted", "only", "used", True),
        "risen put in": ("plain", "put in", "risen", True),
        "all put in": ("plain", "put in", "all", True),
    }
    keys = effects.index.droplevel([3, 4, 5, 6]).unique()
    columns = {}
    for name, key in chosen.items():
        part = effects.xs(key, level=("model", "change", "latents", "error_term"))
        shares = part.reindex(keys)[["share_of_gain", "share_low", "share_high"]]
        columns[name] = [_cell(*row) for row in shares.to_numpy(float)]
    return pd.DataFrame(columns, index=keys)


def _cell(mean: float, low: float, high: float) -> str:
    """Per cent with an interval, where there is one."""
    if np.isnan(mean):
        return "–"
    interval = "" if np.isnan(low) else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * mean:.1f}{interval}"


def _say(text: str, started: float) -> None:
    print(f"[{time.perf_counter() - started:4.0f} s] {text}", flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-path", default="adaptation-study", metavar="FOLDER")
    parser.add_argument("--sae", metavar="FOLDER", help="one of shapes-clip (default: train one)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["maple"],
        choices=[*METHODS, "all"],
        help="how to adapt; the first is shown in full (default: maple)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--short", action="store_true", help="tiny, to see that it runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
