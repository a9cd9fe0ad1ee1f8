"""CoOp: learnt context tokens in front of the class name, in the text tower alone.

Zhou et al., *Learning to Prompt for Vision-Language Models* (IJCV 2022, arXiv 2109.01134); one
context for all classes, which ends with the class name.
"""

from __future__ import annotations

import torch

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
from vit_sae_plugin.adaptation.prompts import Prompt


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put CoOp's context into a model; saved is ``context`` ``[n_prompts, d_text]``."""
    tokenizer = base.require_tokenizer()
    parts = text_parts(base.module)
    n = config.n_prompts or 0
    template = prompt_template(config.text_init, n)
    check_prompt_fits(tokenizer, template, n)
    rows = first_prompt_rows(base.module, parts, tokenizer, config.text_init, n, generator)
    context = Prompt(rows, config.round_prompts_to_half)
    insert_text_prompts(base.module, parts, [context], first_text_position(tokenizer))
    base.module.class_head = LearntTextHead()
    return Insertion({"context": context.rows}, base.tower, PromptedTokenizer(tokenizer, template))
