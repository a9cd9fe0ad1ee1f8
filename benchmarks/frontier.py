"""ReLU, TopK, BatchTopK, matryoshka_batchtopk and both MSAE weightings, side by side.

    python benchmarks/frontier.py --output-path frontier/
    python benchmarks/frontier.py --output-path frontier/ --families TopK "MSAE RW"
    python benchmarks/frontier.py --output-path frontier/ --seeds 3 4
    python benchmarks/frontier.py --output-path frontier/ --sweep

The first trains every contender three times, on the same pooled embeddings of ``shapes-clip`` (same
rows, same steps; the seed fixes initial weights, the order of rows and CKNNA's sample), and
measures it on held-out scenes: fidelity against sparsity, alignment (CKNNA on rows as they are and
on unit rows), decoder orthogonality, dead latents, and how well single latents tell the concepts of
a scene. The second and third do a part: embeddings and contenders that are in the folder are never
made again, and the tables and pictures are of all that are there, so an interrupted run goes on.
The fourth tunes the learning rate: for each family it trains one member (``Family.tuned_on``) at
the same five rates and prints its training objective on validation scenes, which are neither
trained on nor part of the results. ``Family.lr`` is the rate with the lowest.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from vit_sae_plugin import HookedViT, ViTSAERunnerConfig, ViTSAETrainingRunner
from vit_sae_plugin.activations import EmbeddingRows, EmbeddingStatistics, EmbeddingStore
from vit_sae_plugin.activations.embed import embed_images
from vit_sae_plugin.activations.embedding_rows import load_embedding_rows
from vit_sae_plugin.attached_sae import RowCoder
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.evaluation import (
    EvaluationReport,
    LinearProbe,
    evaluate_embeddings,
    fit_linear_probe,
)
from vit_sae_plugin.evaluation.evaluation_report import REPORT_FILE
from vit_sae_plugin.evaluation.ranking import Ranks
from vit_sae_plugin.report.recovery_plots import plot_frontier, plot_progressive_recovery

KS = (2, 4, 8, 16, 32)
IN_RECOVERY_PLOT = (
    "ReLU λ=0.03",
    "TopK k=8",
    "TopK k=32",
    "BatchTopK k=8",
    "matryoshka_batchtopk k=8",
)
NESTED = ("MSAE UW", "MSAE RW")
ALIGNMENT = ["cknna_latents_raw", "cknna_latents_unit"]
SHOWN = ["l0", "fvu", "cosine_similarity", *ALIGNMENT, "probe_agreement"]
SHOWN += ["decoder_orthogonality", "n_dead"]
TITLES = {
    "l0": "L0",
    "fvu": "FVU",
    "cosine_similarity": "cosine",
    "cknna_latents_raw": "CKNNA, rows as they are",
    "cknna_latents_unit": "CKNNA, unit rows",
    "probe_agreement": "probe agrees",
    "decoder_orthogonality": "overlap",
    "n_dead": "dead",
    "auroc_shape": "shape",
    "auroc_color": "colour",
    "auroc_colored_shape": "both",
}
SWEPT_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BATCH_SIZE = 512
N_VALIDATION = 2_000


@dataclass(frozen=True)
class Family:
    """SAEs of one architecture that differ in one setting."""

    settings: dict[str, Any]
    lr: float
    varied: str | None = None
    """The setting in which members differ; None: the family has one member."""
    values: tuple[float, ...] = ()
    tuned_on: float | None = None
    short: dict[str, str] = field(default_factory=lambda: {"l1_coefficient": "λ"})

    def members(self, name: str) -> dict[str, dict[str, Any]]:
        """Name of a contender → its settings."""
        if self.varied is None:
            return {name: self.settings}
        label = self.short.get(self.varied, self.varied)
        return {
            f"{name} {label}={value:g}": {**self.settings, self.varied: value}
            for value in self.values
        }


def _msae(weights: str, lr: float) -> Family:
    return Family({"architecture": "matryoshka_topk", "k_start": 2, "level_weights": weights}, lr)


FAMILIES = {
    "ReLU": Family(
        {"architecture": "standard_relative_l1"},
        3e-3,
        "l1_coefficient",
        (0.01, 0.03, 0.1),
        tuned_on=0.03,
    ),
    "TopK": Family({"architecture": "topk"}, 1e-2, "k", KS, tuned_on=8),
    "BatchTopK": Family({"architecture": "batchtopk"}, 1e-2, "k", (2, 8, 32), tuned_on=8),
    "matryoshka_batchtopk": Family(
        {"architecture": "matryoshka_batchtopk"}, 1e-2, "k", (2, 8, 32), tuned_on=8
    ),
    "MSAE UW": _msae("uniform", 1e-2),
    "MSAE RW": _msae("reverse", 1e-2),
}


@dataclass
class Data:
    """Embeddings of scenes, made once and kept in the output folder."""

    training: EmbeddingRows
    validation: EmbeddingRows
    held_out: EmbeddingRows
    statistics: EmbeddingStatistics
    training_labels: torch.Tensor
    concepts: dict[str, list[torch.Tensor]]
    """What the held-out scenes show, see ``scene_concepts``."""

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> Data:
        """Read the embeddings from the folder, or make them."""
        n = args.n_training_images
        images = ShapeScenes(n + N_VALIDATION, seed=args.data_seed)
        held_out_images = ShapeScenes(args.n_held_out_images, seed=args.data_seed, split="test")
        rows = _embedded(args.output_path / "training.safetensors", images)
        training = EmbeddingRows(rows.rows[:n], rows.ids[:n])
        return cls(
            training,
            EmbeddingRows(rows.rows[n:]),
            _embedded(args.output_path / "held_out.safetensors", held_out_images),
            EmbeddingStatistics.from_rows(training.batches()),
            labels_of(ShapeScenes(n, seed=args.data_seed)),
            scene_concepts(held_out_images),
        )


def _embedded(path: Path, images: ShapeScenes) -> EmbeddingRows:
    if not path.is_file():
        model = HookedViT.from_pretrained("shapes-clip")
        embed_images(model, images, batch_size_images=256, n_workers=2).save(path)
    return load_embedding_rows(path)


def main() -> None:
    """Read the arguments; tune, or train, measure, and write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-path", type=Path, default=Path("frontier"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sweep", action="store_true", help="tune learning rates instead")
    parser.add_argument("--n-training-images", type=int, default=20_000)
    parser.add_argument("--n-held-out-images", type=int, default=4_000)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--expansion-factor", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-seed", type=int, default=0, help="of the scenes")
    args = parser.parse_args()
    args.output_path.mkdir(parents=True, exist_ok=True)
    check_settings(args)
    data = Data.prepare(args)
    if args.sweep:
        sweep(data, args)
        return
    probe = fit_linear_probe(data.training.tensor(slice(None)), data.training_labels)
    for seed in args.seeds:
        for name in args.families:
            family = FAMILIES[name]
            for contender, settings in family.members(name).items():
                folder = evaluation_folder(args.output_path, contender, seed)
                if not (folder / REPORT_FILE).exists():
                    saved = args.output_path / "saes" / f"seed-{seed}" / contender
                    train(settings, family.lr, data, args, seed).save_inference_model(saved)
                    measure(SAE.load_from_disk(saved), data, probe, seed).save(folder)
                print(f"{contender}, seed {seed}: done", flush=True)
    write_results(args.output_path)


def evaluation_folder(folder: Path, contender: str, seed: int) -> Path:
    """Where the report on one contender is."""
    return folder / "evaluations" / f"seed-{seed}" / contender


def check_settings(args: argparse.Namespace) -> None:
    """Refuse to mix results of different budgets in one folder."""
    names = ("n_training_images", "n_held_out_images", "epochs", "expansion_factor", "data_seed")
    settings = {name: getattr(args, name) for name in names}
    path = args.output_path / "settings.json"
    if path.is_file() and (found := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{args.output_path} holds results of {found}; want another folder")
    path.write_text(json.dumps(settings))


def train(
    settings: dict[str, Any], lr: float, data: Data, args: argparse.Namespace, seed: int
) -> TrainingSAE[Any]:
    """One contender, trained on the same rows in the same order as all others of this seed."""
    d_in = data.training.d_in
    n_steps = int(args.epochs * len(data.training)) // BATCH_SIZE
    d_sae = d_in * args.expansion_factor
    if settings["architecture"] == "matryoshka_batchtopk":
        settings = {**settings, "matryoshka_widths": [d_sae // 2**i for i in (4, 3, 2, 1, 0)]}
    cfg = ViTSAERunnerConfig.from_dict(
        {
            "sae": {**settings, "d_in": d_in, "d_sae": d_sae},
            "model_name": "shapes-clip",
            "hook_name": "hook_image_embed",
            "training_tokens": n_steps * BATCH_SIZE,
            "train_batch_size_tokens": BATCH_SIZE,
            "optimizer": "adamw",
            "adam_eps": 6.25e-10,
            "lr": lr,
            "lr_decay_steps": n_steps // 5,
            "dead_feature_window": n_steps // 10,
            "seed": seed,
            "output_path": None,
            "verbose": False,
        }
    )
    store = EmbeddingStore(
        data.training,
        train_batch_size_tokens=BATCH_SIZE,
        seed=seed,
        statistics=data.statistics,
    )
    return ViTSAETrainingRunner(cfg, override_store=store).run()


def sweep(data: Data, args: argparse.Namespace) -> None:
    """Print each family's objective on validation rows for each learning rate."""
    for name in args.families:
        family = FAMILIES[name]
        varied = {} if family.varied is None else {family.varied: family.tuned_on}
        for lr in SWEPT_RATES:
            sae = train({**family.settings, **varied}, lr, data, args, args.seeds[0])
            print(f"{name:22} lr={lr:<7g} {objective(sae, data):.5g}", flush=True)


@torch.no_grad()
def objective(sae: TrainingSAE[Any], data: Data) -> float:
    """The loss that the SAE is trained on, without terms for dead latents."""
    rows = data.statistics.standardize(data.validation.tensor(slice(None)))
    coefficients = {"l1": getattr(sae.cfg, "l1_coefficient", 0.0)}
    step_input = TrainStepInput(rows, coefficients, None, n_training_steps=0, is_logging_step=False)
    return sae.eval().training_forward_pass(step_input).loss.item()


@torch.no_grad()
def measure(sae: SAE[Any], data: Data, probe: LinearProbe, seed: int) -> EvaluationReport:
    """The suite of MSAE on held-out scenes, and the concepts that single latents tell."""
    k_list = [*(2**i for i in range(sae.cfg.d_sae.bit_length() - 1)), sae.cfg.d_sae]
    report = evaluate_embeddings(sae, data.held_out, probe=probe, k_list=k_list, seed=seed)
    own, recovery = report.embeddings, report.progressive_recovery
    for kind, score in concept_scores(sae, data.held_out, data.concepts).items():
        own[kind] = score
    for k in KS:
        for kind, score in concept_scores(sae, data.held_out, data.concepts, k).items():
            recovery.loc[("image", k), kind] = score
    return report


def concept_scores(
    sae: SAE[Any],
    rows: EmbeddingRows,
    concepts: dict[str, list[torch.Tensor]],
    k: int | None = None,
) -> dict[str, float]:
    """Mean AUROC over concepts of the latent that is best on one half, measured on the other."""
    coder = RowCoder(sae)
    latents = torch.cat([coder.encode(batch, k) for batch in rows.batches(1024)])
    half = len(latents) // 2
    first, second = Ranks(latents[:half].T.contiguous()), latents[half:]
    scores = {}
    for kind, shown in concepts.items():
        best = [int(first.auroc(flags[:half].nonzero().flatten()).argmax()) for flags in shown]
        found = [
            float(Ranks(second[:, latent][None]).auroc(flags[half:].nonzero().flatten()))
            for latent, flags in zip(best, shown, strict=True)
        ]
        scores[f"auroc_{kind}"] = sum(found) / len(found)
    return scores


def scene_concepts(images: ShapeScenes) -> dict[str, list[torch.Tensor]]:
    """For each kind of concept: which scenes show it, a mask ``[images]`` for each."""
    shown: dict[str, dict[str, torch.Tensor]] = {"shape": {}, "color": {}, "colored_shape": {}}
    for index in range(images.n_images):
        for thing in images.scene(index).objects:
            names = (thing.shape, thing.color, f"{thing.color} {thing.shape}")
            for of_kind, name in zip(shown.values(), names, strict=True):
                of_kind.setdefault(name, torch.zeros(images.n_images, dtype=torch.bool))[index] = (
                    True
                )
    return {kind: list(of_kind.values()) for kind, of_kind in shown.items()}


def labels_of(images: ShapeScenes) -> torch.Tensor:
    """The class of each scene: colour and shape of its largest object."""
    return torch.tensor([images.record(index).label for index in range(images.n_images)])


def write_results(folder: Path) -> None:
    """Tables of all contenders in the folder, as CSV and on screen, and the pictures as PNG.

    ``frontier.csv`` has a row for each contender and seed, ``frontier_means.csv`` means over seeds
    with the lowest and highest (to read: ``frontier.md``), ``frontier_differences.csv`` how far
    ``MSAE UW`` is above each other SAE of its k, seed by seed.
    """
    reports = read_reports(folder)
    rows: dict[tuple[str, int], pd.Series] = {}
    for name, of_seeds in reports.items():
        for seed, report in of_seeds.items():
            rows[name, seed] = report.embeddings.loc["image"]
            for k in KS if name in NESTED else ():
                rows[f"{name} at k={k}", seed] = report.progressive_recovery.loc[("image", k)]
    table = pd.DataFrame(rows).T.rename_axis(["sae", "seed"]).astype(float)
    table.to_csv(folder / "frontier.csv")
    by_sae = table.groupby(level="sae", sort=False)
    spread = by_sae.agg(["mean", "min", "max"])
    spread.columns = [f"{metric}_{what}" for metric, what in spread.columns]
    spread.insert(0, "n_seeds", by_sae.size())
    spread.to_csv(folder / "frontier_means.csv")
    columns = [*SHOWN, *[name for name in table.columns if name.startswith("auroc")]]
    print(by_sae[columns].mean().round(4).to_string())
    print("\nlowest and highest over seeds")
    print(by_sae[["fvu", *ALIGNMENT]].agg(["min", "max"]).round(3).to_string())
    (folder / "frontier.md").write_text(markdown(table), encoding="utf-8")
    differences = paired_differences(table)
    differences.to_csv(folder / "frontier_differences.csv")
    print("\nMSAE UW less the other SAE of its k: mean, lowest and highest over seeds")
    print(differences.round(3).to_string())

    lists = {name: list(of_seeds.values()) for name, of_seeds in reports.items()}
    nested = [name for name in lists if name in NESTED]
    plot_frontier(lists, curves=nested).savefig(folder / "frontier.png", dpi=200)
    # One of each family at least, in the families' order: so colours are those of the other plot.
    chosen = [name for name in reports if name in IN_RECOVERY_PLOT or name in nested]
    if chosen:
        some = {name: lists[name] for name in chosen}
        plot_progressive_recovery(some).savefig(folder / "progressive_recovery.png", dpi=200)


def read_reports(folder: Path) -> dict[str, dict[int, EvaluationReport]]:
    """Contender → seed → its report, of all that are finished."""
    names = [name for family, value in FAMILIES.items() for name in value.members(family)]
    seeds = sorted(int(path.name[5:]) for path in (folder / "evaluations").glob("seed-*"))
    reports: dict[str, dict[int, EvaluationReport]] = {}
    for name in names:
        for seed in seeds:
            found = evaluation_folder(folder, name, seed)
            if (found / REPORT_FILE).exists():
                reports.setdefault(name, {})[seed] = EvaluationReport.load(found)
    return reports


def markdown(table: pd.DataFrame) -> str:
    """Means over seeds as a table in Markdown; of CKNNA the lowest and highest too."""
    by_sae = table.groupby(level="sae", sort=False)
    mean, low, high = by_sae.mean(), by_sae.min(), by_sae.max()
    formats = {"l0": ".1f", "n_dead": ".0f"} | dict.fromkeys(
        ("fvu", "cosine_similarity", "decoder_orthogonality"), ".4f"
    )
    columns = {"seeds": by_sae.size().astype(str)}
    for name, title in TITLES.items():
        numbers = [_number(value, formats.get(name, ".3f")) for value in mean[name]]
        if name in ALIGNMENT:
            ranges = zip(low[name], high[name], strict=True)
            parts = zip(numbers, ranges, strict=True)
            numbers = [f"{number} ({one:.3f} to {other:.3f})" for number, (one, other) in parts]
        columns[title] = pd.Series(numbers, index=mean.index)
    lines = [f"| SAE | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, row in pd.DataFrame(columns).iterrows():
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else f"{value:{form}}"


def paired_differences(table: pd.DataFrame) -> pd.DataFrame:
    """``MSAE UW`` at each k less the others of that k, trained with the same seed."""
    rows = {}
    for k in KS:
        ours, others = f"MSAE UW at k={k}", list(table.index.unique("sae"))
        if ours not in others:
            continue
        for other in others:
            if other != ours and other.endswith(f"k={k}"):
                difference = (table.loc[ours] - table.loc[other])[["fvu", *ALIGNMENT]].dropna()
                rows[k, other] = difference.agg(["mean", "min", "max"]).unstack()
    index = ["k", "other"]
    return pd.DataFrame(rows).T.rename_axis(index) if rows else pd.DataFrame()


if __name__ == "__main__":
    main()
