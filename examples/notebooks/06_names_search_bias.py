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
# # Names, search, bias
# Latents get names where the match is clear, images are found by them, and a planted bias of a classifier is found,
# proven and mended.
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/06_names_search_bias.ipynb)
# · made from `06_names_search_bias.py` by `python scripts/make_notebooks.py`

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

# %%
from pathlib import Path

from sae_lens import SAE
from vit_sae_plugin import AttachedSAE, HookedViT, open_images
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

model = HookedViT.from_pretrained("shapes-clip")
settings = load_preset("msae-shapes") | {"output_path": "runs/msae", "verbose": False}
settings["dataset_path"] = f"shapes:train?n_images={1000 if SHORT else 10000}"
if not Path("runs/msae/sae").is_dir():
    n_rows = 1000 if SHORT else 10000
    settings = complete_settings(settings, d_in=128, n_rows_per_epoch=n_rows)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=model).run()
sae = SAE.load_from_disk("runs/msae/sae")
attached = AttachedSAE(model, sae)

# %% [markdown]
# ## Names
# Each latent's meaning is the mean embedding of the images that activate it, compared with a vocabulary. A
# latent is named only if the match is clearer than those of 99 % of random directions.

# %%
from vit_sae_plugin.concepts import name_latents

naming = name_latents(
    attached, f"shapes:train?n_images={600 if SHORT else 4000}&n_objects=1", "shapes"
)
print(naming)
naming.table().head(8)

# %% [markdown]
# ## Search
# Concepts with weights: below 0 for what isn't wanted.

# %%
from vit_sae_plugin.concepts import build_index, search_by_concepts

scenes = open_images(f"shapes:test?n_images={200 if SHORT else 1500}")
index = build_index(attached, scenes)
named = list(dict.fromkeys(naming.names.values()))
wanted = f"{named[0]}:1,{named[1]}:-1" if len(named) > 1 else "0:1"
found = search_by_concepts(attached, index, wanted, naming.names)
wanted, found.by_concepts.head()

# %%
from PIL import Image

sheet = Image.new("RGB", (6 * 132 - 4, 128), "white")
for place, image in enumerate(found.by_concepts["image"].head(6)):
    sheet.paste(scenes.record(int(image)).load().resize((128, 128)), (132 * place, 0))
sheet

# %% [markdown]
# ## Bias
# A probe is fitted on scenes in which each shape has its own colour in 95 of 100, and asked about scenes in
# which colour and shape are independent. Which concepts does it lean on, and does suppressing them mend it?

# %%
from vit_sae_plugin.concepts.bias import bias_study

n_fit, n_test = (400, 600) if SHORT else (2000, 4000)
study = bias_study(
    model,
    sae,
    open_images(f"shapes:test?n_images={n_test}&n_objects=1&bias=0.95&seed=3"),
    attribute="color",
    fit_images=open_images(f"shapes:train?n_images={n_fit}&n_objects=1&bias=0.95&seed=4"),
)
study["concepts"].head(5)

# %%
study["mending"]
