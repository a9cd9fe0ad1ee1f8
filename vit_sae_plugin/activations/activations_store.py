"""Images in, shuffled rows out: the SAELens data provider for vision transformers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int
from sae_lens.util import str_to_dtype
from torch import Tensor

from vit_sae_plugin.activations.activation_source import (
    EVERY_TOKEN,
    ActivationSource,
    hook_values,
)
from vit_sae_plugin.activations.row_store import Gather, RowStore
from vit_sae_plugin.activations.shuffle_buffer import RowRun, ShuffleBuffer
from vit_sae_plugin.datasets import (
    ImageLoader,
    NoReadableImagesError,
    SkippedImages,
    open_images,
)

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.datasets import ImageBatch, ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


@dataclass
class StorePosition:
    """Where a store stands: all that it needs to serve the same rows again."""

    image_batch: int = 0
    """Number of the image batch that opens the buffer, counted over all epochs."""
    row_in_image_batch: int = 0
    """The first row of that image batch that belongs to the buffer."""
    buffer: int = 0
    """Number of the buffer, from which its shuffle is drawn."""
    batch_in_buffer: int = 0
    """Batches of the buffer that have been served."""


@dataclass
class _OpenImageBatch:
    """The rows of an image batch, some of which may lie in the buffer already."""

    number: int
    n_rows: int
    rows: Tensor
    """None of them, if another process has them."""
    coordinates: Tensor
    n_taken: int = 0

    @property
    def is_used_up(self) -> bool:
        return self.n_taken >= self.n_rows

    def take(self, n_rows: int) -> RowRun:
        taken = slice(self.n_taken, min(self.n_taken + n_rows, self.n_rows))
        self.n_taken = taken.stop
        n_taken = taken.stop - taken.start
        return RowRun(n_taken, self.rows[taken], self.coordinates[taken])


@dataclass
class _Share:
    """Which of the processes this is that share the image batches."""

    rank: int
    n_ranks: int
    gather: Gather
    n_skipped_told: int = 0
    """How many of the images that this process could not use the others know of."""
    n_rows_of_epoch: int | None = None
    """Rows since the epoch began; None in an epoch whose start wasn't seen."""


class ViTActivationsStore(RowStore):
    """Batches of rows ``[train_batch_size_tokens, d_in]``, without end.

    A buffer is filled with the rows of consecutive image batches and served once in random order,
    so that each batch draws on as many images as uniform sampling from the buffer does. Images
    are seen epoch after epoch. The rows depend on ``seed``, not on ``n_workers``.

    Several processes share the image batches (``take_share``): each is decoded and run by one of
    them, which keeps its rows, so that no row is sent anywhere; of a training batch each process
    gives the rows it has.

    Args:
        model: the model, which is put into evaluation mode; only the blocks up to the hook run.
        images: where the images come from.
        hook_name: which activations, such as ``"blocks.10.hook_resid_post"``. Heads are flattened.
        token_kind: ``"all"``, ``"patches"`` or ``"cls"``.
        seqpos_slice: a slice of those tokens, as the arguments of ``slice``.
        train_batch_size_tokens: rows of a batch.
        store_batch_size_images: images the model sees at once.
        n_batches_in_buffer: batches the buffer holds. More of them mix more images and take
            ``n_batches_in_buffer · train_batch_size_tokens · d_in`` numbers of memory.
        n_workers: processes that decode images; 0: this one does.
        shuffle_images: visit the images in a new random order each epoch (a stream in the order
            that ``vit_sae_plugin.datasets.ImageLoader``'s shuffle buffer gives).
        seed: of both shuffles.
        dtype: of the rows, whatever the model's precision is.
        device: where the buffer and the batches are.
        autocast_model: run the model under bfloat16 autocast.
        hook_name_out: for transcoders: another hook, read in the same forward pass. Rows are then
            ``[input | output]``, as wide as both.
        hook_names_beside: more hooks, read in the same forward pass, whose rows stand to the right
            of those; see ``columns``.
        with_coordinates: keep where each row comes from, see ``coordinates``.

    Attributes:
        source: what the rows are, for the SAE's metadata.
        columns: name of a hook → which columns of a row are its own.
        coordinates: ``[rows, 3]`` of the batch given last: the image's index in its source, and
            row and column of the patch, −1 and −1 for what is no patch. None without
            ``with_coordinates``.
        skipped: the images that could not be used so far.

    Raises:
        ValueError: a size below 1, an unknown hook, a token kind the model doesn't have, or a
            model without preprocessing.
    """

    def __init__(
        self,
        model: HookedViT,
        images: ImageSource,
        *,
        hook_name: str,
        token_kind: str = "all",
        seqpos_slice: tuple[int | None, ...] = EVERY_TOKEN,
        train_batch_size_tokens: int = 4096,
        store_batch_size_images: int = 32,
        n_batches_in_buffer: int = 20,
        n_workers: int = 0,
        shuffle_images: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        autocast_model: bool = False,
        hook_name_out: str | None = None,
        hook_names_beside: Sequence[str] = (),
        with_coordinates: bool = False,
    ) -> None:
        for name, size in (
            ("train_batch_size_tokens", train_batch_size_tokens),
            ("store_batch_size_images", store_batch_size_images),
            ("n_batches_in_buffer", n_batches_in_buffer),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; want 1 or more")
        self.model = model.eval()  # dropout would make the rows random
        self.images = images
        self.preprocess = model.require_preprocess()
        out = [] if hook_name_out is None else [hook_name_out]
        self._sources = [
            ActivationSource.from_model(model, name, token_kind, seqpos_slice)
            for name in (hook_name, *out, *hook_names_beside)
        ]
        self.source = self._sources[0]
        self.hook_name_out = hook_name_out
        self.columns: dict[str, slice] = {}
        self.d_in = 0
        for source in self._sources:
            start, self.d_in = self.d_in, self.d_in + model.hook_width(source.hook_name)
            self.columns[source.hook_name] = slice(start, self.d_in)
        self.train_batch_size_tokens = train_batch_size_tokens
        self.store_batch_size_images = store_batch_size_images
        self.n_batches_in_buffer = n_batches_in_buffer
        self.n_workers = n_workers
        self.shuffle_images = shuffle_images
        self.seed = seed
        self.device = torch.device(device)
        self.autocast_model = autocast_model

        self.skipped: SkippedImages = SkippedImages()
        self.dtype = dtype
        self.with_coordinates = with_coordinates
        self._buffer = self._new_buffer(n_ranks=1)
        self.coordinates: Int[Tensor, "rows 3"] | None = None
        self._position = StorePosition()
        self._image_batches: Iterator[ImageBatch] | None = None
        self._open_batch: _OpenImageBatch | None = None
        self._dealt: deque[_OpenImageBatch] = deque()
        self._share: _Share | None = None

    @classmethod
    def from_config(
        cls, model: HookedViT, cfg: Any, override_images: Any = None, **changes: Any
    ) -> Self:
        """The store of a run.

        Args:
            model: the model.
            cfg: the run's settings, a ``ViTSAERunnerConfig``.
            override_images: use these instead of ``cfg.dataset_path``, as ``open_images``
                takes them.
            changes: what the store shall take instead of the run's settings.
        """
        if override_images is None:
            images = open_images(cfg.dataset_path, from_file=True)
        else:
            images = open_images(override_images)
        settings: dict[str, Any] = {
            "hook_name": cfg.hook_name,
            "token_kind": cfg.token_kind,
            "seqpos_slice": cfg.seqpos_slice,
            "train_batch_size_tokens": cfg.train_batch_size_tokens,
            "store_batch_size_images": cfg.store_batch_size_images,
            "n_batches_in_buffer": cfg.n_batches_in_buffer,
            "n_workers": cfg.n_workers,
            "shuffle_images": cfg.shuffle_images,
            "seed": cfg.seed,
            "dtype": str_to_dtype(cfg.dtype),
            "device": cfg.act_store_device or cfg.device,
            "autocast_model": cfg.autocast_model,
            "hook_name_out": cfg.hook_name_out,
        }
        return cls(model, images, **settings | changes)

    @classmethod
    def from_sae(cls, model: HookedViT, sae: SAE[Any], images: Any, **settings: Any) -> Self:
        """A store of the rows that a trained SAE reads, as its metadata say.

        Rows are the model's: an SAE whose metadata hold ``input_statistics`` or ``input_scaling``
        reads them through ``AttachedSAE``.

        Args:
            model: the model.
            sae: the SAE.
            images: as ``open_images`` takes them.
            settings: batch sizes and whatever else the store takes.

        Raises:
            ValueError: the SAE's metadata don't say what it reads, or the model doesn't fit.
        """
        source = ActivationSource.from_metadata(sae.cfg.metadata)
        source.check_model(model)
        selection = {
            "hook_name": source.hook_name,
            "token_kind": source.token_kind,
            "seqpos_slice": source.seqpos_slice,
            "hook_name_out": sae.cfg.metadata.hook_name_out,
        }
        return cls(model, open_images(images), **selection, **settings)

    def __repr__(self) -> str:
        n_rows, what = self.train_batch_size_tokens, self.source
        return (
            f"<ViTActivationsStore of {self.images!r}: {what.token_kind} tokens at "
            f"{what.hook_name}, batches of {n_rows:,} rows of {self.d_in}>"
        )

    def __next__(self) -> Float[Tensor, "train_batch_size_tokens d_in"]:
        """The next batch, in memory of its own.

        Raises:
            NoReadableImagesError: no image of the source can be read.
        """
        if not self._buffer.is_filled:
            try:
                self._buffer.fill_share(self._take_rows, (self.seed, self._position.buffer))
            except BaseException:
                # an interrupt must not leave the position and the stream of images apart
                self._forget_buffer()
                raise
        batch = self._buffer.batch(self._position.batch_in_buffer)
        self.global_batch_rows = self.train_batch_size_tokens
        if self.with_coordinates:
            self.coordinates = self._buffer.coordinates(self._position.batch_in_buffer)
        self._position.batch_in_buffer += 1
        if self._position.batch_in_buffer == self.n_batches_in_buffer:
            self._position = self._start_of_next_buffer()
            self._buffer.empty()
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where the store stands; ``load_state_dict`` goes on from there."""
        return asdict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a store with the same settings stood.

        The buffer is computed again, from image batches of the same images; on a CPU its rows are
        the same to the bit.
        """
        self._position = StorePosition(**state)
        self._forget_buffer()

    def take_share(self, rank: int, n_ranks: int, gather: Gather) -> None:
        """Decode and run every ``n_ranks``-th image batch, and give the rows of those alone.

        Which rows a training batch has depends on how many images could be used, so the processes
        tell each other of every image batch; and each knows of all images that were skipped.
        """
        self._share = _Share(rank, n_ranks, gather)
        self._buffer = self._new_buffer(n_ranks)
        self._forget_buffer()

    def describe(self) -> dict[str, Any]:
        """The source's description, and the output hook's name."""
        return self.describe_part(self.source.hook_name, self.hook_name_out)

    def describe_part(self, hook_name: str, hook_name_out: str | None) -> dict[str, Any]:
        """What ``describe`` of a store of these hooks alone gives; both are read here."""
        named = {source.hook_name: source for source in self._sources}
        description = named[hook_name].to_metadata()
        if hook_name_out is not None:
            description["hook_name_out"] = hook_name_out
        return description

    def fingerprint(self) -> dict[str, Any]:
        """The source's description, and the images'."""
        return {"model": self.describe(), "images": self.images.fingerprint()}

    def close(self) -> None:
        """End the worker processes. The buffer they filled is forgotten, and filled again."""
        self._forget_buffer()

    def _new_buffer(self, n_ranks: int) -> ShuffleBuffer:
        return ShuffleBuffer(
            self.n_batches_in_buffer,
            self.train_batch_size_tokens,
            self.d_in,
            self.dtype,
            self.device,
            n_coordinates=3 if self.with_coordinates else 0,
            n_ranks=n_ranks,
        )

    def _take_rows(self, n_rows: int) -> RowRun:
        """The rows that follow, at most ``n_rows``."""
        while self._open_batch is None or self._open_batch.is_used_up:
            if not self._dealt:
                self._dealt.extend(self._next_image_batches())
            self._open_batch = self._dealt.popleft()
        return self._open_batch.take(n_rows)

    def _next_image_batches(self) -> list[_OpenImageBatch]:
        """The next image batch; where they are shared out, the next of each process."""
        n_taken = 0
        if self._image_batches is None:
            loader = ImageLoader(
                self.images,
                self.preprocess,
                batch_size_images=self.store_batch_size_images,
                n_workers=self.n_workers,
                shuffle=self.shuffle_images,
                seed=self.seed,
                n_epochs=None,
                start_batch=self._position.image_batch,
                share=None if self._share is None else (self._share.rank, self._share.n_ranks),
            )
            loader.skipped = self.skipped
            self._image_batches = iter(loader)
            n_taken = self._position.row_in_image_batch
        images = next(self._image_batches)
        own = self._run_model(images)
        batches = [own] if self._share is None else self._deal(own, images, self._share)
        batches[0].n_taken = n_taken
        return batches

    def _run_model(self, images: ImageBatch) -> _OpenImageBatch:
        if len(images.pixels) == 0:
            return self._batch_elsewhere(images.batch_number, 0)
        with torch.autocast(
            self.model.cfg.device.type, dtype=torch.bfloat16, enabled=self.autocast_model
        ):
            values = hook_values(self._sources, self.model, images.pixels)
        rows = self._rows(values).flatten(end_dim=1)
        coordinates = torch.empty(len(rows), 0, dtype=torch.long)
        if self.with_coordinates:
            coordinates = self._coordinates_of(images, values[0])
        return _OpenImageBatch(images.batch_number, len(rows), rows, coordinates)

    def _deal(
        self, own: _OpenImageBatch, images: ImageBatch, share: _Share
    ) -> list[_OpenImageBatch]:
        """The batches that the processes have just run, in order."""
        skipped = self.skipped.to_list()
        news = {
            "number": own.number,
            "n_rows": own.n_rows,
            "starts_epoch": images.starts_epoch,
            "skipped": skipped[share.n_skipped_told :],
        }
        told = [json.loads(text) for text in share.gather(json.dumps(news))]
        for entry in (entry for news in told for entry in news["skipped"]):
            self.skipped.add(*entry)
        share.n_skipped_told = len(self.skipped)
        told.sort(key=lambda news: news["number"])
        for news in told:
            if news["starts_epoch"]:
                if share.n_rows_of_epoch == 0:
                    raise NoReadableImagesError(
                        f"no image of {self.images.name} can be used ({self.skipped!r}); want "
                        "some that can"
                    )
                share.n_rows_of_epoch = 0
            if share.n_rows_of_epoch is not None:
                share.n_rows_of_epoch += news["n_rows"]
        return [
            own
            if news["number"] == own.number
            else self._batch_elsewhere(news["number"], news["n_rows"])
            for news in told
        ]

    def _batch_elsewhere(self, number: int, n_rows: int) -> _OpenImageBatch:
        rows = torch.empty(0, self.d_in)
        return _OpenImageBatch(number, n_rows, rows, torch.empty(0, 3, dtype=torch.long))

    def _rows(self, values: list[Tensor]) -> Float[Tensor, "batch token d_in"]:
        cfg = self.model.cfg
        parts = [s.select(cfg, value) for s, value in zip(self._sources, values, strict=True)]
        if len({part.shape[1] for part in parts}) > 1:
            names = [source.hook_name for source in self._sources]
            counts = [
                f"{name} has {part.shape[1]}" for name, part in zip(names, parts, strict=True)
            ]
            raise ValueError(f"{', '.join(counts)} tokens; want hooks with the same tokens")
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _coordinates_of(self, images: ImageBatch, hook_value: Tensor) -> Int[Tensor, "rows 3"]:
        places = self.source.layout(self.model.cfg, hook_value).row_and_column
        index = images.index.repeat_interleave(len(places)).unsqueeze(1)
        return torch.cat([index, places.repeat(len(images.index), 1)], dim=1)

    def _start_of_next_buffer(self) -> StorePosition:
        last = self._open_batch
        if last is None:
            raise RuntimeError("no image batch has been read")
        buffer = self._position.buffer + 1
        if last.is_used_up:
            return StorePosition(last.number + 1, 0, buffer)
        return StorePosition(last.number, last.n_taken, buffer)

    def _forget_buffer(self) -> None:
        self._buffer.empty()
        self._open_batch = None
        self._dealt.clear()
        self._image_batches = None
        if self._share is not None:
            self._share.n_rows_of_epoch = None
