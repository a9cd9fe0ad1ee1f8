"""A run of SAELens's own text runner on a tiny random language model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig

D_MODEL = 16


def train_on_text(
    sae_config: TrainingSAEConfig, folder: Path
) -> tuple[TrainingSAE[Any], TrainingSAE[Any], torch.Tensor]:
    """The SAE before and after training, both in evaluation mode, and rows to try them on."""
    torch.manual_seed(0)
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=D_MODEL, n_ctx=16, d_head=8, n_heads=2, d_vocab=50, act_fn="gelu"
        )
    )
    tokens = torch.randint(50, (400, 16), generator=torch.Generator().manual_seed(0))
    cfg = LanguageModelSAERunnerConfig(
        sae=sae_config,
        hook_name="blocks.0.hook_resid_post",
        context_size=16,
        prepend_bos=False,
        training_tokens=8192,
        train_batch_size_tokens=128,
        store_batch_size_prompts=8,
        n_batches_in_buffer=32,
        n_eval_batches=1,
        lr=0.01,
        dead_feature_window=16,
        checkpoint_path=None,
        output_path=str(folder),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    runner = LanguageModelSAETrainingRunner(
        cfg,
        override_model=model,
        override_dataset=Dataset.from_dict({"tokens": tokens.tolist()}),
    )
    untrained = copy.deepcopy(runner.sae).eval()
    trained = runner.run().eval()
    _, cache = model.run_with_cache(tokens[:20])
    return untrained, trained, cache["blocks.0.hook_resid_post"].flatten(0, 1)
