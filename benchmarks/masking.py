"""The masking study: what it finds on shape scenes, and what it costs beside the plain way.

The plain way runs the whole model for each condition, with a hook that encodes, masks, decodes and
puts the reconstruction back. Ours runs the blocks below the SAE and the encoder once an image,
decodes a few rows of the decoder a condition, and runs the blocks above for several at a time, the
last one only for the class token. Both are timed in turns on the same images, by the CPU time of
the process (best with OMP_NUM_THREADS=1), ViT-B/32 with random weights and an SAE of random weights
at block 10.

    python benchmarks/masking.py --time
    python benchmarks/masking.py --sae demo-results/run/sae --n-images 640 --plot masking.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.attached_sae import AttachedSAE, UpperRun, keep_only, remove
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.latent_ranking import LatentRanking
from vit_sae_plugin.evaluation.masking import MaskingStudy
from vit_sae_plugin.evaluation.masking_study import masking_study
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.10.hook_resid_post"


@torch.no_grad()
def measure_time(d_sae: int, n_images: int, n_turns: int, n_plain: int) -> None:
    """CPU seconds a condition and image, both ways, in turns."""
    model = HookedViT.from_pretrained("ViT-B-32", pretrained=False)
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=model.cfg.d_model, d_sae=d_sae))
    # so that about one latent in a hundred is active, as in a trained SAE
    sae.b_enc.data.fill_(-2.3 * float(sae.W_enc.std()) * 768**0.5)
    for name, value in ActivationSource.from_model(model, HOOK).to_metadata().items():
        setattr(sae.cfg.metadata, name, value)
    attached = AttachedSAE(model, sae)
    ranking = LatentRanking(torch.rand(2, d_sae).double().numpy(), torch.tensor([1, 1]).numpy())
    classifier = torch.randn(model.cfg.d_embed, 2)
    study = MaskingStudy(attached, ranking, lambda embeds: embeds @ classifier)
    pixels = torch.randn(n_images, 3, *model.cfg.image_size)
    labels = torch.arange(n_images) % 2
    n_conditions = len(study.conditions)

    def plain() -> None:
        for condition in study.conditions[-n_plain:]:
            order = ranking.order(condition.ranking, condition.k, draw=condition.draw)[0]
            edit = (keep_only if condition.mask == "on" else remove)(order)
            attached.splice(pixels, edit, use_error_term=condition.error_term)

    run = UpperRun(attached, pixels)
    acts = run.target_btd.repeat(13, 1, 1)  # about as many as the study runs at a time
    seconds: dict[str, list[float]] = {"plain": [], "study": [], "whole pass": [], "above": []}
    jobs = {
        "plain": (plain, n_plain * n_images),
        "study": (lambda: study.correct(pixels, labels), n_conditions * n_images),
        "whole pass": (lambda: model(pixels), n_images),
        "above": (lambda: run.output(acts), 13 * n_images),
    }
    for turn in range(n_turns + 1):
        for name, (job, n_runs) in jobs.items():
            start = time.process_time()
            job()
            if turn:  # the first turn warms up
                seconds[name].append((time.process_time() - start) / n_runs)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:11s} {1e3 * middle[name]:8.2f} ms (min {1e3 * min(values):.2f}, "
            f"max {1e3 * max(values):.2f}) an image"
            + (" and condition" if name in ("plain", "study") else "")
        )
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["study"], strict=True)]
    against_pass = [a / b for a, b in zip(seconds["whole pass"], seconds["study"], strict=True)]
    limit = [a / b for a, b in zip(seconds["whole pass"], seconds["above"], strict=True)]
    print(f"{n_conditions} conditions, {d_sae} latents, {n_images} images a batch")
    for name, values in (("plain way", ratios), ("bare whole pass", against_pass)):
        middle_ratio = statistics.median(values)
        print(f"{name} / study: {middle_ratio:.1f} ({min(values):.1f} to {max(values):.1f})")
    reached = statistics.median(against_pass) / statistics.median(limit)
    print(
        "limit (whole pass / what is needed of the blocks above and the head): "
        f"{statistics.median(limit):.1f}; "
        f"reached {reached:.0%} of it"
    )


def study_scenes(folder: str, n_images: int, n_ranking: int, plot: str | None) -> pd.DataFrame:
    """The study on shape scenes of one object: 64 classes, shape × colour."""
    import vit_sae_plugin  # noqa: F401  (registers the architectures)

    sae = SAE.load_from_disk(folder)
    model = HookedViT.from_pretrained("shapes-clip")
    result = masking_study(
        model,
        sae,
        open_images(f"shapes:test?n_images={n_images}&n_objects=1"),
        ranking=open_images(f"shapes:train?n_images={n_ranking}&n_objects=1"),
        templates="shapes",
        progress=True,
    )
    table = result.overall()
    if plot is not None:
        from vit_sae_plugin.report.masking_plot import plot_masking

        plot_masking(table).savefig(plot, dpi=150)
        path = Path(plot)
        plot_masking(table, error_term=True).savefig(
            path.with_stem(path.stem + "_with_error"), dpi=150
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--time", action="store_true", help="measure the cost")
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--plain-conditions", type=int, default=6)
    parser.add_argument("--sae", help="an SAE on shapes-clip")
    parser.add_argument("--n-images", type=int, default=640)
    parser.add_argument("--n-ranking", type=int, default=2560)
    parser.add_argument("--plot")
    args = parser.parse_args()
    if args.time:
        measure_time(args.d_sae, 8, args.turns, args.plain_conditions)
    if args.sae:
        table = study_scenes(args.sae, args.n_images, args.n_ranking, args.plot)
        with pd.option_context("display.max_rows", None, "display.width", 120):
            print(table.round(3))


if __name__ == "__main__":
    main()
