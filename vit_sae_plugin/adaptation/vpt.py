"""VPT-deep: learnt prompt tokens in the vision tower alone, new ones in front of every block.

Jia et al., *Visual Prompt Tuning* (ECCV 2022, arXiv 2203.12119), section 3.2, for a CLIP that
classifies by text prompts, as in MaPLe's comparisons.
"""

from __future__ import annotations

import torch

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import BaseModel, Insertion
from vit_sae_plugin.adaptation.prompted_vision import insert_vision_prompts
from vit_sae_plugin.adaptation.prompts import Prompt
from vit_sae_plugin.adaptation.template_head import TemplateHead


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put VPT's prompts into a model; saved are ``prompts.{i}`` ``[n_prompts, d_model]``, those in
    front of block ``i``."""
    tokenizer = base.require_tokenizer()
    n, depth = config.n_prompts or 0, config.depth or 0
    width = base.width()
    prompts = [
        Prompt(0.02 * torch.randn(n, width, generator=generator), config.round_prompts_to_half)
        for _ in range(depth)
    ]
    tower = insert_vision_prompts(base.module, base.tower, prompts, n)
    base.module.class_head = TemplateHead(config.templates, base.model_name)
    parameters = {f"prompts.{i}": prompt.rows for i, prompt in enumerate(prompts)}
    return Insertion(parameters, tower, tokenizer)
