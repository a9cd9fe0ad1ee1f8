"""MaPLe's and CoOp's own files: the same logits as a slow second way, or a clear refusal."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.adaptation.conftest import END, tiny_clip, tokenize
from tests.adaptation.official_files import maple_state, of_classes, randn, rounded, write
from tests.adaptation.slow_clip import coop_logits, maple_logits
from vit_sae_plugin.adaptation import AdaptationFileError, load_checkpoint
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.inert_pickle import UnsafeFileError

NAMES = ["red", "blue", "black"]
D_HEADS = (8, 8)
LARGEST_DIFFERENCE = 1e-4
"""Of logits up to 20, computed in 32 and in 64 bits."""


def clip() -> HookedViT:
    return rounded(tiny_clip(width=40))


def logits(model: HookedViT, pixels: Tensor, names: list[str]) -> Tensor:
    weights = model.zero_shot_classifier(names, ["a photo of a {}."])
    with torch.no_grad():
        return model.logit_scale * model.encode_image(pixels, normalize=True) @ weights


@pytest.mark.parametrize("depth", [1, 2])
def test_a_maple_file_gives_the_logits_of_a_slow_second_way(tmp_path, depth):
    base = clip()
    state = maple_state(base, NAMES, depth)
    path = write(tmp_path / "model.pth.tar-5", state)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    texts = tokenize([f"a photo of a {name}." for name in NAMES])
    ends = (texts == END).nonzero()[:, 1].tolist()
    wanted = maple_logits(pixels.double(), state, ends, D_HEADS)

    model = load_checkpoint(path, base, tmp_path / "maple", class_names=NAMES)

    difference = (logits(model, pixels, NAMES) - wanted).abs().max().item()
    print(f"largest difference at depth {depth}: {difference:.2g} of {wanted.abs().max():.3g}")
    assert difference < LARGEST_DIFFERENCE
    plain = (logits(base, pixels, NAMES) - wanted).abs().max()
    assert plain > 1
    assert model.cfg.tokens.roles.count("prompt") == 2
    assert model.check().fine.all()


def test_a_coop_file_gives_the_logits_of_a_slow_second_way(tmp_path):
    base = clip()
    texts = [f"a a a {name}." for name in NAMES]
    state = {"ctx": randn(3, 32, seed=4), **of_classes(base, texts, 3)}
    path = write(tmp_path / "model.pth.tar-50", state)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    ends = (tokenize(texts) == END).nonzero()[:, 1].tolist()
    wanted = coop_logits(pixels, state, maple_state(base, NAMES), ends, D_HEADS)

    model = load_checkpoint(path, base, tmp_path / "coop", class_names=NAMES)

    difference = (logits(model, pixels, NAMES) - wanted).abs().max().item()
    print(f"largest difference: {difference:.2g} of {wanted.abs().max():.3g}")
    assert difference < LARGEST_DIFFERENCE
    assert (logits(base, pixels, NAMES) - wanted).abs().max() > 0.1
    assert torch.equal(model(pixels), base(pixels))


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


LEARNER = "prompt_learner."
REFUSED = {
    "a deep prompt without its coupling function": (
        lambda s: without(s, LEARNER + "compound_prompt_projections.0.weight"),
        "lacks compound_prompt_projections.0.weight",
    ),
    "a coupling function without its prompt": (
        lambda s: without(s, LEARNER + "compound_prompts_text.0"),
        "also holds compound_prompt_projections.0",
    ),
    "what another method learns": (
        lambda s: {**s, LEARNER + "meta_net.linear1.weight": torch.zeros(2, 2)},
        "also holds meta_net.linear1.weight",
    ),
    "a context for each class": (
        lambda s: {**s, LEARNER + "ctx": torch.zeros(3, 2, 32)},
        r"prompt_learner.ctx is \(3, 2, 32\)",
    ),
    "another width": (
        lambda s: {**s, LEARNER + "proj.weight": torch.zeros(48, 32)},
        r"prompt_learner.proj.weight is \(48, 32\) in .* and \(40, 32\) in the model",
    ),
    "frozen weights of another model": (
        lambda s: {**s, "image_encoder.proj": s["image_encoder.proj"] + 1},
        "another CLIP: 1 of .* visual.proj by up to 1",
    ),
    "frozen weights of another shape": (
        lambda s: {**s, "image_encoder.proj": torch.zeros(48, 24)},
        r"visual.proj is \(48, 24\) there, and \(40, 24\)",
    ),
    "another start token": (
        lambda s: {**s, LEARNER + "token_prefix": s[LEARNER + "token_prefix"] + 1},
        "the start token's embedding",
    ),
    "no prompts": (lambda s: {"image_encoder.proj": s["image_encoder.proj"]}, "no prompt_learner"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_does_not_fit_is_refused_whole(tmp_path, what):
    change, message = REFUSED[what]
    base = clip()
    path = write(tmp_path / "model.pth.tar-5", change(maple_state(base, NAMES, depth=2)))
    with pytest.raises(AdaptationFileError, match=message):
        load_checkpoint(path, base, tmp_path / "maple")
    assert not (tmp_path / "maple").exists()


def test_a_file_with_more_blocks_than_the_model_is_refused(tmp_path):
    base = clip()
    path = write(tmp_path / "model.pth.tar-5", maple_state(base, NAMES, depth=3))
    with pytest.raises(AdaptationFileError, match="prompts for 3 blocks, and the model has 2"):
        load_checkpoint(path, base, tmp_path / "maple")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["red", "blue"], "trained on 3 classes, and class_names has 2"),
        (["red", "black", "blue"], "other texts than 'a photo of a red.'"),
    ],
)
def test_a_list_of_other_classes_is_refused(tmp_path, names, message):
    base = clip()
    path = write(tmp_path / "model.pth.tar-5", maple_state(base, NAMES, depth=2))
    with pytest.raises(AdaptationFileError, match=message):
        load_checkpoint(path, base, tmp_path / "maple", class_names=names)


class Runs:
    """Asks for a command to be run when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_asks_to_run_code_is_refused_and_nothing_runs(tmp_path):
    base = clip()
    sign = tmp_path / "it ran"
    path = tmp_path / "model.pth.tar-5"
    torch.save({"state_dict": maple_state(base, NAMES, 2), "x": Runs(f"touch '{sign}'")}, path)
    with pytest.raises(UnsafeFileError, match=r"asks to call posix.system|nt.system"):
        load_checkpoint(path, base, tmp_path / "maple")
    assert not sign.exists()


def test_prompts_may_be_left_in_full_precision(tmp_path):
    base = clip()
    path = write(tmp_path / "model.pth.tar-5", maple_state(base, NAMES, depth=2))
    load = partial(load_checkpoint, path, base)
    rounds, exact = load(tmp_path / "a"), load(tmp_path / "b", round_prompts_to_half=False)
    pixels = torch.randn(1, 3, 32, 32)
    assert 0 < (rounds(pixels) - exact(pixels)).abs().max() < 1e-2
