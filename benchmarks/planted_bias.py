"""A planted spurious correlation: found, shown, and mended by suppressing concepts.

Shape scenes whose classes are the eight shapes; in 95 % of the training scenes each shape has a
colour of its own, in the test scenes any. A linear probe fitted on the former leans on colour. The
figures: whether the first concepts that the study names are the colours (which attribute of an
unbiased scene explains most of their variance), and accuracy with n of them suppressed, beside
random latents and neurons.

    vit-sae train --preset msae-shapes --output-path runs/msae
    python -m benchmarks.planted_bias --sae runs/msae/sae --figure bias.png
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from vit_sae_plugin import AttachedSAE, HookedViT
from vit_sae_plugin.concepts.bias import GroupMoments, bias_study
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.report.bias_plot import plot_bias
from vit_sae_plugin.saes import load_saved_sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", required=True, help="a saved SAE of shapes-clip")
    parser.add_argument("--bias", type=float, default=0.95)
    parser.add_argument("--n-fit", type=int, default=2000)
    parser.add_argument("--n-images", type=int, default=4000)
    parser.add_argument("--figure", help="where to save the picture")
    args = parser.parse_args()
    sae = load_saved_sae(args.sae)
    model = HookedViT.from_pretrained("shapes-clip")

    def scenes(n: int, seed: int, split: str, bias: float | None) -> ShapeScenes:
        return ShapeScenes(n, n_objects=1, seed=seed, split=split, bias=bias)

    report = bias_study(
        model,
        sae,
        scenes(args.n_images, 3, "test", args.bias),
        attribute="color",
        fit_images=scenes(args.n_fit, 4, "train", args.bias),
        reference_images=scenes(args.n_fit, 4, "train", 1 / 8),
        elsewhere_images=scenes(1000, 5, "test", None),
        batch_size_images=64,
        progress=True,
    )
    suspects = report.concepts.index[report.concepts["suspect"]]
    truth = best_attribute(model, sae, scenes(2000, 6, "test", None))
    first = truth.loc[suspects]
    other = first.index[first["attribute"] != "color"]
    print(f"{len(suspects)} suspects; of the first 20 these attributes explain most:")
    print(first.head(20).value_counts("attribute").to_string())
    rank = first.index.get_loc(other[0]) + 1 if len(other) else "none"
    print(f"rank of the first that another attribute explains: {rank}\n")
    print(table(report.mending))
    if args.figure:
        names = {at: f"{row.value} ({at})" for at, row in report.concepts.head(3).iterrows()}
        plot_bias(report.mending, report.prediction, names).savefig(args.figure, dpi=160)


@torch.no_grad()
def best_attribute(model: HookedViT, sae: SAE, images: ShapeScenes) -> pd.DataFrame:
    """Which attribute of a scene explains most of each latent's variance, and how much."""
    things = [images.scene(at) for at in range(images.n_images)]
    attributes = {
        name: pd.Categorical([getattr(thing.objects[0], name) for thing in things]).codes
        for name in ("color", "shape", "size", "texture")
    } | {"background": pd.Categorical([thing.background for thing in things]).codes}
    attached = AttachedSAE(model, sae)
    moments = {
        name: GroupMoments(int(codes.max()) + 1, attached.d_sae)
        for name, codes in attributes.items()
    }
    for batch in attached.walk(images, batch_size_images=64):
        latents = attached.latents(batch.pixels).mean(1)
        for name, codes in attributes.items():
            moments[name].add(latents, codes[batch.index.numpy()].astype(np.int64))
    shares = {name: explained_share(part) for name, part in moments.items()}
    frame = pd.DataFrame(shares)
    return pd.DataFrame({"attribute": frame.idxmax(axis=1), "share": frame.max(axis=1)})


def explained_share(moments: GroupMoments) -> np.ndarray:
    """Of each feature's variance, what its groups' means explain."""
    n = moments.n.sum()
    about_mean = moments.sum_of_squares.sum(0) - n * moments.mean**2
    between = (moments.sum**2 / np.maximum(moments.n, 1)[:, None]).sum(0) - n * moments.mean**2
    return np.divide(between, about_mean, out=np.zeros_like(between), where=about_mean > 0)


def table(mending: pd.DataFrame) -> str:
    """As Markdown; random draws are averaged."""
    columns = ["worst", "worst_low", "worst_high", "mean", "cost", "cost_low", "cost_high"]
    columns += ["mended", "mended_low", "mended_high", "elsewhere"]
    rows = mending[columns].groupby(level=["suppressed", "n"], sort=False).mean()
    lines = [
        "| suppressed | n | worst group | mean | its cost | its loss mended | elsewhere |",
        "| --- | ---: | --- | ---: | --- | --- | ---: |",
    ]
    for (kind, n), row in rows.iterrows():
        lines.append(
            f"| {kind} | {n or ''} | {row.worst:.1%} ({row.worst_low:.1%} to {row.worst_high:.1%})"
            f" | {row['mean']:.1%} | {100 * row.cost:.1f} ({100 * row.cost_low:.1f} to "
            f"{100 * row.cost_high:.1f}) | {row.mended:.0%} ({row.mended_low:.0%} to "
            f"{row.mended_high:.0%}) | {row.elsewhere:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
