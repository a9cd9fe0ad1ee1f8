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
# # 3 · A Matryoshka SAE, and sparsity against fidelity
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/03_msae_and_frontier.ipynb)
#
# A TopK SAE is trained for one number of active latents. A Matryoshka SAE (MSAE) is trained for many at once
# and cut to any of them afterwards. What does that buy, and what does it cost? Both are trained here on the
# pooled embeddings of a small CLIP, three seeds each, and drawn against each other.

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
N_TRAIN, N_TEST = (600, 300) if SHORT else (10_000, 2_000)  # images
N_STEPS = 30 if SHORT else 500  # batches of 256 embeddings
SEEDS = (0,) if SHORT else (0, 1, 2)

# %% [markdown]
# ## Embeddings
# They are computed once and kept in a file, from which all SAEs train. Your own embeddings, of any model, can
# take its place: a `.npy` with a row an image.

# %%
from vit_sae_plugin import HookedViT, open_images
from vit_sae_plugin.activations import embed_images

model = HookedViT.from_pretrained("shapes-clip")
train, test = (
    embed_images(model, open_images(f"shapes:{split}?n_images={n}"), progress=False)
    for split, n in (("train", N_TRAIN), ("test", N_TEST))
)
train.save("runs/train.npy")
train, test

# %% [markdown]
# ## One Matryoshka SAE, three TopK SAEs
# Each of 1,024 latents, 8 times the width of an embedding, trained equally long. Embeddings are centred and
# scaled by the training split; the two numbers stay with the SAE.

# %%
import shutil

from sae_lens import SAE
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from vit_sae_plugin import MatryoshkaTopKTrainingSAEConfig, ViTSAERunnerConfig, ViTSAETrainingRunner

sizes = {"d_in": 128, "d_sae": 1024}
architectures = {
    "MSAE": MatryoshkaTopKTrainingSAEConfig(**sizes, k_start=2, level_weights="reverse"),
    "TopK k=4": TopKTrainingSAEConfig(**sizes, k=4),
    "TopK k=16": TopKTrainingSAEConfig(**sizes, k=16),
    "TopK k=64": TopKTrainingSAEConfig(**sizes, k=64),
}


def train_one(name: str, seed: int) -> SAE:
    folder = f"runs/{name}-{seed}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)  # begin anew
    cfg = ViTSAERunnerConfig(
        architectures[name],
        embeddings_path="runs/train.npy",
        standardize_embeddings=True,
        model_name="shapes-clip",
        hook_name="hook_image_embed",
        training_tokens=N_STEPS * 256,
        train_batch_size_tokens=256,
        lr=3e-3,
        lr_decay_steps=N_STEPS // 5,
        seed=seed,
        output_path=folder,
        verbose=False,
    )
    ViTSAETrainingRunner(cfg).run()
    return SAE.load_from_disk(f"{folder}/sae")


saes = {name: [train_one(name, seed) for seed in SEEDS] for name in architectures}

# %% [markdown]
# ## The frontier
# Triangles are TopK SAEs at the k they were trained for. The other two lines are SAEs cut to fewer latents after
# training (*progressive recovery*): the Matryoshka SAE, and as a control the TopK SAE of k = 64, which was never
# taught to be cut. Means over seeds; bands and bars reach from the lowest to the highest, and are hardly wider than
# the lines.

# %%
from vit_sae_plugin.evaluation import evaluate_embeddings
from vit_sae_plugin.report.recovery_plots import plot_frontier

ks = [2, 4, 8, 16, 32, 64]
reports = {
    name: [evaluate_embeddings(sae, test, k_list=ks) for sae in of_seeds]
    for name, of_seeds in saes.items()
}
cut = {f"{name}, cut": reports[name] for name in ("MSAE", "TopK k=64")}
points = {name: of_seeds for name, of_seeds in reports.items() if name != "MSAE"}
plot_frontier(
    cut | points, metrics=("cosine_similarity", "fvu"), curves={"MSAE, cut", "TopK k=64, cut"}
)

# %% [markdown]
# ## At one sparsity, image by image
# How much closer is the Matryoshka SAE's reconstruction, cut to k, than that of the TopK SAE trained for this k,
# and than that of the TopK SAE of k = 64 cut to it? The mean difference in cosine similarity over the same test
# images, averaged over seeds, with its 95 % bootstrap interval over images.
#
# At the smallest k the Matryoshka SAE pays for being all at once; from 16 on it is as good as the SAE that was trained
# for that k alone, or better. A TopK SAE that is cut loses far more: order among latents has to be learnt. That is
# so for this model and these settings; `vit-sae frontier` draws the same for SAEs of your own.

# %%
import numpy as np
import pandas as pd
import torch
from vit_sae_plugin.attached_sae import RowCoder
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean

rows = torch.as_tensor(np.asarray(test.rows), dtype=torch.float32)


@torch.no_grad()
def cosines(name: str, k: int) -> np.ndarray:
    coders = [RowCoder(sae) for sae in saes[name]]
    of_seeds = [
        torch.cosine_similarity(coder.decode(coder.encode(rows, k)), rows, dim=-1)
        for coder in coders
    ]
    return torch.stack(of_seeds).mean(0).numpy()


def difference(k: int, other: str) -> str:
    mean, low, high = bootstrap_mean(cosines("MSAE", k) - cosines(other, k))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


pd.DataFrame(
    {
        "less the TopK SAE trained for it": [difference(k, f"TopK k={k}") for k in (4, 16, 64)],
        "less TopK k=64, cut": [difference(k, "TopK k=64") for k in (4, 16, 64)],
    },
    index=pd.Index([4, 16, 64], name="k"),
)

# %% [markdown]
# In use, `k` is chosen when an image is encoded:

# %%
embeds = model.encode_image(model.preprocess(open_images("shapes:test").record(0).load())[None])
{k: int(saes["MSAE"][0].encode(embeds, k=k).count_nonzero()) for k in (4, 16, 64)}
