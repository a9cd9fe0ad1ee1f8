"""Does search by concepts find what was asked for, and leave out what was not wanted?

On shape scenes, for every two colours (or shapes) that name latents: the scenes found for
``first:1,second:-1`` that show the first and don't show the second, beside plain cosine search with
the same weighted sum of texts. Shares of the first twelve, with bootstrap intervals over queries.

    python benchmarks/concept_search.py demo-results/run/sae     # after vit-sae name on it
"""

from __future__ import annotations

import argparse
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
from sae_lens import SAE

from vit_sae_plugin import AttachedSAE
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.concepts import SearchIndex, build_index, search_by_concepts
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean


def main() -> None:
    """Read the arguments, search, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sae", help="folder of an SAE of shapes-clip")
    parser.add_argument("--atlas", help="its atlas with names (default: 'atlas' in its folder)")
    parser.add_argument("--images", default="shapes:test?n_images=1500")
    parser.add_argument("--index", type=Path, help="an index of the images, made before")
    parser.add_argument("--n", type=int, default=12)
    args = parser.parse_args()
    sae = SAE.load_from_disk(args.sae)
    model = ActivationSource.from_metadata(sae.cfg.metadata).load_model()
    attached = AttachedSAE(model, sae)
    atlas = LatentAtlas.load(args.atlas or Path(args.sae) / "atlas")
    names = {latent: entry.name for latent, entry in atlas.names.items() if entry.name}
    scenes = open_images(args.images)
    index = SearchIndex.load(args.index) if args.index else build_index(attached, scenes)
    shown = [
        {word for thing in scenes.scene(i).objects for word in (thing.color, thing.shape)}
        for i in range(len(index))
    ]
    rows = {}
    for kind, words in (("colours", COLORS), ("shapes", SHAPES)):
        known = [word for word in words if word in set(names.values())]
        for wanted, unwanted in permutations(known, 2):
            found = search_by_concepts(
                attached, index, f"{wanted}:1,{unwanted}:-1", names, n=args.n
            )
            for search, table in (("concepts", found.by_concepts), ("cosine", found.by_cosine)):
                has = [shown[i] for i in table["image_index"]]
                rows[kind, search, wanted, unwanted] = {
                    "right": np.mean([wanted in one and unwanted not in one for one in has]),
                    "shows the wanted": np.mean([wanted in one for one in has]),
                    "shows the unwanted": np.mean([unwanted in one for one in has]),
                }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["kind", "search", "wanted", "unwanted"])
    for (kind, search), part in table.groupby(level=["kind", "search"]):
        said = []
        for name in part:
            mean, low, high = bootstrap_mean(part[name].to_numpy())
            said.append(f"{name} {mean:.3f} ({low:.3f} to {high:.3f})")
        print(f"{kind}, by {search}, {len(part)} queries: {', '.join(said)}")


if __name__ == "__main__":
    main()
