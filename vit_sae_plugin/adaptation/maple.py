"""MaPLe: deep prompts in both towers, the vision tower's made from the text tower's.

Khattak et al., *MaPLe: Multi-modal Prompt Learning* (CVPR 2023, arXiv 2210.03117), section 3.2.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import BaseModel, Insertion
from vit_sae_plugin.adaptation.prompted_text import (
    LearntTextHead,
    PromptedTokenizer,
    check_prompt_fits,
    first_prompt_rows,
    first_text_position,
    insert_text_prompts,
    prompt_template,
    text_parts,
)
from vit_sae_plugin.adaptation.prompted_vision import check_vision_prompts, insert_vision_prompts
from vit_sae_plugin.adaptation.prompts import CoupledPrompt, Prompt


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put MaPLe's prompts and coupling functions into a model.

    Saved are ``text_prompts.{i}`` ``[n_prompts, d_text]``, those that enter the text tower's block
    ``i``, and ``projections.{i}.weight`` and ``.bias``, which make the vision tower's of them.
    """
    tokenizer = base.require_tokenizer()
    parts = text_parts(base.module)
    check_vision_prompts(base.module, base.tower)
    n, depth = config.n_prompts or 0, config.depth or 0
    template = prompt_template(config.text_init, n)
    check_prompt_fits(tokenizer, template, n)
    d_text, d_vision = parts.width(base.module), base.width()
    first_rows = first_prompt_rows(base.module, parts, tokenizer, config.text_init, n, generator)
    rows = [first_rows] + [
        0.02 * torch.randn(n, d_text, generator=generator) for _ in range(depth - 1)
    ]
    texts = [Prompt(r.clone(), config.round_prompts_to_half) for r in rows]
    first_projection = _linear(d_text, d_vision, generator)
    # one layer's copies, so that all deep coupling functions begin alike
    deep = _linear(d_text, d_vision, generator)
    projections = [first_projection] + [copy.deepcopy(deep) for _ in range(depth - 1)]
    coupled = [CoupledPrompt(t, p) for t, p in zip(texts, projections, strict=True)]
    insert_text_prompts(base.module, parts, texts, first_text_position(tokenizer))
    tower = insert_vision_prompts(base.module, base.tower, coupled, n)
    base.module.class_head = LearntTextHead()
    parameters: dict[str, nn.Parameter] = {
        f"text_prompts.{i}": text.rows for i, text in enumerate(texts)
    }
    for i, projection in enumerate(projections):
        for name, value in projection.named_parameters():
            parameters[f"projections.{i}.{name}"] = value
    return Insertion(parameters, tower, PromptedTokenizer(tokenizer, template))


def _linear(d_in: int, d_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's usual first values, drawn from the generator."""
    layer = nn.Linear(d_in, d_out)
    bound = d_in**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
    return layer
