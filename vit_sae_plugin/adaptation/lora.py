"""LoRA: low-rank changes of the vision tower's attention, made by `peft`.

Hu et al., *LoRA* (ICLR 2022, arXiv 2106.09685). Once trained, or loaded, they are added to the
weights: hooks, and the views of weights such as ``W_Q``, then show the adapted layers themselves.
"""

from __future__ import annotations

import torch
from torch import nn

from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import BaseModel, Insertion
from vit_sae_plugin.adaptation.template_head import TemplateHead


def insert(
    base: BaseModel,
    config: AdaptationConfig,
    class_names: list[str],
    generator: torch.Generator,
) -> Insertion:
    """Put LoRA layers into the attention of every block of the vision tower.

    Saved are ``{path}.A`` ``[rank, d_in]`` and ``{path}.B`` ``[d_out, rank]`` of each layer, by
    its path in the model.

    Raises:
        ImportError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ImportError(
            "LoRA needs peft, which is not installed; install it with: pip install "
            "'vit-sae-plugin[adapt]'"
        ) from None
    tokenizer = base.require_tokenizer()
    targets = _attention_layers(base)
    settings = LoraConfig(
        r=config.lora_rank or 1,
        lora_alpha=config.lora_alpha or 1,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,
    )
    training = base.module.training
    layers = LoraModel(base.module, settings, "default")
    base.module.train(training)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in base.module.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            path, _, letter = name.removesuffix(".default.weight").rpartition(".lora_")
            parameters[f"{path}.{letter}"] = parameter
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(".A"):
                bound = parameter.shape[1] ** -0.5
                drawn = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.copy_(drawn * bound)
            else:
                parameter.zero_()
    base.module.class_head = TemplateHead(config.templates, base.model_name)

    def add_to_weights() -> None:
        layers.merge_and_unload()

    return Insertion(parameters, base.tower, tokenizer, add_to_weights)


def _attention_layers(base: BaseModel) -> list[str]:
    """The paths of the layers that compute queries, keys and values, and of the last one."""
    attention = base.tower.block.attention
    if attention is None:
        raise ValueError(
            f"LoRA finds no attention layers in this model ({base.tower.family}): "
            f"{base.tower.block.attention_missing}; want another method, such as 'linear_probe'"
        )
    blocks = base.module.get_submodule(base.tower.blocks)
    if attention.packed is not None:
        packed = blocks[0].get_submodule(attention.packed)
        if not isinstance(packed, nn.MultiheadAttention):
            raise ValueError(
                f"LoRA can't change a {type(packed).__name__}, which keeps its projections in one "
                "tensor; want a model with torch's MultiheadAttention or with linear layers, or "
                "another method"
            )
    inner = (
        [attention.packed]
        if attention.packed is not None
        else [attention.qkv, attention.q, attention.k, attention.v, attention.out_proj]
    )
    return [
        f"{base.tower.blocks}.{block}.{path}" for block in blocks._modules for path in inner if path
    ]
