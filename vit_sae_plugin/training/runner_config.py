"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.util import str_to_dtype

from vit_sae_plugin.activations.cache.cache_names import is_cache_text
from vit_sae_plugin.activations.saev_shards import is_saev_text
from vit_sae_plugin.devices import best_device
from vit_sae_plugin.field_types import check_field_types
from vit_sae_plugin.hooked_vit.token_layout import check_token_kind
from vit_sae_plugin.training.batch_parts import check_parts
from vit_sae_plugin.training.cache_defaults import cache_defaults
from vit_sae_plugin.training.config_checks import (
    check_choice,
    check_hook_name,
    check_positive,
)
from vit_sae_plugin.training.config_files import config_from_dict, config_to_dict, read, write
from vit_sae_plugin.training.training_defaults import training_defaults

LR_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
OPTIMIZERS = ("adam", "adamw")
AUTO = "auto"
_DEFAULT_HOOK = "blocks.10.hook_resid_post"


def _auto() -> Any:
    """A setting that may be left to the architecture, or to the machine: ``"auto"``."""
    return field(default=AUTO, metadata={AUTO: True})


def _quiet_logger() -> LoggingConfig:
    return LoggingConfig(log_to_wandb=False)


@dataclass
class ViTSAERunnerConfig:
    """How to train an SAE on a vision transformer's activations.

    Names are those of SAELens's ``LanguageModelSAERunnerConfig`` wherever the meaning is the same.
    Checked when it is made; what needs the model is checked before training begins.

    A setting of ``"auto"`` takes the value that the architecture was published with, and SAELens's
    default for SAELens's own architectures (``vit_sae_plugin.training.training_defaults``).

    Raises:
        ValueError: a setting of the wrong type or out of range; the message names it, its value
            and what is wanted.
        TypeError: ``sae`` isn't the config of a training SAE.
    """

    sae: TrainingSAEConfig
    """The SAE: the config of any training architecture that is registered with SAELens."""

    model_name: str | None = _auto()
    """The model, as ``HookedViT.from_pretrained`` takes it: an open_clip name, ``"hf:…"``,
    ``"timm:…"`` or ``"shapes-clip"``. ``"auto"``: ``"ViT-B-16"``, but None, which is unknown, with
    ``embeddings_path``, and a cache's own with ``"cache:PATH"``."""
    model_class_name: str = "HookedViT"
    """Always ``"HookedViT"``; there so that the SAE's metadata say what to load."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """What else ``HookedViT.from_pretrained`` takes, such as ``{"pretrained": "openai"}``."""
    hook_name: str = _auto()
    """Which activations to train on. Heads are flattened, so ``d_in`` is heads × head width at
    ``hook_z``. ``"auto"``: ``"blocks.10.hook_resid_post"``, but ``"hook_image_embed"`` with
    ``embeddings_path``."""
    hook_name_out: str | None = None
    """Which activations a transcoder reconstructs, from those of ``hook_name``. They are read in
    the same forward pass; None for an SAE, which reconstructs what it reads."""
    token_kind: str = "all"
    """Which tokens of an image become rows: ``"all"``, ``"patches"`` or ``"cls"``."""
    seqpos_slice: tuple[int | None, ...] = (None,)
    """A slice (start, stop, step) of those tokens; ``(None,)`` takes them all."""
    dataset_path: str = ""
    """The images, as ``vit_sae_plugin.datasets.open_images`` takes them: a folder,
    ``"hf:…"``, ``"wds:…"`` or ``"shapes"``. Or ``"cache:PATH"``, the activations that ``vit-sae
    cache`` wrote, or ``"saev:PATH"``, shards that saev wrote: the model isn't run, and need not be
    named."""

    embeddings_path: str | None = None
    """Train on the rows of this ``.npy``, ``.safetensors`` or ``.parquet`` file instead of on
    images; ``model_name`` and ``hook_name`` then only say where they came from."""
    standardize_embeddings: bool = False
    """Centre embeddings and scale them to mean norm √d, as MSAE does; mean and scale are kept with
    the SAE. For ``hook_image_embed`` and ``embeddings_path``."""
    embedding_modality: str = "image"
    """What was embedded, ``"image"`` or ``"text"``: each has its own mean and scale."""
    non_finite_rows: Literal["refuse", "drop"] = "refuse"
    """What to do with embeddings that hold NaN or infinity."""

    training_tokens: int = 2_000_000
    """Rows to train on in all: tokens, not images."""
    train_batch_size_tokens: int = 4096
    """Rows in a training step."""
    train_batch_parts: int = 1
    """Hand the SAE each training batch in so many parts, one after another. The result is the same
    but for rounding, and arrays of ``[rows, d_sae]`` are so many times smaller; a step takes a
    little longer. Not for architectures that select latents over the whole batch (batchtopk,
    matryoshka_batchtopk)."""
    store_batch_size_images: int = 32
    """Images the model sees at once. Larger is faster up to a point and takes more memory."""
    n_batches_in_buffer: int = 20
    """Training batches that are filled and shuffled together. Larger mixes more images into each
    batch and takes ``n_batches_in_buffer · train_batch_size_tokens · d_in`` numbers of memory."""
    n_workers: int = 0
    """Processes that decode images; 0: the training process does. Does not change the rows."""
    shuffle_images: bool = True
    """See the images in a new random order each epoch (a stream is always read in order)."""

    device: str = _auto()
    """Where the SAE is trained, and the default for the model and the buffer. ``"auto"``: the best
    that this machine has, CUDA before MPS before the CPU."""
    model_device: str | None = None
    """Where the model runs (SAELens: ``llm_device``). None: ``device``."""
    act_store_device: str | None = None
    """Where the buffer of rows is. None: ``device``; ``"cpu"`` spares GPU memory."""
    dtype: str = "float32"
    """Number format of the rows, whatever the model's is. The SAE's own is ``sae.dtype``."""
    autocast: bool = False
    """Train the SAE under bfloat16 autocast: faster where the device multiplies that format. On a
    CPU its dense products alone are in bfloat16 (see "bf16" in the docs' performance page)."""
    autocast_model: bool = False
    """Run the model under bfloat16 autocast (SAELens: ``autocast_lm``)."""
    compile_sae: bool = False
    """Compile the SAE's training step with ``torch.compile``."""
    sae_compilation_mode: str | None = None
    """The ``mode`` of that compilation."""
    seed: int = 42
    """Of the SAE's initial weights, the order of the images and the shuffle of the rows."""

    lr: float = _auto()
    """Learning rate. ``"auto"``: 3e-4 as in SAELens; ``patchsae`` 4e-4, ``matryoshka_topk``
    1e-4."""
    lr_scheduler_name: str = "constant"
    """``"constant"``, ``"cosineannealing"`` or ``"cosineannealingwarmrestarts"``."""
    lr_warm_up_steps: int = _auto()
    """Steps of linear warm-up. ``"auto"``: 0; ``patchsae`` 500, but at most a tenth of the run."""
    lr_decay_steps: int = _auto()
    """Steps of linear decay to zero at the end. ``"auto"``: 0; ``matryoshka_topk`` a fifth of the
    run."""
    lr_end: float | None = None
    """Where cosine annealing ends. None: a tenth of ``lr``."""
    n_restart_cycles: int = 1
    """Cycles of cosine annealing with warm restarts."""
    optimizer: str = _auto()
    """``"adam"`` or ``"adamw"``. ``"auto"``: Adam; ``matryoshka_topk`` AdamW."""
    adam_beta1: float = 0.9
    """Decay of the gradient's running mean."""
    adam_beta2: float = 0.999
    """Decay of the squared gradient's running mean."""
    adam_eps: float = _auto()
    """Added to the root of the squared gradient's mean. ``"auto"``: 1e-8; ``matryoshka_topk``
    6.25e-10."""
    weight_decay: float = 0.0
    """With ``"adam"`` added to the gradient, with ``"adamw"`` decoupled from it."""
    clip_grad_norm: float | None = _auto()
    """Scale gradients down to this norm; None: never. SAELens always clips at 1. ``"auto"``: 1,
    except for ``patchsae``, which was published unclipped."""
    freeze_decoder: bool = False
    """Keep the decoder's directions as they are initialised, at random, and train the rest: a
    control for what an SAE's learned directions add (``vit-sae eval --suite concepts``)."""

    dead_feature_window: int = _auto()
    """A latent is dead after more training steps than this without firing. ``"auto"``: 1,000 as in
    SAELens; 64 with ghost gradients, which act on dead latents only."""
    feature_sampling_window: int = 2000
    """Training steps over which firing frequencies are averaged."""
    n_batches_for_norm_estimate: int = _auto()
    """Batches that estimate the mean norm, if ``sae.normalize_activations`` asks for it.
    ``"auto"``: 1,000 as in SAELens, but no more than the run has training steps."""

    eval_every_n_steps: int = _auto()
    """Training steps between measurements on held-out images; 0: none. They go with the metrics,
    under names that begin with ``held_out_``. ``"auto"``: a tenth of the run, if there is an
    ``eval_dataset_path``."""
    eval_dataset_path: str = ""
    """The held-out images, as ``dataset_path``."""
    n_eval_images: int = 256
    """How many of them to measure on."""

    n_latent_shards: int = 1
    """Split the SAE's latents over this many processes, each of which then holds its share of the
    weights, their gradients and the optimizer's state: for SAEs too wide for one device. Started by
    ``torchrun --nproc-per-node N`` with as many. For ``patchsae``, ``topk``, ``topk_ghost`` and
    ``matryoshka_topk``."""

    output_path: str | None = "output"
    """The run's folder; the finished SAE is in ``sae`` inside it. None: write nothing."""
    checkpoint_path: str | None = None
    """Where checkpoints go. None: ``checkpoints`` in the run's folder."""
    checkpoint_every_minutes: float = 5.0
    """How much work a crash may cost. The newest two of these checkpoints are kept."""
    n_checkpoints: int = 0
    """Checkpoints to keep for good, evenly spaced over the run."""
    resume_from_checkpoint: str | None = None
    """The folder of a run to go on with, from its newest intact checkpoint."""
    log_every_n_steps: int = 10
    """Training steps between lines of the metrics file."""
    logger: LoggingConfig = field(default_factory=_quiet_logger)
    """SAELens's Weights & Biases settings; off unless ``log_to_wandb`` is true."""
    verbose: bool = True
    """Show progress."""

    def __post_init__(self) -> None:
        self.seqpos_slice = tuple(self.seqpos_slice)
        self.model_from_pretrained_kwargs = dict(self.model_from_pretrained_kwargs or {})
        self._check_sae()
        check_field_types(self)
        self._fill_in_auto()
        self._check_source()
        self._check_sizes()
        self._check_optimizer()
        self._check_outputs()
        self._check_latent_shards()

    @property
    def total_training_steps(self) -> int:
        """Training steps in all."""
        return self.training_tokens // self.train_batch_size_tokens

    @property
    def run_folder(self) -> Path | None:
        """``output_path`` as a path."""
        return None if self.output_path is None else Path(self.output_path)

    @property
    def checkpoint_folder(self) -> Path | None:
        """Where checkpoints go; None if nothing is written."""
        if self.run_folder is None:
            return None
        return Path(self.checkpoint_path or self.run_folder / "checkpoints")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only; ``from_dict`` reads them back."""
        return config_to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViTSAERunnerConfig:
        """Read what ``to_dict`` gave, or part of it: the rest takes its default.

        Raises:
            ValueError: an unknown setting or architecture (near names are listed), or a bad value.
        """
        return config_from_dict(cls, values)

    def save(self, path: str | Path) -> None:
        """Write the settings to a ``.yaml``, ``.yml`` or ``.json`` file."""
        write(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ViTSAERunnerConfig:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file that ``save`` or a person wrote."""
        return cls.from_dict(read(Path(path)))

    def to_sae_trainer_config(self) -> SAETrainerConfig:
        """The part that SAELens's trainer reads."""
        return SAETrainerConfig(
            total_training_samples=self.training_tokens,
            train_batch_size_samples=self.train_batch_size_tokens,
            lr=self.lr,
            lr_end=self.lr / 10 if self.lr_end is None else self.lr_end,
            lr_scheduler_name=self.lr_scheduler_name,
            lr_warm_up_steps=self.lr_warm_up_steps,
            lr_decay_steps=self.lr_decay_steps,
            n_restart_cycles=self.n_restart_cycles,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            device=self.device,
            autocast=self.autocast,
            dead_feature_window=self.dead_feature_window,
            feature_sampling_window=self.feature_sampling_window,
            n_checkpoints=self.n_checkpoints,
            logger=self.logger,
            n_batches_for_norm_estimate=self.n_batches_for_norm_estimate,
        )

    def _fill_in_auto(self) -> None:
        check_positive(train_batch_size_tokens=self.train_batch_size_tokens)
        n_steps = self.total_training_steps
        defaults = training_defaults(self.sae.architecture()).settings(n_steps)
        defaults |= {
            "model_name": None
            if self.embeddings_path or is_saev_text(self.dataset_path)
            else "ViT-B-16",
            "hook_name": "hook_image_embed" if self.embeddings_path else _DEFAULT_HOOK,
            "device": best_device(),
            "eval_every_n_steps": max(1, n_steps // 10) if self.eval_dataset_path else 0,
        }
        of_cache = cache_defaults(
            self.dataset_path, self.model_name, self.model_from_pretrained_kwargs, AUTO
        )
        self.model_from_pretrained_kwargs |= of_cache.pop("model_from_pretrained_kwargs", {})
        defaults |= of_cache
        for name, value in defaults.items():
            if getattr(self, name) == AUTO:
                setattr(self, name, value)

    def _check_sae(self) -> None:
        if not isinstance(self.sae, TrainingSAEConfig):
            raise TypeError(
                f"sae is a {type(self.sae).__name__}; want the config of a training architecture, "
                "such as PatchTrainingSAEConfig or sae_lens.TopKTrainingSAEConfig"
            )
        check_positive(**{"sae.d_in": self.sae.d_in, "sae.d_sae": self.sae.d_sae})
        if self.sae.reshape_activations != "none":
            raise ValueError(
                f"sae.reshape_activations is {self.sae.reshape_activations!r}; want 'none': heads "
                "are flattened before the SAE sees them"
            )
        weight = getattr(self.sae, "cls_mse_coefficient", 1.0)
        if weight != 1.0:
            raise ValueError(
                f"sae.cls_mse_coefficient is {weight}; want 1: the rows of this runner are "
                "shuffled tokens, among which the class token can't be told"
            )

    def _check_source(self) -> None:
        check_choice("model_class_name", self.model_class_name, ("HookedViT",))
        check_hook_name(self.hook_name)
        self._check_output_hook()
        check_token_kind(self.token_kind)
        if self.hook_name == "hook_image_embed" and self.token_kind == "patches":
            raise ValueError(
                "token_kind is 'patches', but hook_image_embed has one vector for each image; "
                "want 'all'"
            )
        check_choice("embedding_modality", self.embedding_modality, ("image", "text"))
        check_choice("non_finite_rows", self.non_finite_rows, ("refuse", "drop"))
        if self.embeddings_path is not None and self.dataset_path:
            raise ValueError(
                f"embeddings_path is {self.embeddings_path!r} and dataset_path is "
                f"{self.dataset_path!r}; want one of the two"
            )
        is_on_disk = is_cache_text(self.dataset_path) or is_saev_text(self.dataset_path)
        has_rows = self.embeddings_path is not None or is_on_disk
        if self.model_name is None and not has_rows:
            raise ValueError("model_name is None; want the model whose activations to train on")
        embeddings = self.embeddings_path is not None or self.hook_name == "hook_image_embed"
        if self.standardize_embeddings and not embeddings:
            raise ValueError(
                f"standardize_embeddings is for embeddings, but the hook is {self.hook_name}; "
                "want hook_image_embed, or sae.normalize_activations for activations"
            )
        if len(self.seqpos_slice) not in (1, 2, 3):
            raise ValueError(
                f"seqpos_slice is {self.seqpos_slice}; want (stop,), (start, stop) or "
                "(start, stop, step)"
            )
        if len(self.seqpos_slice) == 3 and (self.seqpos_slice[2] or 1) < 1:
            raise ValueError(f"seqpos_slice is {self.seqpos_slice}; want a step of 1 or more")
        for name in ("device", "model_device", "act_store_device"):
            value = getattr(self, name)
            try:
                torch.device(value or "cpu")
            except RuntimeError:
                raise ValueError(
                    f"{name} is {value!r}; want 'cpu', 'cuda', 'cuda:1', 'mps' or the like"
                ) from None
        str_to_dtype(self.dtype)  # raises, with the formats there are

    def _check_output_hook(self) -> None:
        is_transcoder = hasattr(self.sae, "d_out")
        if is_transcoder != (self.hook_name_out is not None):
            architecture = self.sae.architecture()
            wanted = (
                "the hook that it reconstructs" if is_transcoder else "None: it is no transcoder"
            )
            raise ValueError(
                f"hook_name_out is {self.hook_name_out!r} for {architecture}; want {wanted}"
            )
        if self.hook_name_out is None:
            return
        check_hook_name(self.hook_name_out)
        if self.embeddings_path is not None:
            raise ValueError(
                "hook_name_out needs a model, but embeddings_path is "
                f"{self.embeddings_path!r}; want images, in dataset_path"
            )

    def _check_sizes(self) -> None:
        names = (
            "training_tokens train_batch_size_tokens store_batch_size_images n_batches_in_buffer "
            "n_restart_cycles dead_feature_window feature_sampling_window "
            "n_batches_for_norm_estimate log_every_n_steps n_eval_images n_latent_shards"
        )
        check_positive(**{name: getattr(self, name) for name in names.split()})
        for name in (
            "n_workers n_checkpoints lr_warm_up_steps lr_decay_steps seed eval_every_n_steps"
        ).split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; want 0 or more")
        check_parts(self.train_batch_parts, self.sae.architecture(), self.train_batch_size_tokens)
        if self.training_tokens < self.train_batch_size_tokens:
            raise ValueError(
                f"training_tokens is {self.training_tokens}; want at least the "
                f"{self.train_batch_size_tokens} of one training batch"
            )

    def _check_optimizer(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("lr_scheduler_name", self.lr_scheduler_name, LR_SCHEDULERS)
        check_positive(lr=self.lr, adam_eps=self.adam_eps)
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; want 0 ≤ {name} < 1")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay}; want 0 or more")
        # a run cut short may end within its warm-up, but a later phase needs its place
        has_phases = self.lr_decay_steps > 0 or self.lr_scheduler_name != "constant"
        n_steps = self.lr_warm_up_steps + self.lr_decay_steps
        if has_phases and n_steps > self.total_training_steps:
            raise ValueError(
                f"lr_warm_up_steps {self.lr_warm_up_steps} + lr_decay_steps "
                f"{self.lr_decay_steps} is more than the {self.total_training_steps} training "
                "steps (training_tokens ÷ train_batch_size_tokens)"
            )
        if self.clip_grad_norm is not None:
            check_positive(clip_grad_norm=self.clip_grad_norm)
        if self.freeze_decoder and getattr(self.sae, "tied_weights", False):
            raise ValueError(
                "freeze_decoder is True, but sae.tied_weights makes the encoder follow the "
                "decoder; want one of the two"
            )

    def _check_outputs(self) -> None:
        if self.eval_every_n_steps > 0 and not self.eval_dataset_path:
            raise ValueError(
                f"eval_every_n_steps is {self.eval_every_n_steps}, but eval_dataset_path is empty; "
                "want the held-out images"
            )
        if not self.checkpoint_every_minutes >= 0:
            raise ValueError(
                f"checkpoint_every_minutes is {self.checkpoint_every_minutes}; want 0 (after "
                "each step) or more"
            )
        if self.output_path is None:
            for name in ("checkpoint_path", "resume_from_checkpoint"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r} but output_path is None; want the "
                        "run's folder as output_path"
                    )
            if self.n_checkpoints > 0:
                raise ValueError(
                    f"n_checkpoints is {self.n_checkpoints} but output_path is None; want the "
                    "run's folder as output_path, or no checkpoints"
                )

    def _check_latent_shards(self) -> None:
        n_shards = self.n_latent_shards
        if n_shards == 1:
            return
        from vit_sae_plugin.training.split_latents.splittable import check_splittable

        check_splittable(self.sae, n_shards)
        for name, value, plain in (
            ("compile_sae", self.compile_sae, False),
            ("logger.log_to_wandb", self.logger.log_to_wandb, False),
            ("eval_every_n_steps", self.eval_every_n_steps, 0),
        ):
            if value != plain:
                raise ValueError(
                    f"{name} is {value} with n_latent_shards={n_shards}; want {plain}: it needs "
                    "all latents in one process"
                )
