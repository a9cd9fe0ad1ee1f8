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
# # Your own photographs
# An SAE on photographs, and the objects of its report inline. Put your own pictures into a folder and say so
# below; without network the notebook takes the photographs that scikit-image and scikit-learn carry and
# a ViT with random weights, which shows the way, not what CLIP has learnt.
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/02_photographs.ipynb)
# · made from `02_photographs.py` by `python scripts/make_notebooks.py`

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

PHOTOS = "photos/"
MODEL, PRETRAINED = "ViT-B-32", None  # with a network: "openai"

if not Path(PHOTOS).is_dir():
    import numpy as np
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    pictures = {name: getattr(skimage.data, name)() for name in ("astronaut", "cat", "coffee")}
    pictures |= {Path(f).stem: p for f, p in zip(samples.filenames, samples.images, strict=True)}
    for name, picture in pictures.items():
        folder = Path(PHOTOS) / name
        folder.mkdir(parents=True)
        step = 150 if SHORT else 60
        for top in range(0, picture.shape[0] - 223, step):
            for left in range(0, picture.shape[1] - 223, step):
                crop = np.ascontiguousarray(picture[top : top + 224, left : left + 224])
                Image.fromarray(crop).save(folder / f"{top}_{left}.jpg")

# %%
from vit_sae_plugin import HookedViT, open_images

images = open_images(PHOTOS)
model = HookedViT.from_pretrained(MODEL, pretrained=PRETRAINED or False)
images, images.class_names

# %%
import shutil

from vit_sae_plugin import PatchTrainingSAEConfig, ViTSAERunnerConfig, ViTSAETrainingRunner

cfg = ViTSAERunnerConfig(
    PatchTrainingSAEConfig(d_in=768, d_sae=1536),
    model_name=MODEL,
    model_from_pretrained_kwargs={"pretrained": PRETRAINED or False},
    hook_name="blocks.5.hook_resid_post",
    dataset_path=PHOTOS,
    output_path="runs/photos",
    training_tokens=6_000 if SHORT else 60_000,
    train_batch_size_tokens=512,
    lr=5e-3,
    lr_warm_up_steps=5 if SHORT else 30,
    lr_decay_steps=5 if SHORT else 30,
    verbose=False,
)
shutil.rmtree("runs/photos", ignore_errors=True)  # begin anew
ViTSAETrainingRunner(cfg, override_model=model).run()

# %%
from sae_lens import SAE
from vit_sae_plugin import analyze

sae = SAE.load_from_disk("runs/photos/sae")
atlas = analyze(model, sae, images, folder="runs/photos/atlas", progress=False)
atlas

# %% [markdown]
# ## Latents, and the photographs that activate them

# %%
from vit_sae_plugin.report import plot_reference_images

live = atlas.latents.query("frequency > 0.05").sort_values(["is_dense", "label_entropy"])
chosen = live.index[:3].tolist()
plot_reference_images(model, sae, atlas, images, chosen)

# %% [markdown]
# ## One photograph
# Its strongest latents, and where they are.

# %%
from vit_sae_plugin import explain

index = images.n_images // 2
picture = images.record(index).load()
explanation = explain(model, sae, atlas, picture)
explanation.table.head()

# %%
from vit_sae_plugin import heatmap
from vit_sae_plugin.analysis import highlight, outline

strongest = explanation.table.index[:3].tolist()
maps = heatmap(model, sae, picture, strongest)
outline(list(maps), size=(336, 336))

# %%
highlight(maps[0], size=(336, 336))

# %% [markdown]
# ## The report
# All of this as pages to open from disk, send or zip: `runs/photos/report/index.html`.

# %%
from vit_sae_plugin import write_report

write_report(
    model, sae, atlas, images, "runs/photos/report", explain=[index], n_latents=40, progress=False
)
sorted(path.name for path in Path("runs/photos/report").iterdir())
