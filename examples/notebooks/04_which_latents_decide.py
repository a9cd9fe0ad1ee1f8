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
# # Which latents decide
# Change latents and watch the answer; ask which latents made it; and on how few of them a class hangs.
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/04_which_latents_decide.ipynb)
# · made from `04_which_latents_decide.py` by `python scripts/make_notebooks.py`

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

from vit_sae_plugin import HookedViT, open_images

model = HookedViT.from_pretrained("shapes-clip")
images = open_images(f"shapes:test?n_images={128 if SHORT else 480}&n_objects=1")

# %% [markdown]
# The SAE of notebook 1, or of `vit-sae demo`; trained here if neither is there.

# %%
from sae_lens import SAE
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAETrainingRunner,
    complete_settings,
    load_preset,
)

FOLDER = next((f for f in ("demo-results/run/sae", "runs/first/sae") if Path(f).is_dir()), None)
if FOLDER is None:
    settings = load_preset("patchsae-shapes") | {"output_path": "runs/first", "verbose": False}
    settings["training_tokens"] = 40_000 if SHORT else 600_000
    if SHORT:
        settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
    settings = complete_settings(settings, d_in=128, n_rows_per_epoch=None)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=model).run()
    FOLDER = "runs/first/sae"
sae = SAE.load_from_disk(FOLDER)

# %% [markdown]
# ## Change latents, see the answer move

# %%
import pandas as pd
import torch
from vit_sae_plugin import AttachedSAE
from vit_sae_plugin.attached_sae import remove, scale
from vit_sae_plugin.prompt_templates import shape_scene_templates

attached = AttachedSAE(model, sae)
classifier = model.zero_shot_classifier(images.class_names, shape_scene_templates())
picture = images.record(3).load()
pixels = model.preprocess(picture)[None]
picture.resize((160, 160))


# %%
def answers(embeds: torch.Tensor) -> pd.Series:
    unit = torch.nn.functional.normalize(embeds, dim=-1)
    shares = (100 * unit @ classifier).softmax(dim=-1)[0]
    return pd.Series(shares.tolist(), index=images.class_names)


strongest = attached.latents(pixels).sum((0, 1)).topk(10).indices
plain = answers(model(pixels).detach())
table = pd.DataFrame(
    {
        "as it is": plain,
        "10 strongest removed": answers(
            attached.splice(pixels, remove(strongest), use_error_term=True)
        ),
        "doubled": answers(attached.splice(pixels, scale(strongest, 2), use_error_term=True)),
    }
)
table.loc[plain.nlargest(5).index].round(3)

# %% [markdown]
# ## What made this answer
# Activation × gradient for each latent in each patch.

# %%
from vit_sae_plugin.attached_sae import attribute, zero_shot_score

best = int(plain.argmax())
found = attribute(attached, pixels, zero_shot_score(classifier, label=best, logit_scale=100))
found.by_latent.head()

# %% [markdown]
# ## On how few latents a class hangs
# Only a class's first k latents are kept, or only they are removed, beside random ones. Latents are
# ranked on other images than those that are scored.

# %%
from vit_sae_plugin.evaluation.masking_study import masking_study

result = masking_study(
    model,
    sae,
    images,
    ranking=open_images(f"shapes:train?n_images={256 if SHORT else 1280}&n_objects=1"),
    templates="shapes",
    ks=[1, 10] if SHORT else [1, 2, 5, 10, 20, 50],
)
overall = result.overall()
overall.head()

# %%
from vit_sae_plugin.report.masking_plot import plot_masking

plot_masking(overall)
