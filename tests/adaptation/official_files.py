"""Checkpoints in the layout of MaPLe's and CoOp's code, made by hand for the tiny CLIP."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from vit_sae_plugin.hooked_vit import HookedViT

N_PROMPTS = 2


class Scheduler:
    """Stands for the learning-rate schedule that Dassl pickles whole into its checkpoints."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.last_epoch = 5


def randn(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_classes(clip: HookedViT, texts: list[str], n_prompts: int) -> dict[str, Tensor]:
    """What the checkpoints keep of the class names: embeddings around the prompt."""
    rows = clip.bare_model.token_embedding.weight.detach()[clip.tokenizer(texts)]
    return {"token_prefix": rows[:, :1].half(), "token_suffix": rows[:, 1 + n_prompts :].half()}


def maple_state(clip: HookedViT, class_names: list[str], depth: int = 3) -> dict[str, Tensor]:
    """The state dict of a MaPLe model; its frozen weights are in 16 bits, as CLIP's are there."""
    d_text, d_vision = clip.bare_model.token_embedding.weight.shape[1], clip.cfg.d_model
    texts = [f"a photo of a {name}." for name in class_names]
    learner = {
        "ctx": randn(N_PROMPTS, d_text, seed=1).half(),
        **of_classes(clip, texts, N_PROMPTS),
        "proj.weight": randn(d_vision, d_text, seed=2).half(),
        "proj.bias": randn(d_vision, seed=3).half(),
    }
    for i in range(depth - 1):
        learner[f"compound_prompts_text.{i}"] = randn(N_PROMPTS, d_text, seed=10 + i)
    for i in range(depth - 1):
        weight, bias = randn(d_vision, d_text, seed=20 + i), randn(d_vision, seed=30 + i)
        learner[f"compound_prompt_projections.{i}.weight"] = weight
        learner[f"compound_prompt_projections.{i}.bias"] = bias
    state = OrderedDict((f"prompt_learner.{name}", tensor) for name, tensor in learner.items())
    for name, tensor in clip.bare_model.state_dict().items():
        stored = tensor.half() if tensor.ndim > 1 else tensor
        if name.startswith("visual."):
            state[f"image_encoder.{name.removeprefix('visual.')}"] = stored
        elif name.startswith(("transformer.", "ln_final.")) or name in (
            "positional_embedding",
            "text_projection",
        ):
            state[f"text_encoder.{name}"] = stored
        elif name == "logit_scale":
            state[name] = stored
    return state


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """A whole training checkpoint, pickled optimizer and schedule included."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    content = {
        "state_dict": state,
        "epoch": 5,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": Scheduler(optimizer), "last_epoch": 5},
        "val_result": None,
    }
    torch.save(content, path)
    return path


def rounded(clip: HookedViT) -> HookedViT:
    """The model with weights that 16 bits can hold, as OpenAI's are."""
    with torch.no_grad():
        for parameter in clip.bare_model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    return clip
