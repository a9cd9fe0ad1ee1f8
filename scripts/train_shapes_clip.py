"""Train ``shapes-clip``, the small CLIP that ships with the package, on shape scenes.

    python scripts/train_shapes_clip.py

writes an open_clip ``local-dir:`` folder: config, tokenizer of its own small vocabulary, and
safetensors weights. Three losses are added:

- **Contrastive, image against caption** (Radford et al. 2021), with soft targets: which captions
  are true of which images is known, so "a red circle" counts as right for every image that has one.
- **Naming, image against phrase**: the same against all 64 phrases "red circle" …, in one of the
  published prompt templates, and against the single words for shape, colour, size and texture.
  Everything that is in the image counts as right.
- **Dense, patch against phrase**: each patch token of the last block goes through the model's own
  final norm and projection and is compared with the same phrases, and with "background". The
  class token alone could carry the scene; this makes the patch tokens say what they show. Nothing
  is thrown away afterwards: the loss uses only modules that the model has anyhow.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from vit_sae_plugin.datasets.shape_captions import (
    OPENINGS,
    article,
    describe,
    write_caption,
)
from vit_sae_plugin.datasets.shape_drawing import COLORS, IMAGE_SIZE, SHAPES, SIZES, TEXTURES
from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES, Scene, ShapeScenes

PATCH_SIZE = 8
N_LAYERS = 4
WIDTH = 128
CONTEXT_LENGTH = 40
EXTRA_WORDS = [
    "object",
    "shape",
    "something",
    "background",
    "none",
    "this",
    "that",
    "one",
    "two",
    "three",
]
# "large" and "small" are facts about a scene here, not part of a template.
TEMPLATES = [
    template
    for template in OPENAI_IMAGENET_TEMPLATES
    if not {"large", "small"} & set(template("").split())
]
FACTORS = [list(SHAPES), list(COLORS), list(SIZES), list(TEXTURES)]
NAMED_FACTORS = [SCENE_CLASS_NAMES, *FACTORS]
FACTOR_WEIGHTS = [1.0, 1.0, 0.5, 0.25, 0.5]
BACKGROUND, UNLABELLED = len(SCENE_CLASS_NAMES), -100
MIN_COVERAGE = 0.15  # a patch that an object covers less has no label


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of every word that captions and prompt templates use.

    The end token has the highest id, because open_clip pools the text at the highest id.
    """
    words: set[str] = set(EXTRA_WORDS) | {word for factor in FACTORS for word in factor}
    for text in [*OPENINGS, *(template(" ") for template in OPENAI_IMAGENET_TEMPLATES)]:
        words.update(word for word, _ in Whitespace().pre_tokenize_str(text.lower()))
    words.update(
        ["a", "an", "and", "left", "right", "of", "above", "below", "on", "light", "dark", "."]
    )
    names = ["<pad>", "<unk>", "<start>", *sorted(words), "<end>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=CONTEXT_LENGTH,
    )


def make_config(vocab_size: int) -> dict:
    """The folder's ``open_clip_config.json``."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "width": WIDTH,
                "head_width": 32,
                "layers": N_LAYERS,
                "mlp_ratio": 4.0,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocab_size,
                "hf_tokenizer_name": "shapes-clip",
                "width": 128,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
    }


class CaptionWriter:
    """True sentences about a scene, and what each of them claims."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def below(self, n: int) -> int:
        return int(self._rng.integers(n))

    def name_all(self) -> list[str]:
        """Every class in one random template, every factor's words, and "background"."""
        template = TEMPLATES[self.below(len(TEMPLATES))]
        frame = ("{}", "something {}", "a {} shape")[self.below(3)]
        words = [word for factor in FACTORS for word in factor]
        return [
            *(template(name) for name in SCENE_CLASS_NAMES),
            *(word if word in SHAPES else frame.format(word) for word in words),
            "background",
        ]

    def write(self, scene: Scene) -> tuple[str, np.ndarray]:
        """A caption and its claims ``[4, 4]``.

        Rows 0 to 2 each ask for an object by shape, colour, size and texture index (−1: any);
        row 3 starts with the background (0 dark, 1 light, −1 any).
        """
        claims = np.full((4, 4), -1)
        kind = self.below(10)
        if kind < 4:
            text = write_caption(scene.objects, scene.background, self.below)
            words = set(text.split())
            for row, thing in enumerate(scene.objects):
                claims[row] = facts(thing)
            # A size or texture that the caption leaves out is no claim; where two objects share
            # the word, both claim it, which is true of the scene all the same.
            for column, names in ((2, list(SIZES)), (3, TEXTURES)):
                for row in range(len(scene.objects)):
                    if names[claims[row, column]] not in words:
                        claims[row, column] = -1
            if text.endswith("background"):
                claims[3, 0] = scene.background == "light"
            return text, claims
        thing = scene.objects[self.below(len(scene.objects))]
        if kind < 8:
            name = f"{thing.color} {thing.shape}"
            claims[0, :2] = facts(thing)[:2]
            template = TEMPLATES[self.below(len(TEMPLATES))]
            return (name, article(name), template(name), template(name))[self.below(4)], claims
        if kind == 8:
            claims[0] = facts(thing)
            phrase = describe(thing, with_size=True, with_texture=True)
            return OPENINGS[self.below(len(OPENINGS))] + article(phrase), claims
        column = self.below(4)
        claims[0, column] = facts(thing)[column]
        word = FACTORS[column][claims[0, column]]
        if column == 0:
            return (word, article(word))[self.below(2)], claims
        return (word, f"{article(word)} shape", f"something {word}")[self.below(3)], claims


def facts(thing) -> list[int]:
    """Shape, colour, size and texture index of an object."""
    values = (thing.shape, thing.color, thing.size, thing.texture)
    return [names.index(value) for names, value in zip(FACTORS, values, strict=True)]


def patch_labels(scene: Scene) -> np.ndarray:
    """Class, shape, colour, size and texture index of each patch's object, ``[64, 5]``.

    Patches that show no object have the class ``BACKGROUND``; everything else is ``UNLABELLED``.
    """
    coverage = scene.patch_coverage(PATCH_SIZE)
    labels = np.full((*coverage.shape[1:], 5), UNLABELLED)
    labels[~coverage.any(axis=0), 0] = BACKGROUND
    owner = coverage.argmax(axis=0)
    for number, thing in enumerate(scene.objects):
        labels[(owner == number) & (coverage[number] >= MIN_COVERAGE)] = [
            thing.label,
            *facts(thing),
        ]
    return labels.reshape(-1, 5)


class Batches:
    """Endless training batches."""

    def __init__(self, batch_size: int, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self.scenes = ShapeScenes(10**9, seed=seed, split="train")
        self.batch_size = batch_size
        self.writer = CaptionWriter(seed)
        self.tokenizer = tokenizer
        self.position = 0

    def next(self) -> dict[str, Any]:
        first, self.position = self.position, self.position + self.batch_size
        scenes = [self.scenes.scene(index) for index in range(first, self.position)]
        objects = np.full((len(scenes), 3, 4), -2)
        for row, scene in enumerate(scenes):
            for column, thing in enumerate(scene.objects):
                objects[row, column] = facts(thing)
        texts, claims = zip(*(self.writer.write(scene) for scene in scenes), strict=True)
        pixels = np.stack([np.asarray(scene.image) for scene in scenes])
        names_shown = [torch.zeros(len(scenes), len(names)) for names in NAMED_FACTORS]
        for row, scene in enumerate(scenes):
            for thing in scene.objects:
                for shown, value in zip(names_shown, (thing.label, *facts(thing)), strict=True):
                    shown[row, value] = 1.0
        return {
            "names_shown": names_shown,
            "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
            "tokens": tokenize(self.tokenizer, list(texts)),
            "is_true": truth(
                torch.from_numpy(objects),
                torch.tensor([scene.background == "light" for scene in scenes]).long(),
                torch.from_numpy(np.stack(claims)),
            ),
            "patch_labels": torch.from_numpy(np.stack([patch_labels(s) for s in scenes])),
        }


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Token ids, padded to the longest text only: what follows the end token has no influence."""
    return tokenizer(texts, return_tensors="pt", padding=True).input_ids


def truth(objects: torch.Tensor, is_light: torch.Tensor, claims: torch.Tensor) -> torch.Tensor:
    """``[image, caption]``: whether every claim of the caption holds in the image."""
    wanted = claims[None, :, :3, None, :]  # image, caption, claim, object, factor
    found = ((wanted == -1) | (wanted == objects[:, None, None])).all(-1).any(-1)
    is_empty = (claims[None, :, :3] == -1).all(-1)
    background = claims[None, :, 3, 0]
    return (found | is_empty).all(-1) & ((background == -1) | (background == is_light[:, None]))


def encode_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """``model.encode_text``, normalised, for texts shorter than the context."""
    length = tokens.shape[1]
    stream = model.token_embedding(tokens) + model.positional_embedding[:length]
    stream = model.ln_final(model.transformer(stream, attn_mask=model.attn_mask[:length, :length]))
    pooled = stream[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
    return functional.normalize(pooled @ model.text_projection, dim=-1)


def losses(model: open_clip.CLIP, batch: dict, phrase_tokens: torch.Tensor) -> dict:
    """The three objectives."""
    images, patches = model.visual((batch["pixels"] - 0.5) / 0.3)
    texts, phrases = encode_text(model, batch["tokens"]), encode_text(model, phrase_tokens)
    scale = model.logit_scale.exp()
    images = scale * functional.normalize(images, dim=-1)
    is_true = batch["is_true"].float()
    contrastive = (
        functional.cross_entropy(images @ texts.T, is_true / is_true.sum(1, keepdim=True))
        + functional.cross_entropy(texts @ images.T, (is_true / is_true.sum(0, keepdim=True)).T)
    ) / 2
    sizes = [len(names) for names in NAMED_FACTORS]
    *named, background = phrases.split([*sizes, 1])
    naming, dense = torch.zeros(()), torch.zeros(())
    labels = batch["patch_labels"].flatten(0, 1)
    # Most patches are background: an eighth of them is enough.
    keep = (labels[:, 0] != BACKGROUND) | (torch.rand(len(labels)) < 0.125)
    keep &= labels[:, 0] != UNLABELLED
    labels = labels[keep]
    tokens = functional.normalize(patches.flatten(0, 1)[keep] @ model.visual.proj, dim=-1)
    for number, (vectors, shown, weight) in enumerate(
        zip(named, batch["names_shown"], FACTOR_WEIGHTS, strict=True)
    ):
        target = shown / shown.sum(1, keepdim=True)
        naming = naming + weight * functional.cross_entropy(images @ vectors.T, target)
        if number == 0:
            vectors = torch.cat([vectors, background])
        dense = dense + weight * functional.cross_entropy(
            scale * tokens @ vectors.T, labels[:, number], ignore_index=UNLABELLED
        )
    return {"contrastive": contrastive, "naming": naming, "dense": dense}


def place_waves() -> torch.Tensor:
    """Where position embeddings start: sines and cosines of row and column, ``[65, WIDTH]``.

    Neighbours start out alike, so that attention to nearby patches need not be found from noise.
    """
    side = IMAGE_SIZE // PATCH_SIZE
    frequencies = math.pi / side * 2.0 ** torch.linspace(-1, 3, WIDTH // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    patches = torch.cat([rows, columns], dim=2).reshape(side * side, WIDTH)
    return torch.cat([torch.zeros(1, WIDTH), patches])


def make_optimizers(model: open_clip.CLIP, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = {
        name: parameter
        for name, parameter in model.named_parameters()
        if "resblocks" in name and parameter.ndim == 2
    }
    others = [p for name, p in model.named_parameters() if name not in inside]
    return [
        # Updates of the same size as AdamW's, so that both share one learning rate.
        torch.optim.Muon(inside.values(), lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def zero_shot_accuracy(model: open_clip.CLIP, tokenizer: PreTrainedTokenizerFast, n: int) -> float:
    """64-way accuracy on held-out scenes of one object, with the prompt "a photo of a …"."""
    source = ShapeScenes(n, n_objects=1, seed=1, split="test")
    texts = encode_text(
        model, tokenize(tokenizer, [f"a photo of a {c}." for c in SCENE_CLASS_NAMES])
    )
    scenes = [source.scene(index) for index in range(n)]
    pixels = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes]))
    images, _ = model.visual((pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.3)
    labels = torch.tensor([scene.label for scene in scenes])
    return float(((images @ texts.T).argmax(-1) == labels).float().mean())


def save(model: open_clip.CLIP, tokenizer: PreTrainedTokenizerFast, config: dict, folder: Path):
    """Write the folder; weights in half precision, which open_clip reads into float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-images", type=int, default=150_000, help="scenes to train on")
    parser.add_argument("--output", type=Path, default=Path("vit_sae_plugin/shapes_clip"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    config = make_config(len(tokenizer))
    model = open_clip.CLIP(**json.loads(json.dumps(config["model_cfg"])))
    model.visual.output_tokens = True
    model.visual.positional_embedding.data = place_waves()
    optimizers = make_optimizers(model, args.lr)
    batches = Batches(args.batch_size, args.seed, tokenizer)
    started, last_report = time.perf_counter(), 0.0
    n_steps = args.n_images // args.batch_size
    for step in range(n_steps):
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate
        terms = losses(model, batches.next(), tokenize(tokenizer, batches.writer.name_all()))
        loss = sum(terms.values())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if time.perf_counter() - last_report > 60:
            last_report = time.perf_counter()
            accuracy = zero_shot_accuracy(model, tokenizer, 512)
            figures = ", ".join(
                f"{name} {float(value.detach()):.3f}" for name, value in terms.items()
            )
            seconds = time.perf_counter() - started
            print(
                f"{seconds:5.0f} s  step {step} of {n_steps}  {figures}  zero-shot {accuracy:.3f}",
                flush=True,
            )
            save(model, tokenizer, config, args.output)
    save(model, tokenizer, config, args.output)
    wall = time.perf_counter() - started
    accuracy = zero_shot_accuracy(model, tokenizer, 2048)
    print(f"{n_steps} steps of {args.batch_size} images in {wall:.0f} s; zero-shot {accuracy:.4f}")


if __name__ == "__main__":
    main()
