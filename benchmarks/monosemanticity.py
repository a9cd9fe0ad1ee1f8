"""The linear form of monosemanticity beside the pairwise one: the same scores, and how much faster.

Both score the same drawn latents and embeddings, one after the other, in double precision. The
pairwise form is the definition, written as one matrix product of all pairs, a block of images at a
time; without its intervals the linear form takes one product of latents and embeddings.

    python benchmarks/monosemanticity.py
    python benchmarks/monosemanticity.py --n-images 5000 --d-sae 4096
"""

from __future__ import annotations

import argparse
import time

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.evaluation.monosemanticity import MonosemanticityTotals, unit_rows

_BLOCK = 2000


def pairwise(
    features: Float[Tensor, "images features"], embeddings: Float[Tensor, "images d"]
) -> Float[Tensor, " features"]:
    """The mean cosine of all pairs of images, weighted by products of scaled activations."""
    a = features.double()
    a = (a - a.amin(0)) / (a.amax(0) - a.amin(0))
    e = unit_rows(embeddings)
    weighted = torch.zeros(a.shape[1], dtype=torch.float64)
    weights = torch.zeros(a.shape[1], dtype=torch.float64)
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosine = e[rows] @ e.T
        pairs = torch.ones_like(cosine)
        pairs[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = 0
        weighted += (a[rows] * ((cosine * pairs) @ a)).sum(0)
        weights += (a[rows] * (pairs @ a)).sum(0)
    return weighted / weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-images", type=int, default=20_000)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--d-embed", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(args.n_images, args.d_sae, generator=generator) - 1).relu()
    embeddings = torch.randn(args.n_images, args.d_embed, generator=generator)
    embeddings[:, 0] += 3
    index = torch.arange(args.n_images)

    start = time.process_time()
    totals = MonosemanticityTotals(args.d_sae)
    for part in index.split(args.batch_size):
        totals.update(features[part], embeddings[part], part)
    of_pass = time.process_time() - start
    found = totals.compute()
    of_linear = time.process_time() - start
    start = time.process_time()
    expected = pairwise(features, embeddings)
    of_pairs = time.process_time() - start
    difference = (torch.from_numpy(found.score) - expected).abs().max().item()
    print(f"{args.n_images} images, {args.d_sae} latents, embeddings of {args.d_embed}")
    print(f"largest difference of a score: {difference:.1e}")
    print(f"CPU time, pairs ÷ one pass: {of_pairs / of_pass:.1f}")
    print(f"CPU time, pairs ÷ one pass and intervals: {of_pairs / of_linear:.1f}")


if __name__ == "__main__":
    main()
