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
# # 4 · Which latents decide
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/04_which_latents_decide.ipynb)
#
# A CLIP calls an image a *pink square*. Which latents made it do so, in which patches? Is that true, or does it
# only look good? And on how few latents does a whole class hang?

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
N_TOKENS = 40_000 if SHORT else 1_200_000  # to train on, if there is no SAE yet
N_EXPLAINED = 8 if SHORT else 200  # images whose answers are taken apart
N_IMAGES, N_RANKING = (192, 640) if SHORT else (480, 2560)  # of the masking study
KS = [1, 10] if SHORT else [1, 2, 5, 10, 20, 50, 100]

# %% [markdown]
# The SAE is that of notebook 1, if it was run in this folder; otherwise it is trained now.

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

model = HookedViT.from_pretrained("shapes-clip")
if not Path("runs/first/sae").is_dir():
    settings = load_preset("patchsae-shapes")
    settings |= {"output_path": "runs/first", "training_tokens": N_TOKENS, "verbose": False}
    if SHORT:
        settings |= {"lr_warm_up_steps": 5, "lr_decay_steps": 5}
    settings = complete_settings(settings, d_in=model.cfg.d_model, n_rows_per_epoch=None)
    ViTSAETrainingRunner(ViTSAERunnerConfig.from_dict(settings), override_model=model).run()
sae = SAE.load_from_disk("runs/first/sae")

# %% [markdown]
# ## What made this answer?
# *Attribution* is activation × gradient of a class's logit, for each latent in each patch, from one backward
# pass. Red patches raise the logit and blue ones lower it; to the right stand the strongest latents one by one. Here
# there are two pink things: the square's patches speak for *pink square*, the tip of the heart against it.

# %%
from vit_sae_plugin import analyze, explain, open_images
from vit_sae_plugin.report.attribution_plot import plot_attribution

images = open_images(f"shapes:test?n_images={N_IMAGES}&n_objects=1")
atlas = analyze(model, sae, images, aggregations=["max"], progress=False)
two = open_images("shapes:test?n_images=20&n_objects=2").record(3)
explanation = explain(model, sae, atlas, two.load(), logit=two.label)
plot_attribution(explanation, n_latents=5, label=images.class_names[two.label])

# %% [markdown]
# ## Is that true?
# A way to find decisive latents is as good as what happens when those latents are taken away. So we take
# away, on many images, the first by attribution, the most active, and as many of the image's active latents
# at random. What the SAE fails to reconstruct stays in place (`use_error_term`), so that only the removal counts.

# %%
import torch
from vit_sae_plugin import AttachedSAE
from vit_sae_plugin.attached_sae import UpperRun, attribute, zero_shot_score
from vit_sae_plugin.prompt_templates import shape_scene_templates

attached = AttachedSAE(model, sae)
classifier = model.zero_shot_classifier(images.class_names, shape_scene_templates())
n_removed = [0, 1, 2, 4, 8, 16, 32]
ways = ["first by attribution", "most active", "active ones at random"]
generator = torch.Generator().manual_seed(0)


@torch.no_grad()
def still_right(pixels: torch.Tensor, label: int) -> torch.Tensor:
    """Of one image: way x number removed, whether the class is still the answer."""
    run = UpperRun(attached, pixels)  # the blocks below the SAE run once
    latents = attached.encode(run.acts_btd)
    levels = latents.sum((0, 1))
    active = levels.nonzero().flatten()
    score = zero_shot_score(classifier, label, model.logit_scale.item())
    parts = attribute(attached, run, score).by_latent["attribution"].sort_values(ascending=False)
    orders = [
        torch.tensor(parts.index.to_numpy()),
        levels.argsort(descending=True),
        active[torch.randperm(len(active), generator=generator)],
    ]
    right = []
    for order in orders:
        for n in n_removed:
            without = latents.index_fill(2, order[:n], 0)
            change = attached.decode(without) - attached.decode(latents)
            answer = (run.output(run.target_btd + change) @ classifier).argmax()
            right.append(answer == label)
    return torch.stack(right).reshape(len(ways), len(n_removed))


explained = [images.record(i) for i in range(N_EXPLAINED)]
right = torch.stack([still_right(model.preprocess(r.load())[None], r.label) for r in explained])

# %% [markdown]
# Lines are means over images, bands 95 % bootstrap intervals over them. Of some hundred active latents a handful
# carries the answer, and attribution finds them. How active a latent is says far less, and as many at random change
# next to nothing.

# %%
import matplotlib.pyplot as plt
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean

share, low, high = bootstrap_mean(right.double().numpy())
figure, axes = plt.subplots(figsize=(6.4, 3.4), dpi=110, layout="constrained")
for row, way in enumerate(ways):
    axes.fill_between(n_removed, low[row], high[row], alpha=0.2, linewidth=0)
    axes.plot(n_removed, share[row], "o-", markersize=4, label=way)
axes.set_xscale("symlog", base=2, linthresh=1)
axes.set_xticks(n_removed, [str(n) for n in n_removed])
axes.set(xlabel="latents removed from one image", ylabel="still classified rightly", ylim=(0, 1.03))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## On how few latents does a class hang?
# The masking study of the PatchSAE paper asks it of whole classes: only a class's first k latents are kept,
# or only they are removed. Latents are ranked on other images than those that are scored.

# %%
from vit_sae_plugin.evaluation.masking_study import masking_study
from vit_sae_plugin.report.masking_plot import plot_masking

result = masking_study(
    model,
    sae,
    images,
    ranking=open_images(f"shapes:train?n_images={N_RANKING}&n_objects=1"),
    templates="shapes",
    ks=KS,
    n_draws=1 if SHORT else 3,
    error_terms=(False,),
)
accuracy = result.overall()
plot_masking(accuracy)

# %% [markdown]
# Ten of 1,024 latents removed, in numbers (accuracy, with its 95 % interval over images). Those that are a class's
# own take most of its accuracy; the data set's strongest, or random ones, take none that these images could show. To
# *keep* a class takes many more, for the blocks above then lack all that images have in common, too. One SAE of
# one small CLIP: on others measure anew.

# %%
import pandas as pd

ten = accuracy.xs(("off", 10), level=("mask", "k"))
pd.DataFrame(
    {
        "ten latents removed": [
            f"{row.accuracy:.1%} ({row.low:.1%} to {row.high:.1%})" for row in ten.itertuples()
        ]
    },
    index=pd.Index(ten.index.get_level_values("ranking"), name="ranked"),
)
