"""ReLU, TopK, BatchTopK, matryoshka_batchtopk and both MSAE weightings, side by side.

    python benchmarks/frontier.py --output-path frontier/

trains them on the same pooled embeddings of ``shapes-clip`` for the same number of rows, and
measures them on held-out scenes: fidelity against sparsity, alignment (CKNNA), decoder
orthogonality, dead latents, and how well single latents tell the concepts that are in a scene. The
tables are printed and written as CSV, the pictures as PNG.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from vit_sae_plugin import HookedViT, ViTSAERunnerConfig, ViTSAETrainingRunner
from vit_sae_plugin.activations import EmbeddingRows, EmbeddingStatistics, EmbeddingStore
from vit_sae_plugin.activations.embed import embed_images
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.evaluation import EvaluationReport, evaluate_embeddings, fit_linear_probe
from vit_sae_plugin.evaluation.model_space import ModelSpaceSAE
from vit_sae_plugin.evaluation.ranking import Ranks
from vit_sae_plugin.report.recovery_plots import plot_frontier, plot_progressive_recovery

LEVELS = {"architecture": "matryoshka_topk", "k_start": 8}
CONTENDERS: dict[str, tuple[dict[str, Any], float]] = {
    **{
        f"ReLU l1={value}": (
            {"architecture": "standard_relative_l1", "l1_coefficient": value},
            1e-3,
        )
        for value in (0.003, 0.01, 0.03)
    },
    **{f"TopK k={k}": ({"architecture": "topk", "k": k}, 1e-3) for k in (8, 16, 32, 64)},
    **{f"BatchTopK k={k}": ({"architecture": "batchtopk", "k": k}, 1e-3) for k in (8, 16, 32, 64)},
    "matryoshka_batchtopk k=32": ({"architecture": "matryoshka_batchtopk", "k": 32}, 1e-3),
    "MSAE UW": ({**LEVELS, "level_weights": "uniform"}, 1e-3),
    "MSAE RW": ({**LEVELS, "level_weights": "reverse"}, 1e-3),
}
"""Name → the SAE's settings and its learning rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-path", type=Path, default=Path("frontier"))
    parser.add_argument("--n-training-images", type=int, default=20_000)
    parser.add_argument("--n-held-out-images", type=int, default=4_000)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--expansion-factor", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.output_path.mkdir(parents=True, exist_ok=True)

    model = HookedViT.from_pretrained("shapes-clip", device=args.device)
    training_images = ShapeScenes(args.n_training_images, seed=args.seed)
    training = embed_images(model, training_images, batch_size_images=256)
    held_out_images = ShapeScenes(args.n_held_out_images, seed=args.seed, split="test")
    held_out = embed_images(model, held_out_images, batch_size_images=256)
    probe = fit_linear_probe(training.tensor(slice(None)), labels_of(training_images))

    reports, concepts = {}, {}
    for name, (settings, lr) in CONTENDERS.items():
        sae = train(name, settings, lr, training, args)
        report = evaluate_embeddings(sae, held_out, probe=probe, k_list=k_list(sae.cfg.d_sae))
        report.save(args.output_path / "evaluations" / name.replace(" ", "_"))
        reports[name] = report
        concepts[name] = concept_scores(sae, held_out, held_out_images)
        print(f"{name}: done", flush=True)

    table = pd.DataFrame({name: r.embeddings.loc["image"] for name, r in reports.items()}).T
    table = table.join(pd.DataFrame(concepts).T)
    table.rename_axis("sae").to_csv(args.output_path / "frontier.csv")
    shown = "l0 fvu cosine_similarity cknna_latents decoder_orthogonality n_dead".split()
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table[[*shown, *[c for c in table.columns if c.startswith("concept")]]].round(3))
    write_pictures(reports, args.output_path)


def train(
    name: str,
    settings: dict[str, Any],
    lr: float,
    training: EmbeddingRows,
    args: argparse.Namespace,
) -> SAE[Any]:
    """One contender, trained on the same rows in the same order as all others."""
    batch_size = 1024
    n_rows = int(args.epochs * len(training)) // batch_size * batch_size
    d_sae = training.d_in * args.expansion_factor
    if settings["architecture"] == "matryoshka_batchtopk":
        settings = {**settings, "matryoshka_widths": [d_sae // 2**i for i in (4, 3, 2, 1, 0)]}
    cfg = ViTSAERunnerConfig.from_dict(
        {
            "sae": {**settings, "d_in": training.d_in, "d_sae": d_sae, "device": args.device},
            "model_name": "shapes-clip",
            "hook_name": "hook_image_embed",
            "training_tokens": n_rows,
            "train_batch_size_tokens": batch_size,
            "optimizer": "adamw",
            "adam_eps": 6.25e-10,
            "lr": lr,
            "lr_decay_steps": n_rows // batch_size // 5,
            "dead_feature_window": 200,
            "seed": args.seed,
            "device": args.device,
            "output_path": str(args.output_path / "runs" / name.replace(" ", "_")),
            "verbose": False,
        }
    )
    store = EmbeddingStore(
        training,
        train_batch_size_tokens=batch_size,
        seed=args.seed,
        statistics=EmbeddingStatistics.from_rows(training.batches()),
        device=args.device,
    )
    ViTSAETrainingRunner(cfg, override_store=store).run()
    return SAE.load_from_disk(f"{cfg.output_path}/sae", device=args.device)


def k_list(d_sae: int) -> list[int]:
    """1, 2, 4, … and d_sae."""
    return [*(2**i for i in range(d_sae.bit_length()) if 2**i < d_sae), d_sae]


def labels_of(images: ShapeScenes) -> torch.Tensor:
    """The class of each scene: colour and shape of its largest object."""
    return torch.tensor([images.record(index).label for index in range(images.n_images)])


@torch.no_grad()
def concept_scores(sae: SAE[Any], rows: EmbeddingRows, images: ShapeScenes) -> dict[str, float]:
    """Mean AUROC over concepts of the latent that is best on one half, measured on the other."""
    coder = ModelSpaceSAE(sae)
    latents = torch.cat([coder.encode(batch) for batch in rows.batches(1024)])
    half = len(latents) // 2
    first, second = Ranks(latents[:half].T.contiguous()), latents[half:]
    found: dict[str, list[float]] = {}
    for (kind, _), shown in scene_concepts(images).items():
        positives = shown[:half].nonzero().flatten()
        if len(positives) < 10 or shown[half:].sum() < 10:
            continue
        best = int(first.auroc(positives).argmax())
        score = Ranks(second[:, best][None]).auroc(shown[half:].nonzero().flatten())
        found.setdefault(f"concept_auroc_{kind}", []).append(float(score))
    return {kind: sum(scores) / len(scores) for kind, scores in found.items()}


def scene_concepts(images: ShapeScenes) -> dict[tuple[str, str], torch.Tensor]:
    """(kind, concept) → which scenes show it."""
    shown: dict[tuple[str, str], torch.Tensor] = {}
    for index in range(images.n_images):
        for thing in images.scene(index).objects:
            for concept in (("shape", thing.shape), ("color", thing.color)):
                flags = shown.setdefault(concept, torch.zeros(images.n_images, dtype=torch.bool))
                flags[index] = True
    return shown


def write_pictures(reports: dict[str, EvaluationReport], folder: Path) -> None:
    """The frontier and the progressive recovery, as PNG."""
    plot_frontier(reports).savefig(folder / "frontier.png", dpi=150)
    chosen = ["ReLU l1=0.01", "TopK k=32", "BatchTopK k=32", "matryoshka_batchtopk k=32"]
    some = {name: reports[name] for name in [*chosen, "MSAE UW", "MSAE RW"]}
    plot_progressive_recovery(some).savefig(folder / "progressive_recovery.png", dpi=150)


if __name__ == "__main__":
    main()
