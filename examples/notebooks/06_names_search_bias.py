# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · Names, search, bias
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/06_names_search_bias.ipynb)
#
# Latents get words where the match is clear; images are found by those words, with reasons; and a classifier that
# learnt the wrong thing is caught and mended by suppressing the concepts that it leans on.

# %%
# In Colab, or anywhere the package isn't installed yet:
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vit_sae_plugin") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vit-sae-plugin"], check=True)

# %% [markdown]
# Sizes are in one place. `VIT_SAE_SHORT` makes a quick run of everything, as the tests do.

# %%
# %matplotlib inline
import os

SHORT = bool(os.environ.get("VIT_SAE_SHORT"))
N_TRAIN, N_EPOCHS = (1000, 2) if SHORT else (12_000, 30)  # of the SAE
N_NAMING, N_SEARCHED = (600, 200) if SHORT else (4000, 1500)
N_FIT, N_TEST = (400, 500) if SHORT else (2000, 4000)  # of the biased classifier

# %% [markdown]
# A Matryoshka SAE on the pooled embeddings of the built-in CLIP, by a preset of the package.

# %%
import shutil

from sae_lens import SAE
from vit_sae_plugin import AttachedSAE, HookedViT, open_images
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

model = HookedViT.from_pretrained("shapes-clip")
shutil.rmtree("runs/msae", ignore_errors=True)  # begin anew
settings = load_preset("msae-shapes") | {
    "dataset_path": f"shapes:train?n_images={N_TRAIN}",
    "training_epochs": N_EPOCHS,
    "output_path": "runs/msae",
    "verbose": False,
}
settings = complete_settings(settings, d_in=128, n_rows_per_epoch=N_TRAIN)
ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=model).run()
sae = SAE.load_from_disk("runs/msae/sae")
attached = AttachedSAE(model, sae)

# %% [markdown]
# ## Names
# A latent's meaning is the mean embedding of the images that activate it, compared with the words of a vocabulary.
# It is named only if the match is clearer than that of 99 % of random directions; all others stay without a name.

# %%
from vit_sae_plugin.concepts import name_latents

naming = name_latents(attached, f"shapes:train?n_images={N_NAMING}&n_objects=1", "shapes")
print(f"{len(naming.names)} of {attached.d_sae:,} latents have a name")
named = naming.table().query("is_name").droplevel("rank").sort_values("clearness", ascending=False)
named[["word", "clearness"]].head(6).astype({"clearness": float}).round(1)

# %% [markdown]
# Are they right? The eight scenes of up to three objects that activate some named latents most. They were drawn
# anew: none of them took part in the naming.

# %%
import matplotlib.pyplot as plt
from vit_sae_plugin import analyze

scenes = open_images(f"shapes:test?n_images={N_SEARCHED}")
atlas = analyze(model, sae, scenes, aggregations=["max"], n_reference_images=12, progress=False)


def draw(rows: dict[str, list[int]]) -> None:
    """Scenes in rows, with a name in front of each."""
    _, grid = plt.subplots(
        len(rows), 8, figsize=(9, 1.06 * len(rows)), dpi=110, layout="constrained", squeeze=False
    )
    for cells, (name, found) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(cells, found, strict=False):
            axes.imshow(scenes.record(int(image)).load())
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def strongest(latent: int) -> list[int]:
    """The scenes that activate one latent most."""
    return atlas.reference_images(latent)["image"].tolist()


of_each_word = named.reset_index().drop_duplicates("word").head(6)
draw({row.word: strongest(row.latent) for row in of_each_word.itertuples()})

# %% [markdown]
# And in numbers, over all named latents: the share of a latent's first twelve scenes that show what its name says.
# The control are the same names given to the same latents in a random order.

# %%
import numpy as np
from vit_sae_plugin.datasets.shape_drawing import COLORS
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean


def words_of(image: int) -> set[str]:
    """What a scene shows: words and pairs of them that are true of one object."""
    shown = set()
    for thing in scenes.scene(image).objects:
        shown |= {thing.color, thing.shape, thing.texture, thing.size}
        shown.add(f"{thing.color} {thing.shape}")
    return shown


def precision(names: dict[int, str]) -> str:
    right = [
        np.mean([name in words_of(image) for image in strongest(latent)])
        for latent, name in names.items()
    ]
    mean, low, high = bootstrap_mean(right)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


words = np.random.default_rng(0).permutation(list(naming.names.values()))
print("names as given:   ", precision(naming.names))
print("in a random order:", precision(dict(zip(naming.names, words, strict=True))))

# %% [markdown]
# ## Search
# A query is concepts with weights, below 0 for what isn't wanted. An image's score is the sum of its parts, which say
# why it was found. Below it stands plain search by the cosine with the same weighted sum of texts.

# %%
from vit_sae_plugin.concepts import build_index, search_by_concepts

index = build_index(attached, scenes)
known = list(dict.fromkeys(naming.names.values()))
colors = [word for word in known if word in COLORS]
wanted, unwanted = (colors * 2 or known)[:2]
query = f"{wanted}:1,{unwanted}:-1"
found = search_by_concepts(attached, index, query, naming.names)
draw(
    {
        f"{wanted}, not {unwanted}\nby concepts": found.by_concepts["image_index"].tolist(),
        "by cosine": found.by_cosine["image_index"].tolist(),
    }
)

# %% [markdown]
# One query proves nothing. Below, over all ordered pairs of the named colours, is the share of the first twelve
# scenes that show the one and not the other, with its 95 % interval over queries. Plain search finds colours just as
# well: what concepts add is the reason for each picture, and queries that no text says.

# %%
from itertools import permutations

shares = {"by concepts": [], "by cosine": []}
for wanted, unwanted in permutations(colors, 2):
    found = search_by_concepts(attached, index, f"{wanted}:1,{unwanted}:-1", naming.names)
    for name, table in (("by concepts", found.by_concepts), ("by cosine", found.by_cosine)):
        shown = [words_of(image) for image in table["image_index"]]
        shares[name].append(np.mean([wanted in one and unwanted not in one for one in shown]))
for name, values in shares.items():
    if values:
        mean, low, high = bootstrap_mean(values)
        print(f"{name}: {mean:.3f} ({low:.3f} to {high:.3f}), {len(values)} queries")

# %% [markdown]
# ## Bias
# In 95 of 100 training scenes each shape has a colour of its own. A linear probe that is to name the *shape* learns
# the colour along with it, and fails where the two come apart: in the test scenes they are independent, 64 groups.
# `bias_study` finds the concepts that the probe leans on, without being told of any, and suppresses them; beside
# them random latents that are about as active, and as many neurons found by the same rule.

# %%
from vit_sae_plugin.concepts.bias import bias_study
from vit_sae_plugin.report.bias_plot import plot_bias

study = bias_study(
    model,
    sae,
    open_images(f"shapes:test?n_images={N_TEST}&n_objects=1&bias=0.95&seed=3"),
    attribute="color",
    fit_images=open_images(f"shapes:train?n_images={N_FIT}&n_objects=1&bias=0.95&seed=4"),
    reference_images=open_images(f"shapes:train?n_images={N_FIT}&n_objects=1&bias=0.125&seed=4"),
)
called = {at: f"{row.value} ({at})" for at, row in study.concepts.head(3).iterrows()}
plot_bias(study.mending, study.prediction, called)

# %% [markdown]
# Ten concepts, suppressed together, mend nearly all that the bias had cost, for there are eight colours. As many random
# latents mend nothing and do harm; neurons mend far less. Below in numbers, at ten; *unbiased probe* is one that was
# fitted on scenes without the bias, which shows what could be reached. The worst group is a least of 64 means, low
# by chance already:
# compare rows, not with 100 %.

# %%
import pandas as pd

at_ten = study.mending.groupby(level=["suppressed", "n"], sort=False).mean(numeric_only=True)
at_ten = at_ten[at_ten.index.get_level_values("n").isin([0, 10])].droplevel("n")
pd.DataFrame(
    {
        title: [
            f"{row[column]:.1%} ({row[column + '_low']:.1%} to {row[column + '_high']:.1%})"
            for _, row in at_ten.iterrows()
        ]
        for title, column in (("worst group", "worst"), ("all scenes", "mean"))
    },
    index=at_ten.index,
)
