"""How well the cheap attributions agree with ablation, on shape scenes.

For each scene the logit of its class is attributed to every active latent in every patch by
gradient, by integrated gradients and by ablation, the reference. Printed: the mean over scenes of
Spearman's rank correlation with ablation, with its bootstrap interval; for single places, and for
latents with their places added up (where ablation silences the latent everywhere at once).

    python benchmarks/attribution_agreement.py --sae demo-results/run/sae
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from sae_lens import SAE

import vit_sae_plugin  # noqa: F401  (registers the architectures)
from vit_sae_plugin.attached_sae import AttachedSAE, attribute, remove, zero_shot_score
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.prompt_templates import named_templates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sae", required=True, help="an SAE on shapes-clip")
    parser.add_argument("--n-images", type=int, default=40)
    args = parser.parse_args()
    model = HookedViT.from_pretrained("shapes-clip")
    attached = AttachedSAE(model, SAE.load_from_disk(args.sae))
    images = open_images(f"shapes:test?n_images={args.n_images}&n_objects=1")
    classifier = model.zero_shot_classifier(images.class_names, named_templates("shapes"))
    rows = []
    for batch in attached.walk(images, batch_size_images=1, progress=True):
        score = zero_shot_score(classifier, int(batch.label[0]), float(model.logit_scale))
        exact = attribute(attached, batch.pixels, score, "ablation")
        whole = _whole_latents(attached, batch.pixels, score, exact.by_latent.index)
        row = {"active places": len(exact.value), "active latents": len(whole)}
        for method in ("gradient", "integrated_gradients"):
            found = attribute(attached, batch.pixels, score, method)
            row[f"{method}, places"] = _spearman(pd.Series(found.value), pd.Series(exact.value))
            summed = found.by_latent["attribution"].reindex(whole.index)
            row[f"{method}, latents"] = _spearman(summed, whole)
        summed = exact.by_latent["attribution"].reindex(whole.index)
        row["ablation place by place, latents"] = _spearman(summed, whole)
        rows.append(row)
    table = pd.DataFrame(rows)
    interval = bootstrap_mean(table.to_numpy())
    print(
        pd.DataFrame(
            {"mean": interval.mean, "low": interval.low, "high": interval.high},
            index=table.columns,
        ).round(3)
    )


@torch.no_grad()
def _whole_latents(attached: AttachedSAE, pixels, score, latents) -> pd.Series:
    """The fall of the score when a latent is silenced in all places at once."""
    original = score(attached.model(pixels)).item()
    falls = {
        latent: original
        - score(attached.splice(pixels, remove([latent]), use_error_term=True)).item()
        for latent in latents
    }
    return pd.Series(falls)


def _spearman(one: pd.Series, other: pd.Series) -> float:
    return one.rank().corr(other.rank())


if __name__ == "__main__":
    main()
