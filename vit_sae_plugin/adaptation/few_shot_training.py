"""The training loop: few images, stochastic gradient descent, a learning rate for each epoch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from vit_sae_plugin.adaptation.augmentation import AugmentedImages
from vit_sae_plugin.adaptation.config import AdaptationConfig
from vit_sae_plugin.atomic_files import write_folder_atomically
from vit_sae_plugin.datasets import ImageLoader, ImageSource
from vit_sae_plugin.hooked_vit import HookedViT

_TENSORS = "state.safetensors"
_STATE = "state.json"
_SEED_OF_ORDER = 1_000_003


class DivergedTrainingError(ValueError):
    """The loss is no longer a number."""


class FewShotTraining:
    """Trains what a method has put into a model.

    Everything random follows from ``(config.seed, epoch)``, so an epoch begins the same way
    whether or not the epochs before it ran in this process.

    Args:
        model: with the method's parts put in.
        parameters: what is learnt.
        images: all training images, of the classes that are learnt.
        config: a complete one.
        n_workers: processes that decode images.

    Attributes:
        metrics: one row an epoch: ``epoch`` (from 1), ``lr``, ``loss`` and ``accuracy`` (on the
            batches as they were trained on, means over the epoch).
    """

    def __init__(
        self,
        model: HookedViT,
        parameters: dict[str, nn.Parameter],
        images: ImageSource,
        config: AdaptationConfig,
        *,
        n_workers: int = 0,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.images = images
        self.config = config
        self.n_workers = n_workers
        self.metrics = pd.DataFrame(columns=["epoch", "lr", "loss", "accuracy"])
        model.bare_model.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = _optimizer(config, list(parameters.values()))
        scale = model.logit_scale
        self.scale = 1.0 if scale is None else float(scale)
        self._fixed_weights: Tensor | None = None

    def run(
        self, snapshot: Path, identity: Mapping[str, Any], *, overwrite: bool, progress: bool
    ) -> None:
        """Train all epochs that are left, and keep a snapshot behind each.

        Args:
            snapshot: the folder of the snapshot, from which training goes on.
            identity: what must be the same for that, as plain values.
            overwrite: begin anew, whatever is there.
            progress: show a bar.

        Raises:
            ValueError: there is a snapshot of another training.
            DivergedTrainingError: the loss is no longer a number.
        """
        first = 0
        if snapshot.is_dir() and not overwrite:
            first = self._load(snapshot, identity)
        epochs = self.config.epochs or 0
        bar = tqdm(
            total=epochs * self.n_steps,
            initial=first * self.n_steps,
            desc=self.config.method,
            unit="step",
            disable=not progress,
        )
        with bar:
            for epoch in range(first, epochs):
                row = self._run_epoch(epoch, bar)
                self.metrics.loc[len(self.metrics)] = row  # type: ignore[call-overload]
                if epoch + 1 < epochs:
                    self._save(snapshot, identity, epoch + 1)
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)

    @property
    def n_steps(self) -> int:
        """Steps an epoch: a last batch that is smaller is left out, unless it is the only one."""
        n_images, size = len(self.images.labels()), self.config.batch_size_images or 1
        return max(1, n_images // size)

    def tensors(self) -> dict[str, Tensor]:
        """What has been learnt, by name."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @staticmethod
    def remove_snapshot(snapshot: Path) -> None:
        """Delete the snapshot of a training that is finished."""
        shutil.rmtree(snapshot, ignore_errors=True)

    def _run_epoch(self, epoch: int, bar: tqdm) -> list[float]:
        config = self.config
        lr = lr_of_epoch(config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        source = AugmentedImages(
            self.images,
            self.model.cfg.image_size,
            crop_scale=config.crop_scale or (1.0, 1.0),
            flip=bool(config.flip),
            seed=config.seed,
            epoch=epoch,
        )
        loader = ImageLoader(
            source,
            self.model.require_preprocess(),
            batch_size_images=config.batch_size_images or 1,
            n_workers=self.n_workers,
            shuffle=True,
            seed=config.seed * _SEED_OF_ORDER + epoch,
        )
        losses, hits = [], []
        for step, batch in enumerate(loader):
            if step == self.n_steps:
                break
            loss, n_correct = self._step(batch.pixels, batch.label)
            if not math.isfinite(loss):
                raise DivergedTrainingError(
                    f"the loss is {loss} in epoch {epoch + 1} at lr={lr:g}; want a smaller lr"
                )
            losses.append(loss)
            hits.append(n_correct / len(batch.label))
            bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", refresh=False)
        return [epoch + 1, lr, sum(losses) / len(losses), sum(hits) / len(hits)]

    def _step(self, pixels: Tensor, labels: Tensor) -> tuple[float, int]:
        device = self.model.cfg.device
        labels = labels.to(device)
        embeds = self.model.encode_image(pixels.to(device), normalize=True)
        logits = self.scale * embeds @ self._class_weights().to(embeds)
        loss = functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    def _class_weights(self) -> Tensor:
        """``[d_embed, n_classes]``; with a gradient where they are learnt."""
        names = list(self.images.class_names or ())
        if self.config.method in ("maple", "coop"):
            return self.model.encode_text(names, normalize=True).T
        if self.config.method == "linear_probe":
            return self.model.zero_shot_classifier(names, ())
        if self._fixed_weights is None:
            self._fixed_weights = self.model.zero_shot_classifier(names, ())
        return self._fixed_weights

    def _save(self, snapshot: Path, identity: Mapping[str, Any], next_epoch: int) -> None:
        from safetensors.torch import save_file

        tensors = {f"parameter.{name}": tensor for name, tensor in self.tensors().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{key}"] = value
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        state = {
            "identity": dict(identity),
            "next_epoch": next_epoch,
            "metrics": self.metrics.to_dict(orient="list"),
        }

        def write(aside: Path) -> None:
            save_file(tensors, aside / _TENSORS)
            (aside / _STATE).write_text(json.dumps(state), encoding="utf-8")

        write_folder_atomically(snapshot, write)

    def _load(self, snapshot: Path, identity: Mapping[str, Any]) -> int:
        """Go back to a snapshot; returns the epoch that comes next."""
        from safetensors.torch import load_file

        state = json.loads((snapshot / _STATE).read_text(encoding="utf-8"))
        if state["identity"] != json.loads(json.dumps(dict(identity))):
            raise ValueError(
                f"{snapshot} is the snapshot of a training with other settings or images; choose "
                "another folder, or begin anew (--overwrite)"
            )
        tensors = load_file(snapshot / _TENSORS)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, key = rest.partition(".")
                values.setdefault(int(number), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": values, "param_groups": groups})
        self.metrics = pd.DataFrame(state["metrics"])
        return int(state["next_epoch"])


def lr_of_epoch(config: AdaptationConfig, epoch: int) -> float:
    """The learning rate of an epoch (from 0): one epoch at ``warmup_lr``, then a cosine of as many
    epochs as there are in all, from its beginning; as Dassl steps it for CoOp and MaPLe."""
    epochs, lr = config.epochs or 1, config.lr or 0.0
    if epochs == 1:
        return lr
    if epoch == 0:
        return config.warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def _optimizer(config: AdaptationConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    lr, weight_decay = config.lr or 0.0, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=weight_decay)
