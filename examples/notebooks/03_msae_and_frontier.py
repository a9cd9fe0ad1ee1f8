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
# # A Matryoshka SAE, and sparsity against fidelity
# A Matryoshka SAE reads pooled embeddings and can be cut to any number of latents after training. How does
# it compare with TopK SAEs that were trained for one k?
#
# [Open in Colab](https://colab.research.google.com/github/vit-sae-plugin/vit-sae-plugin/blob/main/examples/notebooks/03_msae_and_frontier.ipynb)
# · made from `03_msae_and_frontier.py` by `python scripts/make_notebooks.py`

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
from vit_sae_plugin import HookedViT, open_images
from vit_sae_plugin.activations import embed_images

model = HookedViT.from_pretrained("shapes-clip")
n_train, n_test = (600, 300) if SHORT else (8000, 2000)
train = embed_images(model, open_images(f"shapes:train?n_images={n_train}"))
test = embed_images(model, open_images(f"shapes:test?n_images={n_test}"))
train.save("runs/train.npy")
train, test

# %% [markdown]
# ## One Matryoshka SAE, three TopK ones
# Embeddings are centred and scaled by the training split; the two numbers stay with the SAE.

# %%
import shutil

from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from vit_sae_plugin import MatryoshkaTopKTrainingSAEConfig, ViTSAERunnerConfig, ViTSAETrainingRunner

D_IN, D_SAE = 128, 1024
members = {
    "MSAE": MatryoshkaTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k_start=2, level_weights="reverse"
    ),
    **{f"TopK k={k}": TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=k) for k in (4, 8, 16)},
}
n_steps = 30 if SHORT else 600
for name, sae_cfg in members.items():
    cfg = ViTSAERunnerConfig(
        sae_cfg,
        embeddings_path="runs/train.npy",
        standardize_embeddings=True,
        model_name="shapes-clip",
        hook_name="hook_image_embed",
        training_tokens=n_steps * 256,
        train_batch_size_tokens=256,
        lr=5e-3,
        lr_decay_steps=n_steps // 5,
        output_path=f"runs/{name}",
        verbose=False,
    )
    shutil.rmtree(f"runs/{name}", ignore_errors=True)  # begin anew
    ViTSAETrainingRunner(cfg).run()

# %% [markdown]
# ## The frontier
# The Matryoshka SAE is one SAE at many sparsities: its line is *progressive recovery*.

# %%
from sae_lens import SAE
from vit_sae_plugin.evaluation import evaluate_embeddings

ks = [2, 4, 8, 16, 32, 64]
saes = {name: SAE.load_from_disk(f"runs/{name}/sae") for name in members}
msae = evaluate_embeddings(saes["MSAE"], test, k_list=ks)
msae.progressive_recovery.iloc[:, :6]

# %%
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3.4))
steps = msae.progressive_recovery
axis.plot(steps["l0"], steps["cosine_similarity"], "o-", label="one Matryoshka SAE, cut to k")
for name, sae in saes.items():
    if name != "MSAE":
        row = evaluate_embeddings(sae, test).embeddings.iloc[0]
        axis.plot(row["l0"], row["cosine_similarity"], "s", label=name)
axis.set(xscale="log", xlabel="active latents (L0)", ylabel="cosine similarity")
axis.legend(frameon=False)
figure

# %% [markdown]
# A TopK SAE trained for its k is the better one at that k; the Matryoshka SAE covers them all at once.
# On another model the order may differ: measure. `vit-sae frontier` draws this for any saved SAEs, with
# CKNNA, dead latents and a page.

# %%
image = model.preprocess(open_images("shapes:test?n_images=1").record(0).load())[None]
rows = saes["MSAE"].encode(model(image).detach(), k=8)
rows.count_nonzero().item(), saes["MSAE"].encode(model(image).detach()).count_nonzero().item()
