"""Are latents named rightly? Judged on shape scenes, where it is known what each latent finds.

The truth about a latent is the concept whose patches it ranks best (`latent_concepts`: average
precision less chance, over scenes with masks). A name is right if it is that concept or a more
general one: `red` for a latent of red circles, not the other way round. Thresholds are calibrated
on one half of the latents and scored on the other, and the other way round. Beside the latents,
random directions and neurons are named in the same way, and the latents' own names are shuffled.

    python benchmarks/naming.py demo-results/run/sae --output naming/
    python benchmarks/naming.py --scale          # time and memory of 49,152 latents, 20,000 words
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from vit_sae_plugin import AttachedSAE, analyze
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.concepts.calibration import threshold_against_null, threshold_for_precision
from vit_sae_plugin.concepts.candidates import Candidates, rank_words
from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.concepts.controls import neurons_control, random_control
from vit_sae_plugin.concepts.direct_route import direct
from vit_sae_plugin.concepts.image_conditioned import WeightedEmbeddings, image_conditioned
from vit_sae_plugin.concepts.measured_shift import measured_shift
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings, embed_words
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.concept_masks import scene_concept_masks
from vit_sae_plugin.evaluation.latent_concepts import latent_concepts

PRECISIONS = (0.8, 0.9, 0.95)
N_RESAMPLES = 2000


def masks_with_sizes(scenes):
    """Masks of shapes, colours, both together, textures, and sizes: all that words can say."""

    def masks(index: int):
        scene = scenes.scene(index)
        found = scene_concept_masks(scene)
        for thing in scene.objects:
            key = ("size", thing.size)
            found[key] = found.get(key, False) | thing.mask
        return found

    return masks


def truth_of(attached: AttachedSAE, args: argparse.Namespace) -> pd.DataFrame:
    """The concept of each latent that fires on enough patches to say."""
    scenes = open_images(f"shapes:test?n_images={args.n_truth_images}")
    table = latent_concepts(
        attached.model,
        attached.sae,
        scenes,
        concept_masks=masks_with_sizes(scenes),
        source=attached.source,
    )
    return table[table["n_active_patches"] >= args.min_patches]


def directions_by_route(
    attached: AttachedSAE, args: argparse.Namespace
) -> dict[str, ConceptDirections]:
    """What each route asked for makes of these latents."""
    images = open_images(args.images)
    found = {}
    if "image-conditioned" in args.routes:
        found["image-conditioned"] = image_conditioned(attached, images)
    if "measured-shift" in args.routes:
        atlas = analyze(
            attached.model,
            attached.sae,
            images,
            source=attached.source,
            aggregations=["max"],
            n_reference_images=args.n_reference_images,
            progress=False,
        )
        found["measured-shift"] = measured_shift(attached, atlas, images)
    if "direct" in args.routes:
        if attached.source.hook_name == "hook_image_embed":
            found["direct (direction)"] = direct(attached)
        else:
            found["direct (projection)"] = direct(attached)
            found["direct (linearized)"] = direct(attached, "linearized", images=images)
    return found


def judged(candidates: Candidates, truth: pd.DataFrame, names: np.ndarray | None = None):
    """Clearness of each latent's best word, and whether it is right."""
    if names is None:
        names = np.array([candidates.best_word(latent) for latent in truth.index], dtype=object)
    right = [
        candidates.vocabulary.is_same_or_broader(name, concept)
        for name, concept in zip(names, truth["concept"], strict=True)
    ]
    clearness = candidates.clearness[:, 0].numpy()[truth.index.to_numpy()]
    return clearness, np.array(right)


def cross_fitted(clearness: np.ndarray, right: np.ndarray, precision: float, seed: int):
    """Which latents are named by the threshold that the other half of them sets."""
    half = np.random.default_rng(seed).permutation(len(right)) % 2
    named = np.zeros(len(right), dtype=bool)
    for scored in (0, 1):
        other = half != scored
        threshold = threshold_for_precision(clearness[other], right[other], precision)
        named |= (half == scored) & (clearness >= threshold.clearness)
    return named


def row_of(named: np.ndarray, right: np.ndarray, stable: np.ndarray, seed: int) -> dict[str, float]:
    """Precision and recall with their bootstrap intervals over latents."""
    row: dict[str, float] = {"n_named": int(named.sum())}
    parts = {"precision": right[named], "recall": (named & right)}
    parts["recall_of_stable"] = (named & right)[stable]
    for name, values in parts.items():
        if not len(values):
            row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
            continue
        mean, low, high = bootstrap_mean(values.astype(float), n_resamples=N_RESAMPLES, seed=seed)
        row |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def judge_all(args: argparse.Namespace) -> pd.DataFrame:
    """A row for each route, method and stated precision."""
    sae = SAE.load_from_disk(args.sae)
    model = ActivationSource.from_metadata(sae.cfg.metadata).load_model()
    attached = AttachedSAE(model, sae)
    images = open_images(args.images)
    methods = {
        "latents": attached,
        "random directions": random_control(attached, images, seed=args.seed),
        "neurons": neurons_control(attached, images, seed=args.seed),
    }
    words = embed_words(model, read_vocabulary(args.vocabulary))
    rows, ranked, truths = {}, {}, {}
    for method, of in methods.items():
        truth = truths[method] = truth_of(of, args)
        print(
            f"{method}: {len(truth)} of {of.d_sae} fire on {args.min_patches} patches", flush=True
        )
        for route, found in directions_by_route(of, args).items():
            ranked[route, method] = rank_words(found, words)
    for (route, method), candidates in ranked.items():
        truth = truths[method]
        stable = truth["is_same_in_halves"].to_numpy()
        clearness, right = judged(candidates, truth)
        for precision in PRECISIONS:
            named = cross_fitted(clearness, right, precision, args.seed)
            rows[route, method, f"precision {precision:g}"] = row_of(
                named, right, stable, args.seed
            )
        rows[route, method, "all named"] = row_of(
            np.ones(len(right), dtype=bool), right, stable, args.seed
        )
        null = ranked[route, "random directions"].clearness[:, 0].numpy()
        for rate in (0.01, 0.05):
            threshold = threshold_against_null(null, rate).clearness
            rows[route, method, f"null {rate:g}"] = row_of(
                clearness >= threshold, right, stable, args.seed
            )
        if method == "latents":
            names = np.array([candidates.best_word(i) for i in truth.index], dtype=object)
            shuffled = np.random.default_rng(args.seed).permutation(names)
            _, by_chance = judged(candidates, truth, shuffled)
            named = cross_fitted(clearness, right, 0.9, args.seed)
            rows[route, "latents, names shuffled", "precision 0.9"] = row_of(
                named, by_chance, stable, args.seed
            )
            if args.output:
                args.output.mkdir(parents=True, exist_ok=True)
                by_latent = truth.assign(
                    word=names,
                    score=candidates.score[:, 0].numpy()[truth.index.to_numpy()],
                    margin=candidates.margin[:, 0].numpy()[truth.index.to_numpy()],
                    clearness=clearness,
                    is_right=right,
                )
                by_latent.to_csv(args.output / f"latents_{route.split()[-1].strip('()')}.csv")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["route", "method", "rule"])
    return table


def scale(args: argparse.Namespace) -> None:
    """Time and memory of the parts of naming that grow with latents and words."""
    generator = torch.Generator().manual_seed(0)
    n, d, v = args.n_latents, args.d_embed, args.n_words
    vocabulary = Vocabulary(tuple(f"word{i}" for i in range(v)))
    embeds = torch.nn.functional.normalize(torch.randn(v, d, generator=generator), dim=-1)
    words = WordEmbeddings(vocabulary, embeds, "model")
    start_memory = _peak_mib()
    sums = WeightedEmbeddings(n, d)
    batch = torch.rand(64, d, generator=generator)
    levels = torch.zeros(64, n)
    active = torch.randint(n, (64, 2000), generator=generator)
    levels.scatter_(1, active, torch.rand(64, 2000, generator=generator))
    start = time.perf_counter()
    for _ in range(args.n_batches):
        sums.add(levels, batch)
    per_image = (time.perf_counter() - start) / (64 * args.n_batches)
    for _ in range(2):  # a covariance of full rank
        sums.add(torch.rand(512, n, generator=generator), torch.randn(512, d, generator=generator))
    found = ConceptDirections(
        "image-conditioned",
        sums.differences().float(),
        "model",
        "sae",
        sums.n_effective().float(),
        sums.covariance.float(),
    )
    start = time.perf_counter()
    rank_words(found, words)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for some in found.directions.split(1024):
        some @ embeds.T
    bare = time.perf_counter() - start
    print(f"{n:,} latents, {v:,} words, {d} wide, {torch.get_num_threads()} threads")
    print(f"accumulating: {per_image * 1e3:.2f} ms an image")
    print(f"ranking: {seconds:.1f} s, {seconds / bare:.1f} times the bare products")
    print(f"memory: {_peak_mib():,.0f} MiB at the peak, {start_memory:,.0f} before")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the arguments, judge or measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sae", nargs="?", help="folder of an SAE that reads patches of shapes-clip")
    parser.add_argument("--images", default="shapes:train?n_images=4000&n_objects=1")
    parser.add_argument("--n-truth-images", type=int, default=1200)
    parser.add_argument("--min-patches", type=int, default=40, help="active ones, of both halves")
    parser.add_argument("--vocabulary", default="shapes")
    parser.add_argument("--n-reference-images", type=int, default=5, help="for measured-shift")
    routes = ["image-conditioned", "measured-shift", "direct"]
    parser.add_argument("--routes", nargs="+", default=routes, choices=routes)
    parser.add_argument("--output", type=Path, help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", action="store_true", help="measure time and memory instead")
    parser.add_argument("--n-latents", type=int, default=49_152)
    parser.add_argument("--n-words", type=int, default=20_000)
    parser.add_argument("--d-embed", type=int, default=512)
    parser.add_argument("--n-batches", type=int, default=5)
    args = parser.parse_args()
    if args.scale:
        scale(args)
        return
    if args.sae is None:
        parser.error("want the folder of an SAE, or --scale")
    table = judge_all(args)
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(table.round(3).to_string())
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.output / "naming.csv")


if __name__ == "__main__":
    main()
