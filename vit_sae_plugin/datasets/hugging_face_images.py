"""The image column of a Hugging Face ``datasets`` data set, held locally or streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vit_sae_plugin.datasets.image_decoding import (
    DEFAULT_LIMITS,
    DecodingLimits,
    UnreadableImageError,
    refuse,
)
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    fingerprint_of,
    valid_text,
)

_LABEL_COLUMNS = ("label", "labels")
_N_RECORDS_IN_STREAM_FINGERPRINT = 16


class HuggingFaceImages(ImageSource):
    """Images, and labels if there are any, of a ``datasets.Dataset`` or ``IterableDataset``.

    The library hands out the undecoded file; decoding is ours, so that a damaged image costs only
    itself.

    Args:
        dataset: the data set itself, the folder of a saved one (``save_to_disk``), or a name on the
            hub.
        config_name: which of a named data set's configurations.
        split: of a named or saved data set with splits; default "train", or the only one.
        streaming: read a named data set without downloading it first; images come in its order.
        image_column: needed if there is none, or more than one, of type ``Image``.
        label_column: default the only ``ClassLabel`` column, else an integer or text column called
            "label" or "labels". Text labels are numbered in alphabetical order (not of streams).
        class_names: overrides the names of the label column, by index; may repeat.
        name: for reports.
        limits: sizes beyond which an image is refused.
        **load_dataset_options: passed to ``datasets.load_dataset``, for example ``data_dir``.

    Raises:
        ValueError: no such column or split, or more than one that would fit.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        config_name: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        limits: DecodingLimits = DEFAULT_LIMITS,
        **load_dataset_options: Any,
    ) -> None:
        from datasets import IterableDataset

        self.limits = limits
        if isinstance(dataset, (str, Path)):
            name = name or (f"{dataset}:{split}" if split else str(dataset))
            options = {"name": config_name, "streaming": streaming, **load_dataset_options}
            dataset = _load(str(dataset), split, options)
        dataset = _one_split(dataset, split)
        name = name or getattr(dataset.info, "dataset_name", None) or "hugging face data set"
        self.name = valid_text(name)
        self.is_streaming = isinstance(dataset, IterableDataset)
        features = dict(dataset.features or _features_of_first_row(dataset, self.name))
        self.image_column = image_column or _the_image_column(features, self.name)
        self.label_column = label_column or _the_label_column(features)
        for column in (self.image_column, self.label_column):
            if column is not None and column not in features:
                raise ValueError(
                    f"{self.name} has no column {column!r}; want one of {list(features)}"
                )
        self._dataset = _undecoded(dataset, self.image_column, self.label_column)
        self._labels = np.empty(0, dtype=np.int64)
        names = getattr(features.get(self.label_column), "names", None)
        if not self.is_streaming:
            self.n_images = len(dataset)
            self._labels, text_labels = self._read_labels()
            names = names or text_labels
        if class_names is not None and names is not None and len(class_names) != len(names):
            raise ValueError(
                f"class_names has {len(class_names)} names; want {len(names)}, one for each class "
                f"of {self.label_column!r}, in order"
            )
        chosen = class_names if class_names is not None else names
        self.class_names = None if chosen is None else [valid_text(n) for n in chosen]
        if self.class_names is not None and self._labels.max(initial=-1) >= len(self.class_names):
            raise ValueError(
                f"a label of {self.label_column!r} is {self._labels.max()}; want 0 to "
                f"{len(self.class_names) - 1}, an index into class_names"
            )
        self._fingerprint: str | None = None

    def record(self, index: int) -> ImageRecord:
        if self.is_streaming:
            return super().record(index)
        if not 0 <= index < len(self._labels):
            raise IndexError(
                f"index is {index}; want 0 to {len(self._labels) - 1}, those of {self.name}"
            )
        label = int(self._labels[index])
        return ImageRecord(
            index=index,
            id=str(index),
            label=label if label >= 0 else None,
            content=partial(self._read, index),
            limits=self.limits,
        )

    def records(self, start: int = 0) -> Iterator[ImageRecord]:
        if not self.is_streaming:
            yield from super().records(start)
            return
        rows = self._dataset.skip(start) if start else self._dataset
        for index, row in enumerate(rows, start):
            label = row.get(self.label_column) if self.label_column else None
            yield ImageRecord(
                index=index,
                id=str(index),
                label=label if isinstance(label, int) and label >= 0 else None,
                content=_content(row[self.image_column]),
                limits=self.limits,
            )

    def labels(self) -> np.ndarray:
        return super().labels() if self.is_streaming else self._labels.copy()

    def fingerprint(self) -> str:
        """Over labels and the size and file name of each image.

        A stream cannot be looked through beforehand: its description and first records stand for
        it.
        """
        if self._fingerprint is None:
            parts = self._parts_of_stream() if self.is_streaming else self._parts_of_rows()
            self._fingerprint = fingerprint_of(parts)
        return self._fingerprint

    def _read(self, index: int) -> Any:
        content = _content(self._dataset[index][self.image_column])
        return content() if callable(content) else content

    def _read_labels(self) -> tuple[np.ndarray, list[str] | None]:
        n_rows = len(self._dataset)
        if self.label_column is None:
            return np.full(n_rows, -1, dtype=np.int64), None
        values = self._dataset[self.label_column][:]
        names = None
        if any(isinstance(value, str) for value in values):
            names = sorted({value for value in values if value is not None})
            number_of = {name: number for number, name in enumerate(names)}
            values = [None if value is None else number_of[value] for value in values]
        return np.array([-1 if v is None else int(v) for v in values], dtype=np.int64), names

    def _parts_of_rows(self) -> Iterator[str | bytes]:
        import pyarrow as pa
        import pyarrow.compute as pc

        yield "hugging face rows"
        yield self._labels.tobytes()
        # Lengths come from the table's offsets: no image is read.
        stored = self._dataset.data.column(self.image_column)
        order = self._dataset._indices
        order = slice(None) if order is None else order.column(0).to_numpy()
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(stored, "bytes")), -1)
        yield lengths.cast(pa.int64()).to_numpy()[order].tobytes()
        paths = np.array(pc.struct_field(stored, "path").to_pylist(), dtype=object)[order]
        for path in paths:
            yield "" if path is None else os.path.basename(path)

    def _parts_of_stream(self) -> Iterator[str | bytes]:
        yield "hugging face stream"
        yield str(self._dataset.features)
        yield str(self._dataset.split)
        for record in islice(self.records(), _N_RECORDS_IN_STREAM_FINGERPRINT):
            content = record.content
            yield f"{record.label}"
            yield content if isinstance(content, bytes) else type(content).__name__


def _load(name: str, split: str | None, options: dict[str, Any]) -> Any:
    from datasets import load_dataset, load_from_disk

    if is_saved_dataset(name):
        return load_from_disk(name)
    return load_dataset(name, split=split or "train", **options)


def is_saved_dataset(path: str | Path) -> bool:
    """Whether ``path`` is a folder written by ``save_to_disk``."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _one_split(dataset: Any, split: str | None) -> Any:
    if not isinstance(dataset, dict):
        return dataset
    wanted = split or ("train" if "train" in dataset else None)
    if wanted is None and len(dataset) == 1:
        wanted = next(iter(dataset))
    if wanted not in dataset:
        raise ValueError(f"split is {wanted!r}; want one of {list(dataset)}")
    return dataset[wanted]


def _features_of_first_row(dataset: Any, name: str) -> dict[str, Any]:
    """A stream made by a generator may not say what its columns are."""
    from datasets import Image
    from PIL import Image as PILImage

    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(
            f"{name} is an empty stream, so its columns are not known; want one with a row"
        )
    return {
        column: Image() if isinstance(value, PILImage.Image) else None
        for column, value in row.items()
    }


def _the_image_column(features: dict[str, Any], name: str) -> str:
    from datasets import Image

    columns = [column for column, feature in features.items() if isinstance(feature, Image)]
    if len(columns) == 1:
        return columns[0]
    found = f"the image columns {columns}" if columns else "no column of type Image"
    raise ValueError(f"{name} has {found}; want image_column, one of {list(features)}")


def _the_label_column(features: dict[str, Any]) -> str | None:
    from datasets import ClassLabel

    columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(columns) == 1:
        return columns[0]
    for column in _LABEL_COLUMNS:
        dtype = str(getattr(features.get(column), "dtype", "int64"))
        if column in features and ("int" in dtype or dtype in ("string", "large_string")):
            return column
    return None


def _undecoded(dataset: Any, image_column: str, label_column: str | None) -> Any:
    from datasets import Image

    columns = [image_column] if label_column is None else [image_column, label_column]
    dataset = dataset.select_columns(columns)
    if dataset.features is None:
        return dataset
    return dataset.with_format(None).cast_column(image_column, Image(decode=False))


def _content(cell: Any) -> Any:
    """What ``ImageRecord`` can hold, for one cell of the image column."""
    if cell is None:
        return partial(refuse, "no image in this row")
    if not isinstance(cell, dict):
        return cell
    if cell.get("bytes") is not None:
        return cell["bytes"]
    path = cell.get("path")
    if path is None:
        return partial(refuse, "no image in this row")
    return path if os.path.lexists(path) or "://" not in path else partial(_download, path)


def _download(url: str) -> bytes:
    from datasets.download.streaming_download_manager import xopen

    try:
        with xopen(url, "rb") as file:
            return file.read()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        raise UnreadableImageError("cannot be downloaded", detail) from None
