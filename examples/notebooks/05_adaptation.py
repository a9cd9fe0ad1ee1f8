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
# # What adaptation changes
# A CLIP adapted to a few labelled outline drawings: which latents rise and fall, and how much of the gain hangs on
# them? The same SAE reads the plain and the adapted model.
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/05_adaptation.ipynb)
# · made from `05_adaptation.py` by `python scripts/make_notebooks.py`

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
from vit_sae_plugin import HookedViT, open_images
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

plain = HookedViT.from_pretrained("shapes-clip")
FOLDER = next((f for f in ("demo-results/run/sae", "runs/first/sae") if Path(f).is_dir()), None)
if FOLDER is None:
    settings = load_preset("patchsae-shapes") | {"output_path": "runs/first", "verbose": False}
    settings["training_tokens"] = 40_000 if SHORT else 600_000
    if SHORT:
        settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
    settings = complete_settings(settings, d_in=128, n_rows_per_epoch=None)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=plain).run()
    FOLDER = "runs/first/sae"
sae = SAE.load_from_disk(FOLDER)

# %% [markdown]
# The world `shapes-clip` knows is filled shapes; outlines are new to it.

# %%
train = open_images(f"shapes:train?n_images={640 if SHORT else 2560}&n_objects=1&style=outline")
train.record(0).load().resize((160, 160))

# %%
from vit_sae_plugin.adaptation import AdaptationConfig, accuracy_of_halves, adapt

config = AdaptationConfig(
    "vpt", preset="shapes", seed=1, **({"epochs": 1, "shots": 2} if SHORT else {})
)
adapted = adapt(plain, train, config, "runs/vpt")
test = open_images(f"shapes:test?n_images={256 if SHORT else 1280}&n_objects=1&style=outline")
before, after = accuracy_of_halves(plain, test), accuracy_of_halves(adapted, test)
before, after

# %% [markdown]
# ## Which latents stay, rise and fall
# Beside each stands what one would see by chance: one half of the plain model's images against the other.

# %%
from vit_sae_plugin.analysis import compare_models

comparison = compare_models(
    plain,
    adapted,
    sae,
    f"shapes:test?n_images={256 if SHORT else 1280}&n_objects=1&style=outline&classes=base",
    ranking=f"shapes:train?n_images={256 if SHORT else 1280}&n_objects=1&seed=5&style=outline&classes=base",
)
comparison.quality

# %%
comparison.changes_by_class().mean(numeric_only=True).round(2)

# %% [markdown]
# ## How much of the gain hangs on them
# Latents are exchanged between the two models, image by image, beside random latents of like frequency.

# %%
comparison.effects.table().round(3)

# %%
print(comparison.report())
