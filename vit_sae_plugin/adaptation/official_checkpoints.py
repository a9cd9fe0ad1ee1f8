"""Checkpoints of MaPLe's and CoOp's own code, read as data: nothing in a file is ever run.

MaPLe's (Khattak et al. 2023) hold ``prompt_learner.ctx``, ``prompt_learner.proj.*``,
``prompt_learner.compound_prompts_text.{i}``, ``prompt_learner.compound_prompt_projections.{i}.*``
and the frozen CLIP; CoOp's (Zhou et al. 2022) ``ctx`` alone. What depends on the classes
(``token_prefix``, ``token_suffix``) is compared and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_sae_plugin.adaptation.adapt import load_adapted
from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.adaptation.insertion import n_blocks
from vit_sae_plugin.adaptation.prompted_text import (
    PromptedTokenizer,
    first_text_position,
    ids_of,
    prompt_template,
    text_parts,
)
from vit_sae_plugin.adaptation.saved_model import (
    CONFIG_FILE,
    AdaptationFileError,
    inserted,
    write_adapted,
)
from vit_sae_plugin.atomic_files import write_into_folder
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.tensor_files import read_tensors

_LEARNER = "prompt_learner."
_OF_CLASSES = ("token_prefix", "token_suffix")


@dataclass
class Checkpoint:
    """What a checkpoint holds, in the order in which it is used."""

    method: str
    """``"maple"`` or ``"coop"``."""

    prompts: dict[str, Tensor]
    """What was learnt, by the names under which it is saved here."""

    official: dict[str, str]
    """The same names to the file's own."""

    of_classes: dict[str, Tensor]
    """``token_prefix`` and ``token_suffix``, as far as they are there."""

    frozen: dict[str, Tensor]
    """Weights of the CLIP that was adapted, by the names of open_clip's."""

    @property
    def n_prompts(self) -> int:
        """Learnt tokens."""
        first = "text_prompts.0" if self.method == "maple" else "context"
        return int(self.prompts[first].shape[0])

    @property
    def depth(self) -> int | None:
        """Blocks with prompts of their own (MaPLe)."""
        if self.method != "maple":
            return None
        return sum(name.startswith("text_prompts.") for name in self.prompts)


def load_checkpoint(
    path: str | Path,
    model: str | HookedViT,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    text_init: str | None = None,
    round_prompts_to_half: bool = True,
    device: str | None = None,
) -> HookedViT:
    """A model with the prompts of an official MaPLe or CoOp checkpoint, written into a folder.

    Method, number of prompts and depth are read from the file. All that it learnt is loaded, or
    nothing is. The frozen CLIP inside a MaPLe file, and the start token's embedding inside either,
    must be the model's, but for their rounding to 16 bits.

    Args:
        path: ``model.pth.tar-5`` or the like.
        model: the CLIP that was adapted, such as ``"ViT-B-16"`` (with OpenAI's weights).
        folder: where it is written, as ``adapt`` writes it, so that it has a name.
        class_names: the classes that it was trained on, to have them compared with the file and
            recorded; the model may be asked for any others.
        text_init: the words in front of the class name (None: MaPLe's ``"a photo of a"``, and for
            CoOp none but the learnt tokens).
        round_prompts_to_half: round prompts to 16 bits where they enter a tower, as the published
            code does in its 32-bit setting too.
        device: where to put the model (None: where it is; for a name, the CPU).

    Raises:
        UnsafeFileError: the file asks to run code.
        UnreadableFileError: it is damaged, or holds no tensors.
        AdaptationFileError: it is of another method, doesn't fit the model (both shapes are said),
            or was made with another CLIP or other classes.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    if isinstance(model, str):
        model = HookedViT.from_pretrained(model, device=device)
    default_init = "a photo of a" if checkpoint.method == "maple" else ""
    blocks = n_blocks(model, checkpoint.method)
    if checkpoint.depth is not None and checkpoint.depth > blocks:
        raise AdaptationFileError(
            f"{path.name} has prompts for {checkpoint.depth} blocks, and the model has {blocks}; "
            "want the model that it was made with"
        )
    config = AdaptationConfig(
        checkpoint.method,  # type: ignore[arg-type]
        shots=None,
        half="all",
        n_prompts=checkpoint.n_prompts,
        depth=checkpoint.depth,
        text_init=default_init if text_init is None else text_init,
        round_prompts_to_half=round_prompts_to_half,
    ).complete(blocks)
    _compare_classes(path, checkpoint, model, config, class_names)
    verdict = _compare_backbone(path, checkpoint, model)
    names = [str(name) for name in class_names or ()]
    _, insertion = inserted(model, config, names)
    for name, parameter in insertion.parameters.items():
        found = tuple(checkpoint.prompts[name].shape)
        if found != tuple(parameter.shape):
            raise AdaptationFileError(
                f"{checkpoint.official[name]} is {found} in {path.name}, and "
                f"{tuple(parameter.shape)} in the model; want the model that it was made with"
            )
    tensors = {name: tensor.float() for name, tensor in checkpoint.prompts.items()}
    notes = {"checkpoint": path.name, "backbone": verdict}

    def write(aside: Path) -> None:
        write_adapted(aside, model, config, names, tensors, notes)

    write_into_folder(Path(folder), write, last=CONFIG_FILE)
    return load_adapted(folder, base=model, device=device)


def read_checkpoint(path: Path) -> Checkpoint:
    """What an official checkpoint holds.

    Raises:
        UnsafeFileError, UnreadableFileError: as ``load_checkpoint``.
        AdaptationFileError: it is none of MaPLe's or CoOp's, or lacks a part.
    """
    content = read_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(t, Tensor) for t in state.values()):
        raise AdaptationFileError(
            f"{path.name} holds no state dict of tensors; want a checkpoint of MaPLe or CoOp, such "
            "as model.pth.tar-5"
        )
    state = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    prefix = _LEARNER if f"{_LEARNER}ctx" in state else ""
    learner = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.startswith(("image_encoder.", "text_encoder."))
    }
    if not prefix:
        learner.pop("logit_scale", None)
    of_classes = {name: learner.pop(name) for name in _OF_CLASSES if name in learner}
    if "ctx" not in learner:
        raise AdaptationFileError(
            f"{path.name} has no prompt_learner.ctx or ctx (it has {_some(state)}); want a "
            "checkpoint of MaPLe or CoOp"
        )
    names = _maple_names(learner) if "proj.weight" in learner else {"context": "ctx"}
    strange = [name for name in learner if name not in names.values()]
    lacking = [name for name in names.values() if name not in learner]
    if lacking or strange:
        what = f"lacks {_some(lacking)}" if lacking else f"also holds {_some(strange)}"
        raise AdaptationFileError(
            f"{path.name} {what}, so it isn't a whole checkpoint of MaPLe or CoOp with one context "
            "for all classes; nothing was loaded"
        )
    if learner["ctx"].ndim != 2:
        raise AdaptationFileError(
            f"{prefix}ctx is {tuple(learner['ctx'].shape)} in {path.name}; want [prompts, "
            "width]: a context for each class can't name other classes"
        )
    frozen = {
        new + name.removeprefix(old): tensor
        for name, tensor in state.items()
        for old, new in (("image_encoder.", "visual."), ("text_encoder.", ""))
        if name.startswith(old)
    }
    return Checkpoint(
        "maple" if "proj.weight" in learner else "coop",
        {new: learner[old] for new, old in names.items()},
        {new: prefix + old for new, old in names.items()},
        of_classes,
        frozen,
    )


def _maple_names(learner: dict[str, Tensor]) -> dict[str, str]:
    """Our names to MaPLe's, as many as the deepest prompt in the file says."""
    deep = [name for name in learner if name.startswith("compound_prompts_text.")]
    names = {"text_prompts.0": "ctx"}
    names |= {f"projections.0.{part}": f"proj.{part}" for part in ("weight", "bias")}
    for i in range(len(deep)):
        names[f"text_prompts.{i + 1}"] = f"compound_prompts_text.{i}"
        for part in ("weight", "bias"):
            names[f"projections.{i + 1}.{part}"] = f"compound_prompt_projections.{i}.{part}"
    return names


def _compare_backbone(path: Path, checkpoint: Checkpoint, model: HookedViT) -> str:
    """Whether the frozen weights in the file are the model's, in words.

    Raises:
        AdaptationFileError: they aren't.
    """
    own = model.bare_model.state_dict()
    compared = [name for name in checkpoint.frozen if name in own]
    off: dict[str, float] = {}
    for name in compared:
        theirs, ours = checkpoint.frozen[name].float(), own[name].detach().cpu().float()
        if theirs.shape != ours.shape:
            raise AdaptationFileError(
                f"{path.name} was made with another CLIP: {name} is {tuple(theirs.shape)} there, "
                f"and {tuple(ours.shape)} in {model.model_name}; want the one it was made with"
            )
        if not _alike(theirs, ours):
            off[name] = float((theirs - ours).abs().max())
    if off:
        worst = max(off, key=off.__getitem__)
        raise AdaptationFileError(
            f"{path.name} was made with another CLIP: {len(off)} of {len(compared)} frozen tensors "
            f"differ from those of {model.model_name}, {worst} by up to {off[worst]:.3g}; want the "
            "weights it was made with (pretrained='openai' for the official files)"
        )
    if not compared:
        return "the file holds no weights to compare with this model's"
    return f"agrees in all {len(compared)} frozen tensors of the file"


def _compare_classes(
    path: Path,
    checkpoint: Checkpoint,
    model: HookedViT,
    config: AdaptationConfig,
    class_names: Sequence[str] | None,
) -> None:
    """Compare embeddings of start token and class names in the file with the model's.

    Raises:
        AdaptationFileError: another number of classes, other names, or another CLIP's embeddings.
    """
    prefix = checkpoint.of_classes.get("token_prefix")
    suffix = checkpoint.of_classes.get("token_suffix")
    if class_names is not None and prefix is not None and len(prefix) != len(class_names):
        raise AdaptationFileError(
            f"{path.name} was trained on {len(prefix)} classes, and class_names has "
            f"{len(class_names)}; want the names of those, in their order (or None)"
        )
    if model.tokenizer is None:
        return  # inserting prompts says so
    table: Any = model.bare_model.get_submodule(text_parts(model.bare_model).token_embedding)
    first = first_text_position(model.tokenizer)
    template = prompt_template(config.text_init, config.n_prompts or 0)
    tokenizer: Callable = PromptedTokenizer(model.tokenizer, template)
    ids = ids_of(tokenizer, list(class_names or ["a"])).to(table.weight.device)
    rows = table.weight.detach()[ids].float().cpu()
    start = rows[:, :first]
    if prefix is not None and not _alike(prefix[:1].float(), start[:1]):
        raise AdaptationFileError(
            f"{path.name} was made with another CLIP: the start token's embedding there isn't that "
            f"of {model.model_name}; want the one it was made with"
        )
    rest = rows[:, first + (config.n_prompts or 0) :]
    if class_names is not None and suffix is not None and not _alike(suffix.float(), rest):
        raise AdaptationFileError(
            f"{path.name} was trained on other texts than {template.format(class_names[0])!r} and "
            "so on; want the class names in their order, and text_init as it was"
        )


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    """Whether values are the same, but that one side may have been stored in 16 bits."""
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=2e-3, atol=1e-5)


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
