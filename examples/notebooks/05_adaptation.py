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
# # 5 · What adaptation changes
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/05_adaptation.ipynb)
#
# A CLIP is adapted to a new kind of image by LoRA, and names it far better afterwards. Did it build new concepts,
# or does it use those that it has? One SAE, trained on the plain model, reads both.

# %%
# In Colab, or anywhere the package isn't installed yet:
import importlib.util
import subprocess
import sys

if not all(importlib.util.find_spec(name) for name in ("vit_sae_plugin", "peft")):
    package = "vit-sae-plugin[adapt]"  # LoRA is PEFT's
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# Sizes are in one place. `VIT_SAE_SHORT` makes a quick run of everything, as the tests do.

# %%
# %matplotlib inline
import os

SHORT = bool(os.environ.get("VIT_SAE_SHORT"))
N_TOKENS = 40_000 if SHORT else 1_200_000  # to train on, if there is no SAE yet
N_TRAIN, N_FIND, N_SCORE = (640, 256, 256) if SHORT else (2560, 1280, 640)  # images
FEWER = {"shots": 2, "epochs": 1} if SHORT else {}

# %% [markdown]
# The SAE is that of notebook 1, if it was run in this folder; otherwise it is trained now, on filled shapes.

# %%
from pathlib import Path

from sae_lens import SAE
from vit_sae_plugin import HookedViT
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

plain = HookedViT.from_pretrained("shapes-clip")
if not Path("runs/first/sae").is_dir():
    settings = load_preset("patchsae-shapes")
    settings |= {"output_path": "runs/first", "training_tokens": N_TOKENS, "verbose": False}
    if SHORT:
        settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
    settings = complete_settings(settings, d_in=plain.cfg.d_model, n_rows_per_epoch=None)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=plain).run()
sae = SAE.load_from_disk("runs/first/sae")

# %% [markdown]
# ## A world that the model doesn't know
# `shapes-clip` was trained on filled shapes. The same scenes as outlines are new to it, as sketches are to a CLIP
# of photographs.

# %%
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
from vit_sae_plugin import open_images
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.prompt_templates import shape_scene_templates


@torch.no_grad()
def is_right(model: HookedViT, images) -> torch.Tensor:
    """Of each image, whether its class has the nearest text."""
    pixels = torch.stack([model.preprocess(r.load()) for r in images.records()])
    embeds = torch.cat([model.encode_image(part, normalize=True) for part in pixels.split(64)])
    classifier = model.zero_shot_classifier(images.class_names, shape_scene_templates())
    return (embeds @ classifier).argmax(1) == torch.as_tensor(images.labels())


base = f"shapes:test?n_images={N_SCORE}&n_objects=1&classes=base"
filled, outlines = open_images(base), open_images(base + "&style=outline")
figure, grid = plt.subplots(2, 8, figsize=(9, 2.6), dpi=110, layout="constrained")
for axes_of_row, images, name in zip(grid, (filled, outlines), ("filled", "outlines"), strict=True):
    mean, low, high = bootstrap_mean(is_right(plain, images).double().numpy())
    for at, axes in enumerate(axes_of_row):
        axes.imshow(images.record(at).load())
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    said = f"{name}\n{mean:.0%} right\n({low:.0%} to {high:.0%})"
    axes_of_row[0].set_ylabel(said, rotation=0, ha="right", va="center", fontsize=9)

# %% [markdown]
# ## Adaptation
# From 16 outlines of each of the 32 *base* classes LoRA learns small changes of the attention in the vision tower.
# The accuracy below is on other outlines; *novel* are the 32 classes that it has never seen. It gains as much on
# those: what it learnt is outlines, not classes.

# %%
from vit_sae_plugin.adaptation import AdaptationConfig, adapt

config = AdaptationConfig("lora", preset="shapes", seed=1, **FEWER)
shots = f"shapes:train?n_images={N_TRAIN}&n_objects=1&style=outline"
adapted = adapt(plain, shots, config, "runs/lora", progress=False)

accuracy = {}
for half in ("base", "novel"):
    images = open_images(f"shapes:test?n_images={N_SCORE}&n_objects=1&style=outline&classes={half}")
    before, after = (is_right(model, images).double().numpy() for model in (plain, adapted))
    for name, values in {"plain": before, "adapted": after, "gain": after - before}.items():
        mean, low, high = bootstrap_mean(values)
        accuracy.setdefault(half, {})[name] = f"{mean:.1%} ({low:.1%} to {high:.1%})"
pd.DataFrame(accuracy)

# %% [markdown]
# ## Which latents rise and fall
# `compare_models` reads both models by the same SAE. A latent is *high* in a class if it is active on half of its
# images or more, *low* below a fifth; it *rises* if it was low and becomes high. Dotted lines are what one would
# see by chance: one half of the plain model's own images against the other. Far more latents rise here.

# %%
from vit_sae_plugin.analysis import compare_models
from vit_sae_plugin.report.comparison_plots import plot_changes, plot_effects

with warnings.catch_warnings():  # it warns of what the next table shows
    warnings.simplefilter("ignore")
    comparison = compare_models(
        plain,
        adapted,
        sae,
        f"shapes:test?n_images={N_SCORE}&n_objects=1&style=outline&classes=base",
        ranking=f"shapes:train?n_images={N_FIND}&n_objects=1&seed=5&style=outline&classes=base",
    )
plot_changes(comparison)

# %% [markdown]
# Before reading on: is the SAE still a witness? It was trained on the plain model's activations. Where it
# explains less of the adapted model's, latents tell less of what that model does. It does explain less, and five
# times as many latents are active: read what follows with that in mind.

# %%
comparison.quality.xs("all", level="tokens")[["explained_variance", "l0"]].round(3)

# %% [markdown]
# ## How much of the gain hangs on them?
# Rising along with the gain is not the same as causing it. So latents are exchanged between the two models, image by
# image: those that rose are *held* in the adapted model at the plain model's values, or *put into* the plain
# model; and the same is done with as many random latents that are active as often (grey).

# %%
plot_effects(comparison.effects.table())

# %% [markdown]
# The share of the gain that remains, or is reached, with its 95 % interval over images. **None of the gain hangs on the
# latents that rose**: without them all of it is left, and by themselves they bring nothing. Not even all latents
# together, held, take most of it away: the blocks above the SAE were adapted, too. One adaptation of one small CLIP;
# `examples/adaptation_study.py` does five, with seeds.

# %%
effects = comparison.effects.table()
changes = {
    "risen latents held": ("adapted", "held", "risen", True),
    "as many random ones held": ("adapted", "held", "random", True),
    "all latents held": ("adapted", "held", "all", True),
    "risen latents put into the plain model": ("plain", "put in", "risen", True),
    "all latents put into the plain model": ("plain", "put in", "all", True),
}
pd.DataFrame(
    {
        "share of the gain": [
            f"{row.share_of_gain:.0%} ({row.share_low:.0%} to {row.share_high:.0%})"
            for row in (effects.loc[key] for key in changes.values())
        ]
    },
    index=list(changes),
)
