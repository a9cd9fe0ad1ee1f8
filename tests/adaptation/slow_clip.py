"""MaPLe and CoOp computed from nothing but the tensors of a checkpoint, one head at a time.

An independent second way, in 64 bits: it shares no code with the package, nor open_clip's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def half(x: Tensor) -> Tensor:
    return x.float().half().double()


def norm(x: Tensor, state: State, at: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{at}.weight"] + state[f"{at}.bias"]


def attention(x: Tensor, state: State, at: str, d_head: int, causal: bool) -> Tensor:
    n, width = x.shape
    weight, bias = state[f"{at}.in_proj_weight"], state[f"{at}.in_proj_bias"]
    q, k, v = ((x @ weight.T + bias)[:, i * width : (i + 1) * width] for i in range(3))
    heads = []
    for start in range(0, width, d_head):
        one = slice(start, start + d_head)
        scores = torch.zeros(n, n, dtype=x.dtype)
        for i in range(n):
            for j in range(n):
                allowed = j <= i or not causal
                scores[i, j] = q[i, one] @ k[j, one] / math.sqrt(d_head) if allowed else -1e30
        pattern = (scores - scores.max(-1, keepdim=True).values).exp()
        heads.append(pattern / pattern.sum(-1, keepdim=True) @ v[:, one])
    return torch.cat(heads, 1) @ state[f"{at}.out_proj.weight"].T + state[f"{at}.out_proj.bias"]


def block(x: Tensor, state: State, at: str, d_head: int, causal: bool) -> Tensor:
    x = x + attention(norm(x, state, f"{at}.ln_1"), state, f"{at}.attn", d_head, causal)
    hidden = norm(x, state, f"{at}.ln_2") @ state[f"{at}.mlp.c_fc.weight"].T
    hidden = hidden + state[f"{at}.mlp.c_fc.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + hidden @ state[f"{at}.mlp.c_proj.weight"].T + state[f"{at}.mlp.c_proj.bias"]


def image_embedding(pixels: Tensor, state: State, d_head: int, prompts: list[Tensor]) -> Tensor:
    """One image's embedding; ``prompts[i]`` enter block ``i`` behind the patches."""
    at = "image_encoder"
    kernel = state[f"{at}.conv1.weight"]
    size = kernel.shape[-1]
    rows = [state[f"{at}.class_embedding"]]
    for top in range(0, pixels.shape[1], size):
        for left in range(0, pixels.shape[2], size):
            patch = pixels[:, top : top + size, left : left + size]
            rows.append((kernel * patch).sum((1, 2, 3)))
    x = torch.stack(rows) + state[f"{at}.positional_embedding"]
    n = len(x)
    x = norm(torch.cat([x, *prompts[:1]]), state, f"{at}.ln_pre")
    for layer in range(n_blocks(state, at)):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:n], prompts[layer]])
        x = block(x, state, f"{at}.transformer.resblocks.{layer}", d_head, causal=False)
    return norm(x[0], state, f"{at}.ln_post") @ state[f"{at}.proj"]


def text_embedding(
    embedded: Tensor, end: int, state: State, d_head: int, deep: list[Tensor]
) -> Tensor:
    """One text's embedding; ``deep[i]`` replace positions 1 and on in front of block ``i + 1``."""
    at = "text_encoder"
    x = embedded + state[f"{at}.positional_embedding"]
    for layer in range(n_blocks(state, at)):
        if 0 < layer <= len(deep):
            prompt = deep[layer - 1]
            x = torch.cat([x[:1], prompt, x[1 + len(prompt) :]])
        x = block(x, state, f"{at}.transformer.resblocks.{layer}", d_head, causal=True)
    return norm(x[end], state, f"{at}.ln_final") @ state[f"{at}.text_projection"]


def n_blocks(state: State, at: str) -> int:
    return sum(
        name.startswith(f"{at}.transformer.resblocks.") and name.endswith("ln_1.bias")
        for name in state
    )


def maple_logits(pixels: Tensor, state: State, ends: list[int], d_heads: tuple[int, int]) -> Tensor:
    """Logits ``[image, class]`` of a MaPLe model.

    Args:
        pixels: ``[image, 3, height, width]``.
        state: the checkpoint's state dict.
        ends: where each class's text has its end token.
        d_heads: width of a head of the vision and of the text tower.
    """
    state = {name: tensor.double() for name, tensor in state.items()}
    learner = "prompt_learner"
    deep = []
    while f"{learner}.compound_prompts_text.{len(deep)}" in state:
        deep.append(state[f"{learner}.compound_prompts_text.{len(deep)}"])
    ctx = state[f"{learner}.ctx"]
    vision = [ctx @ state[f"{learner}.proj.weight"].T + state[f"{learner}.proj.bias"]]
    for i, prompt in enumerate(deep):
        at = f"{learner}.compound_prompt_projections.{i}"
        vision.append(prompt @ state[f"{at}.weight"].T + state[f"{at}.bias"])
    prefix, suffix = state[f"{learner}.token_prefix"], state[f"{learner}.token_suffix"]
    texts = []
    for number, end in enumerate(ends):
        embedded = torch.cat([prefix[number], half(ctx), suffix[number]])
        texts.append(text_embedding(embedded, end, state, d_heads[1], [half(p) for p in deep]))
    images = [image_embedding(p, state, d_heads[0], [half(v) for v in vision]) for p in pixels]
    return cosine_logits(images, texts, state["logit_scale"])


def coop_logits(
    pixels: Tensor, state: State, clip_state: State, ends: list[int], d_heads: tuple[int, int]
) -> Tensor:
    """Logits of a CoOp model; the CLIP's weights are named as in MaPLe's checkpoints."""
    state = {name: tensor.double() for name, tensor in state.items()}
    clip_state = {name: tensor.double() for name, tensor in clip_state.items()}
    texts = [
        text_embedding(
            torch.cat([prefix, half(state["ctx"]), suffix]), end, clip_state, d_heads[1], []
        )
        for prefix, suffix, end in zip(
            state["token_prefix"], state["token_suffix"], ends, strict=True
        )
    ]
    images = [image_embedding(p, clip_state, d_heads[0], []) for p in pixels]
    return cosine_logits(images, texts, clip_state["logit_scale"])


def cosine_logits(images: list[Tensor], texts: list[Tensor], log_scale: Tensor) -> Tensor:
    image, text = torch.stack(images), torch.stack(texts)
    image = image / image.norm(dim=1, keepdim=True)
    text = text / text.norm(dim=1, keepdim=True)
    return log_scale.exp() * image @ text.T
