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
# # 1 · A first SAE
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/01_first_sae.ipynb)
#
# We train a sparse autoencoder on the patches of a small CLIP and ask whether its latents find shapes and
# colours, of which nobody told it. Everything runs offline: the images are *shape scenes*, drawn pictures
# in which it is known what is where.

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
N_TOKENS = 40_000 if SHORT else 1_200_000  # to train on
N_IMAGES = 200 if SHORT else 2_000  # to look at

# %% [markdown]
# ## The model and its world
# `shapes-clip` ships with the package: a CLIP of four blocks that was trained on captions of such scenes.
# Below each scene stands the class of 64 whose text is nearest to the image.

# %%
import matplotlib.pyplot as plt
import torch
from vit_sae_plugin import HookedViT, open_images
from vit_sae_plugin.prompt_templates import shape_scene_templates

model = HookedViT.from_pretrained("shapes-clip")
images = open_images(f"shapes:test?n_images={N_IMAGES}&n_objects=1")
pictures = [images.record(i).load() for i in range(8)]
pixels = torch.stack([model.preprocess(picture) for picture in pictures])
classifier = model.zero_shot_classifier(images.class_names, shape_scene_templates())
answers = (model.encode_image(pixels, normalize=True) @ classifier).argmax(1)

figure, cells = plt.subplots(1, 8, figsize=(11, 1.7), dpi=110, layout="constrained")
for axes, picture, answer in zip(cells, pictures, answers, strict=True):
    axes.imshow(picture)
    axes.set_title(images.class_names[answer], y=-0.22, fontsize=8.5)
    axes.axis("off")

# %% [markdown]
# The hooks have TransformerLens's names. The SAE below reads the residual stream behind the third of the
# four blocks: 64 patches and the class token, each a row of 128 numbers.

# %%
HOOK = "blocks.2.hook_resid_post"
_, cache = model.run_with_cache(pixels, names_filter=HOOK)
cache[HOOK].shape

# %% [markdown]
# ## Training
# A preset holds the settings, those of the PatchSAE paper at this model's size; anything may be changed.
# Run and SAE are saved in a folder, which SAELens opens like its own.

# %%
import shutil

from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

shutil.rmtree("runs/first", ignore_errors=True)  # begin anew
settings = load_preset("patchsae-shapes")
settings |= {"output_path": "runs/first", "training_tokens": N_TOKENS, "verbose": False}
if SHORT:
    settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
settings = complete_settings(settings, d_in=model.hook_width(HOOK), n_rows_per_epoch=None)
cfg = ViTSAERunnerConfig.from_dict(settings)
trained = ViTSAETrainingRunner(cfg, override_model=model).run()

# %% [markdown]
# The reconstruction gets better while ever fewer latents are active; ghost gradients keep them from dying.

# %%
from vit_sae_plugin.training import METRICS_FILE, read_metrics

curve = read_metrics(f"runs/first/{METRICS_FILE}")
titles = {
    "explained_variance": "explained variance",
    "l0": "active latents a token (L0)",
    "n_dead_latents": "dead latents",
}
figure, panels = plt.subplots(1, 3, figsize=(11, 2.5), dpi=110, layout="constrained")
for axes, (column, title) in zip(panels, titles.items(), strict=True):
    axes.plot(curve["n_tokens"], curve[column])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("tokens", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## What does the model still know?
# Explained variance counts every direction alike, the model doesn't. So the reconstruction takes the place
# of the activations, and one sees how often the image is still classified rightly. `zeros` in their place are the
# floor. Of 500 images a share near 95 % is known to about two points.

# %%
from sae_lens import SAE
from vit_sae_plugin import evaluate_sae

sae = SAE.load_from_disk("runs/first/sae")
report = evaluate_sae(model, sae, images, n_images=500)
report.splicing[["zero_shot_accuracy", "output_cosine"]].round(3)

# %% [markdown]
# ## What do its latents respond to?
# `analyze` looks at every latent in one pass. Each dot is a latent: how often it is active, how strongly,
# and by its colour over how many classes the images spread that activate it most (*label entropy*).

# %%
from vit_sae_plugin import analyze
from vit_sae_plugin.report import plot_latents

atlas = analyze(model, sae, images, aggregations=["max"], progress=False)
plot_latents(atlas)

# %% [markdown]
# Of the purest latents the eight scenes that activate them most, bright where they are active. These are
# the *purest*: the figure shows what there is at best, not what a latent drawn at random looks like.

# %%
from vit_sae_plugin.report import plot_reference_images

purest = atlas.latents.query("frequency > 0.01").nsmallest(5, "label_entropy").index
plot_reference_images(model, sae, atlas, images, purest.tolist())

# %% [markdown]
# ## More than chance?
# A best of 1,024 looks good in any case. So each concept's latent is chosen on one half of other scenes and
# scored on the other half by their masks: how well does it rank the patches that show the concept? Beside it
# stand as many random directions, each cut off to be as rarely active as a latent, and the model's own neurons.

# %%
from vit_sae_plugin import localize

found = localize(
    model,
    sae,
    f"shapes:test?n_images={N_IMAGES // 2}&seed=7",
    baselines=("random_latents", "neurons"),
    select_by="average_precision",
)
scores = found.summary.reset_index()

# %% [markdown]
# Average precision of the chosen features, means over a kind's concepts with their 95 % bootstrap intervals
# over concepts.

# %%
labels = {
    "latents": "latents of the SAE",
    "random_latents": "random directions, as sparse",
    "neurons": "neurons of the model",
}
kinds = ["color", "shape", "texture", "color and shape"]
figure, axes = plt.subplots(figsize=(6.4, 2.9), dpi=110, layout="constrained")
for number, (method, label) in enumerate(labels.items()):
    rows = scores[scores["method"] == method].set_index("kind").reindex(kinds)
    middle = rows["average_precision"]
    ends = [middle - rows["average_precision_low"], rows["average_precision_high"] - middle]
    places = [place + 0.2 * (number - 1) for place in range(len(kinds))]
    axes.errorbar(places, middle, ends, fmt="o", markersize=5, label=label)
axes.set_xticks(range(len(kinds)), kinds)
axes.set_ylabel("average precision")
axes.set_ylim(bottom=0)
axes.legend(frameon=False, fontsize=9)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# How much better, concept by concept: the mean of the latents' score less the other's, with its interval. Single
# latents find colours far better than the controls do, shapes better, and a shape of one colour hardly better. Of
# textures there are but four, and where an interval holds 0, as theirs does, nothing is shown.

# %%
column = "average_precision"
less = found.differences.reset_index().query("kind in @kinds").set_index(["kind", "latents_less"])
less["latents are better by"] = [
    f"{row[column]:+.3f} ({row[column + '_low']:+.3f} to {row[column + '_high']:+.3f})"
    for _, row in less.iterrows()
]
less[["latents are better by"]].unstack().loc[kinds]

# %% [markdown]
# [Notebook 2](02_photographs.ipynb) does the same on photographs, [notebook 4](04_which_latents_decide.ipynb) asks
# which of these latents the model uses.
