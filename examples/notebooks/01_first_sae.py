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
# # A first SAE
# From a small CLIP to latents that mean something, without network and in a few minutes on two cores.
# The images are *shape scenes*: drawn pictures of objects with a shape, a colour, a size and a texture.
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/01_first_sae.ipynb)
# · made from `01_first_sae.py` by `python scripts/make_notebooks.py`

# %%
# In Colab, or anywhere the package isn't installed yet:
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vit_sae_plugin") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vit-sae-plugin"], check=True)

# %matplotlib inline
import os

SHORT = bool(os.environ.get("VIT_SAE_SHORT"))  # a quick run, as the tests make; leave it out

# %% [markdown]
# ## The model, with TransformerLens's hooks

# %%
from vit_sae_plugin import HookedViT, open_images

model = HookedViT.from_pretrained("shapes-clip")
images = open_images(
    "shapes:test?n_images=400&n_objects=1" if SHORT else "shapes:test?n_images=2000&n_objects=1"
)
images.record(0).load().resize((192, 192))

# %%
import torch

pixels = torch.stack([model.preprocess(images.record(i).load()) for i in range(4)])
embeds, cache = model.run_with_cache(pixels)
{name: tuple(value.shape) for name, value in cache.items() if ".2." in name or "." not in name}

# %% [markdown]
# ## Training
# A PatchSAE reads one row a token: every patch of the residual stream behind the third of four blocks.
# The preset holds the settings; anything else is a field of the config.

# %%
import shutil

from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

settings = load_preset("patchsae-shapes") | {"output_path": "runs/first", "verbose": False}
settings["training_tokens"] = 40_000 if SHORT else 600_000
if SHORT:
    settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
d_in = model.hook_width(settings["hook_name"])
cfg = ViTSAERunnerConfig.from_dict(complete_settings(settings, d_in=d_in, n_rows_per_epoch=None))
shutil.rmtree("runs/first", ignore_errors=True)  # begin anew
ViTSAETrainingRunner(cfg, override_model=model).run()

# %%
from vit_sae_plugin.training import METRICS_FILE, read_metrics

curve = read_metrics(f"runs/first/{METRICS_FILE}")
curve.set_index("n_tokens")[["explained_variance", "l0", "n_dead_latents"]].plot(
    subplots=True,
    layout=(1, 3),
    figsize=(11, 2.6),
    legend=False,
    title=["explained variance", "L0", "dead latents"],
)
# %% [markdown]
# ## How good is it?
# The saved SAE is a SAELens folder. Sparsity and reconstruction come first; then what the model still
# knows when the reconstruction takes the place of its own activations.

# %%
from sae_lens import SAE
from vit_sae_plugin import evaluate_sae

sae = SAE.load_from_disk("runs/first/sae")
report = evaluate_sae(model, sae, images, n_images=200)
report.reconstruction[["l0", "mse", "explained_variance", "dead_share"]]

# %%
report.splicing

# %% [markdown]
# ## What do its latents respond to?
# One pass over the images looks at every latent.

# %%
from vit_sae_plugin import analyze

atlas = analyze(model, sae, images, folder="runs/first/atlas", progress=False)
atlas

# %%
from vit_sae_plugin.report import plot_latents

plot_latents(atlas)

# %% [markdown]
# The purest: latents whose reference images are all of few classes. Nobody told the SAE what a shape is.

# %%
from vit_sae_plugin.report import plot_reference_images

live = atlas.latents.query("frequency > 0.01").sort_values(["is_dense", "label_entropy"])
purest = live.index[:4].tolist()
plot_reference_images(model, sae, atlas, images, purest)

# %%
atlas.latents.loc[
    purest, ["frequency", "mean_activation", "label_entropy", "top_class_name"]
].round(3)

# %% [markdown]
# Next: the same on photographs, in notebook 2.
