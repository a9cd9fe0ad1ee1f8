"""What splicing does to the model's own job: zero-shot accuracy, contrastive loss, output."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.evaluation.contrastive import ContrastiveBatches

Caption = tuple[str, Hashable]
"""A text, and a key that is the same for texts that say the same."""
FORWARD_PASSES = ("original", "spliced", "zeros")


class SplicingTotals:
    """Counts over images of how each forward pass does its job; constant memory.

    Args:
        classifier: unit text embedding of each class, ``[d_embed, n_classes]``, or None.
        class_names: their names; classes are told apart by index, so two may share one.
        contrastive: where to gather images and captions, or None.
        captions: image index → caption. None: the class name stands for the caption, and the
            class's column of ``classifier`` for its embedding.
        encode_captions: captions → ``[n, d_embed]``.
    """

    def __init__(
        self,
        classifier: Float[Tensor, "d_embed n_classes"] | None = None,
        class_names: Sequence[str] | None = None,
        contrastive: ContrastiveBatches | None = None,
        captions: Callable[[int], Caption] | None = None,
        encode_captions: Callable[[list[str]], Tensor] | None = None,
    ):
        self.classifier = classifier
        self.class_names = class_names
        self.contrastive = contrastive
        self.captions = captions
        self.encode_captions = encode_captions
        self.n_images = 0
        self.n_labelled = 0
        self._correct = dict.fromkeys(FORWARD_PASSES, 0)
        self._cosine = dict.fromkeys(FORWARD_PASSES, 0.0)

    def update(
        self,
        outputs: dict[str, Float[Tensor, "batch d_embed"]],
        labels: Int[Tensor, " batch"],
        indices: Int[Tensor, " batch"],
    ) -> None:
        """Add a batch: its output under each forward pass, its labels (−1: none), its indices."""
        if self.class_names is not None and int(labels.max()) >= len(self.class_names):
            raise ValueError(
                f"an image has label {int(labels.max())}; want one below "
                f"{len(self.class_names)}, the number of class names"
            )
        self.n_images += len(labels)
        original = outputs["original"].float()
        for name, output in outputs.items():
            cosine = functional.cosine_similarity(output.float(), original, dim=-1)
            self._cosine[name] += cosine.cpu().double().sum().item()
        labelled = labels >= 0
        if self.classifier is not None and labelled.any():
            self.n_labelled += int(labelled.sum())
            for name, output in outputs.items():
                predicted = (output.float() @ self.classifier.to(output.device).float()).argmax(-1)
                self._correct[name] += int((predicted.cpu() == labels)[labelled].sum())
        if self.contrastive is not None:
            self._add_to_contrastive(outputs, labels, indices)

    def _add_to_contrastive(
        self, outputs: dict[str, Tensor], labels: Tensor, indices: Tensor
    ) -> None:
        if self.contrastive is None:
            return
        if self.captions is not None and self.encode_captions is not None:
            captions = [self.captions(int(index)) for index in indices]
            keys = dict(enumerate(key for _, key in captions))
            embeds = dict(enumerate(self.encode_captions([text for text, _ in captions])))
        elif self.classifier is not None and self.class_names is not None:
            known = {row: int(label) for row, label in enumerate(labels) if label >= 0}
            keys = {row: self.class_names[label] for row, label in known.items()}
            embeds = {row: self.classifier[:, label] for row, label in known.items()}
        else:
            return
        for row, key in keys.items():
            images = {name: output[row].float().cpu() for name, output in outputs.items()}
            self.contrastive.add(key, images, embeds[row].float().cpu())

    def compute(self) -> pd.DataFrame:
        """One row a forward pass and one for the share recovered; NaN where nothing was measured.

        - ``zero_shot_accuracy``: share of labelled images whose class has the nearest prompts.
        - ``contrastive_loss``: see ``contrastive_loss``; ``contrastive_batch_size`` images each.
        - ``output_cosine``: mean cosine similarity to the original output.
        - ``share_recovered``: ``(zeros − spliced) / (zeros − original)``; 1 is perfect.
        """
        losses = self.contrastive.compute() if self.contrastive is not None else {}
        batch_size = self.contrastive.batch_size if self.contrastive and losses else math.nan
        columns = {
            "zero_shot_accuracy": {
                name: self._correct[name] / self.n_labelled if self.n_labelled else math.nan
                for name in FORWARD_PASSES
            },
            "contrastive_loss": {name: losses.get(name, math.nan) for name in FORWARD_PASSES},
            "output_cosine": {
                name: self._cosine[name] / self.n_images if self.n_images else math.nan
                for name in FORWARD_PASSES
            },
        }
        for column in columns.values():
            column["share_recovered"] = share_recovered(
                column["original"], column["spliced"], column["zeros"]
            )
        table = pd.DataFrame(columns).rename_axis("forward_pass")
        table.insert(2, "contrastive_batch_size", batch_size)
        return table

    def settings(self) -> dict[str, int]:
        """Sample sizes, to be read with the table."""
        sizes = {"n_images_zero_shot": self.n_labelled}
        if self.contrastive is not None:
            sizes["n_contrastive_batches"] = self.contrastive.n_batches
            sizes["n_images_left_out_of_contrastive"] = self.contrastive.n_left_out
        return sizes


def share_recovered(original: float, spliced: float, zeros: float) -> float:
    """``(zeros − spliced) / (zeros − original)``; NaN if zeroing changes nothing."""
    return (zeros - spliced) / (zeros - original) if zeros != original else math.nan
