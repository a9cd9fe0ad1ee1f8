"""Columns, labels, splits, saved data sets, and rows that hold no usable image."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from datasets import Image as ImageFeature

from tests.datasets import sources
from tests.datasets.odd_images import encoded
from tests.datasets.preprocessing import small
from tests.datasets.sources import N_IMAGES, number_in, picture
from vit_sae_plugin.datasets import (
    ArrayImages,
    HuggingFaceImages,
    UnreadableImageError,
    open_images,
)


def rows(**columns: tuple[object, list]) -> Dataset:
    """A data set from name → (feature, values)."""
    return Dataset.from_dict(
        {name: values for name, (_, values) in columns.items()},
        features=Features({name: feature for name, (feature, _) in columns.items()}),
    )


def pngs(*numbers: int) -> list[dict]:
    return [{"bytes": encoded(picture(number), "PNG"), "path": None} for number in numbers]


def test_the_label_is_found_and_its_names_with_it() -> None:
    source = HuggingFaceImages(
        rows(
            x=(Value("int64"), [7, 8, 9]),
            kind=(ClassLabel(names=["cat", "dog"]), [1, 0, None]),
            image=(ImageFeature(), pngs(1, 2, 3)),
        )
    )
    assert (source.image_column, source.label_column) == ("image", "kind")
    assert source.class_names == ["cat", "dog"]
    assert [record.label for record in source.records()] == [1, 0, None]


def test_integer_and_text_labels() -> None:
    numbers = rows(image=(ImageFeature(), pngs(1, 2)), label=(Value("int32"), [5, -1]))
    assert [r.label for r in HuggingFaceImages(numbers).records()] == [5, None]
    assert HuggingFaceImages(numbers).class_names is None
    with pytest.raises(ValueError, match="'label' is 5; want 0 to 1"):
        HuggingFaceImages(numbers, class_names=["a", "b"])
    texts = rows(image=(ImageFeature(), pngs(1, 2, 3)), species=(Value("string"), ["b", None, "a"]))
    assert HuggingFaceImages(texts).label_column is None
    chosen = HuggingFaceImages(texts, label_column="species")
    assert [r.label for r in chosen.records()] == [1, None, 0]
    assert chosen.class_names == ["a", "b"]


def test_columns_that_cannot_be_guessed_are_asked_for() -> None:
    two = rows(left=(ImageFeature(), pngs(1)), right=(ImageFeature(), pngs(2)))
    with pytest.raises(ValueError, match=r"\['left', 'right'\]; want image_column"):
        HuggingFaceImages(two)
    right = HuggingFaceImages(two, image_column="right").record(0).load()
    assert right.getpixel((0, 0)) == picture(2).getpixel((0, 0))
    with pytest.raises(ValueError, match="no column of type Image"):
        HuggingFaceImages(rows(x=(Value("int64"), [1])))
    with pytest.raises(ValueError, match="no column 'colour'"):
        HuggingFaceImages(two, image_column="right", label_column="colour")
    with pytest.raises(ValueError, match="class_names has 3 names; want 2"):
        HuggingFaceImages(
            rows(image=(ImageFeature(), pngs(1)), label=(ClassLabel(names=["cat", "dog"]), [0])),
            class_names=["a", "b", "c"],
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_usable_image(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(encoded(picture(4), "PNG"))
    cells = [
        None,
        {"bytes": b"not an image", "path": None},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": None, "path": str(tmp_path / "file.png")},
        {"bytes": None, "path": "nowhere://gone.png"},
    ]
    data = rows(image=(ImageFeature(), cells))
    source = HuggingFaceImages(data.to_iterable_dataset() if streaming else data)
    seen: list[object] = []
    for record in source.records():
        try:
            seen.append(number_in(small(record.load()).numpy()))
        except UnreadableImageError as error:
            seen.append(error.reason.partition(": ")[0])
    assert seen == [
        "no image in this row",
        "not an image of a known format",
        "no such file",
        4,
        "cannot be downloaded",
    ]
    assert len(source.fingerprint()) == 64


def test_a_column_of_paths(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(encoded(picture(4), "PNG"))
    data = rows(file=(Value("string"), [str(tmp_path / "file.png")]))
    record = HuggingFaceImages(data, image_column="file").record(0)
    assert record.load().size == picture(4).size


def test_reordered_and_selected_data_sets_keep_rows_and_labels_together() -> None:
    source = HuggingFaceImages(sources.hugging_face_rows().shuffle(seed=5).select(range(10)))
    for record in source.records():
        assert record.label == sources.label_of(number_in(small(record.load()).numpy()))


def test_a_stream_of_a_generator_with_unknown_columns() -> None:
    def generate():
        for number in range(3):
            yield {"picture": picture(number), "label": number}

    stream = IterableDataset.from_generator(generate)
    source = HuggingFaceImages(stream, name="made up")
    assert source.is_streaming
    assert [record.label for record in source.records(1)] == [1, 2]
    assert [number_in(small(r.load()).numpy()) for r in source.records()] == [0, 1, 2]


def test_saved_data_sets_and_their_splits(tmp_path: Path) -> None:
    all_rows = sources.hugging_face_rows()
    all_rows.save_to_disk(tmp_path / "plain")
    for opened in (open_images(tmp_path / "plain"), open_images(f"hf:{tmp_path / 'plain'}")):
        assert isinstance(opened, HuggingFaceImages)
        assert opened.n_images == N_IMAGES
        assert opened.fingerprint() == HuggingFaceImages(all_rows).fingerprint()

    splits = DatasetDict({"small": all_rows.select(range(3)), "large": all_rows})
    splits.save_to_disk(tmp_path / "splits")
    assert open_images(f"hf:{tmp_path / 'splits'}:small").n_images == 3
    assert open_images(splits, split="large").n_images == N_IMAGES
    with pytest.raises(ValueError, match=r"split is None; want one of \['small', 'large'\]"):
        open_images(tmp_path / "splits")


def test_a_name_goes_to_load_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load_dataset(path: str, **options: object) -> Dataset:
        asked.update(path=path, **options)
        return sources.hugging_face_rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_images("hf:some/name:train[:50%]?config_name=plain&revision=v2")
    assert asked == {
        "path": "some/name",
        "split": "train[:50%]",
        "name": "plain",
        "streaming": False,
        "revision": "v2",
    }
    assert source.name == "some/name:train[:50%]"
    open_images("hf:some/name?streaming=true", data_dir="x")
    assert (asked["split"], asked["streaming"], asked["data_dir"]) == ("train", True, "x")


def test_equal_images_in_another_kind_of_source_are_equal() -> None:
    stored = HuggingFaceImages(sources.hugging_face_rows())
    in_memory = ArrayImages(sources.arrays(), labels=sources.labels())
    for one, other in zip(stored.records(), in_memory.records(), strict=True):
        assert one.load().tobytes() == other.load().tobytes()
        assert one.label == other.label
