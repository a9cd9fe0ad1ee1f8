"""Each data set from a small made-up folder in the layout that its site and CoOp ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datasets.odd_images import encoded
from tests.datasets.sources import picture
from vit_sae_plugin.datasets import BENCHMARK_SETS, BenchmarkImages, open_images

Expected = dict[str, tuple[list[tuple[str, int]], list[str]]]
"""Split → (id and label of each image, class names)."""

JPEG = encoded(picture(1), "JPEG")


def fill(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(JPEG)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def coop(images: str, split_file: str) -> Callable[[Path], Expected]:
    """Three classes, in an order of their own; the test split has none of the second."""

    def make(root: Path) -> Expected:
        splits = {
            "train": [["z/1.jpg", 0, "zig_zag"], ["a b/2.jpg", 1, "ant"], ["m/3.jpg", 2, "moth"]],
            "val": [["m/4.jpg", 2, "moth"]],
            "test": [["z/5.jpg", 0, "zig_zag"], ["m/6.jpg", 2, "moth"]],
        }
        for entries in splits.values():
            fill(root / images, *(path for path, _, _ in entries))
        write(root / split_file, json.dumps(splits))
        names = ["zig zag", "ant", "moth"]
        return {
            split: ([(path, label) for path, label, _ in entries], names)
            for split, entries in splits.items()
        }

    return make


def make_aircraft(root: Path) -> Expected:
    write(root / "variants.txt", "707-320\nA300B4\n")
    expected: Expected = {}
    for split, image in (("train", "0034309"), ("val", "0000009"), ("test", "1026288")):
        fill(root / "images", f"{image}.jpg")
        write(root / f"images_variant_{split}.txt", f"{image} A300B4\n")
        expected[split] = [(f"{image}.jpg", 1)], ["707-320", "A300B4"]
    return expected


CLASSNAMES = "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\n"
NAMES = ["tench", "goldfish", "great white shark"]
WNIDS = ["n01440764", "n01443537", "n01484850"]


def make_imagenet(root: Path) -> Expected:
    write(root / "classnames.txt", CLASSNAMES)
    for split in ("train", "val"):
        fill(root / "images" / split, *(f"{wnid}/{split}.JPEG" for wnid in WNIDS))
    return {
        split: ([(f"{wnid}/{folder}.JPEG", n) for n, wnid in enumerate(WNIDS)], NAMES)
        for split, folder in (("train", "train"), ("test", "val"))
    }


def imagenet_variant(images: str, folders: list[str], names: list[str]) -> Callable:
    def make(root: Path) -> Expected:
        write(root.parent / "imagenet" / "classnames.txt", CLASSNAMES)
        fill(root / images, *(f"{folder}/x.jpg" for folder in folders))
        write(root / images / "README.txt", "no class")
        return {"test": ([(f"{own}/x.jpg", n) for n, own in enumerate(folders)], names)}

    return make


def make_waterbirds(root: Path) -> Expected:
    rows = [("001.Gull/a.jpg", 1, 1, 0), ("002.Wren/b.jpg", 0, 0, 0), ("002.Wren/c.jpg", 0, 1, 2)]
    fill(root, *(row[0] for row in rows), "003.Val/d.jpg")
    lines = [
        f"{n},{image},{y},{split},{place},x" for n, (image, y, place, split) in enumerate(rows)
    ]
    head = "img_id,img_filename,y,split,place,place_filename"
    write(root / "metadata.csv", "\n".join([head, *lines, "9,003.Val/d.jpg,1,1,0,x"]))
    names = ["landbird", "waterbird"]
    return {
        "train": ([("001.Gull/a.jpg", 1), ("002.Wren/b.jpg", 0)], names),
        "val": ([("003.Val/d.jpg", 1)], names),
        "test": ([("002.Wren/c.jpg", 0)], names),
    }


def make_celeba(root: Path) -> Expected:
    names = ["000001.jpg", "000002.jpg", "000003.jpg"]
    fill(root / "img_align_celeba", *names)
    write(
        root / "list_attr_celeba.txt",
        "3\nBlond_Hair Male Young\n000001.jpg -1  1 -1\n000002.jpg  1 -1  1\n000003.jpg  1 1 1\n",
    )
    write(root / "list_eval_partition.txt", "000001.jpg 0\n000002.jpg 0\n000003.jpg 2\n")
    classes = ["not blond hair", "blond hair"]
    return {
        "train": ([("000001.jpg", 0), ("000002.jpg", 1)], classes),
        "test": ([("000003.jpg", 1)], classes),
    }


MAKE: dict[str, Callable[[Path], Expected]] = {
    "imagenet": make_imagenet,
    "caltech101": coop("101_ObjectCategories", "split_zhou_Caltech101.json"),
    "pets": coop("images", "split_zhou_OxfordPets.json"),
    "cars": coop("", "split_zhou_StanfordCars.json"),
    "flowers102": coop("jpg", "split_zhou_OxfordFlowers.json"),
    "food101": coop("images", "split_zhou_Food101.json"),
    "aircraft": make_aircraft,
    "sun397": coop("SUN397", "split_zhou_SUN397.json"),
    "dtd": coop("images", "split_zhou_DescribableTextures.json"),
    "eurosat": coop("2750", "split_zhou_EuroSAT.json"),
    "ucf101": coop("UCF-101-midframes", "split_zhou_UCF101.json"),
    "imagenet_v2": imagenet_variant(
        "imagenetv2-matched-frequency-format-val", ["0", "1", "2"], NAMES
    ),
    "imagenet_sketch": imagenet_variant("images", WNIDS, NAMES),
    "imagenet_a": imagenet_variant("imagenet-a", WNIDS[1:], NAMES[1:]),
    "imagenet_r": imagenet_variant("imagenet-r", WNIDS[::2], NAMES[::2]),
    "waterbirds": make_waterbirds,
    "celeba": make_celeba,
}


@pytest.mark.parametrize("name", BENCHMARK_SETS)
def test_each_data_set_is_read_from_its_layout(name: str, tmp_path: Path) -> None:
    folder = BENCHMARK_SETS[name].folder
    expected = MAKE[name](tmp_path / folder)
    for split, (images, class_names) in expected.items():
        for place in (tmp_path, tmp_path / folder):
            source = open_images(f"{name}:{place}:{split}")
            assert [(record.id, record.label) for record in source.records()] == images
            assert source.class_names == class_names
            assert source.record(0).load().size == picture(1).size
            assert all(template.count("{}") == 1 for template in source.templates)
    assert open_images(f"{name}:{tmp_path}").name == f"{name}-{next(iter(expected))}"
    with pytest.raises(ValueError, match=r"split is 'extra'; want one of .*: t"):
        BenchmarkImages(name, tmp_path, split="extra")
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(FileNotFoundError, match=r"is missing.*is to be had from https://"):
        open_images(f"{name}:{tmp_path / folder}")


def test_official_splits(tmp_path: Path) -> None:
    dtd, pets, food = tmp_path / "dtd", tmp_path / "pets", tmp_path / "food"
    fill(dtd / "images", "banded/b_1.jpg", "dotted/d_1.jpg")
    for split, line in (("train", "dotted/d_1.jpg"), ("val", "banded/b_1.jpg"), ("test", "")):
        write(dtd / "labels" / f"{split}1.txt", line + "\n")
    fill(pets / "images", "Abyssinian_100.jpg", "american_bulldog_2.jpg")
    write(pets / "annotations" / "trainval.txt", "Abyssinian_100 1 1 1\n")
    write(pets / "annotations" / "test.txt", "american_bulldog_2 2 2 1\n")
    fill(food / "images", "apple_pie/7.jpg", "waffles/8.jpg")
    write(food / "meta" / "train.txt", "waffles/8\n")
    write(food / "meta" / "test.txt", "apple_pie/7\n")
    for text, image, label, class_names in (
        (f"dtd:{dtd}?splits=official", "dotted/d_1.jpg", 1, ["banded", "dotted"]),
        (f"pets:{pets}:test?splits=official", "american_bulldog_2.jpg", 1, None),
        (f"food101:{food}?splits=official", "waffles/8.jpg", 1, ["apple pie", "waffles"]),
    ):
        source = open_images(text)
        assert [(record.id, record.label) for record in source.records()] == [(image, label)]
        assert source.class_names == (class_names or ["Abyssinian", "american bulldog"])
    with pytest.raises(ValueError, match="'official'; SUN397 can be read with 'coop' only"):
        open_images(f"sun397:{tmp_path}?splits=official")


def test_groups_of_the_bias_data_sets(tmp_path: Path) -> None:
    make_waterbirds(tmp_path / "waterbirds")
    frame = open_images(f"waterbirds:{tmp_path}").labels_frame()
    assert frame["group"].tolist() == [3, 0]
    assert frame["place"].tolist() == ["water", "land"]
    assert frame["class_name"].tolist() == ["waterbird", "landbird"]
    make_celeba(tmp_path / "celeba")
    assert open_images(f"celeba:{tmp_path}").labels_frame()["group"].tolist() == [1, 2]
    young = open_images(f"celeba:{tmp_path}?attribute=Young")
    assert young.class_names == ["not young", "young"]
    assert young.labels_frame()["Blond_Hair"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="'Bald'; it has Blond_Hair, Male, Young"):
        open_images(f"celeba:{tmp_path}?attribute=Bald")
    with pytest.raises(ValueError, match="Waterbirds has no option 'attribute'"):
        open_images(f"waterbirds:{tmp_path}?attribute=Bald")


def test_a_split_file_that_does_not_fit(tmp_path: Path) -> None:
    dtd = tmp_path / "dtd"
    expected = MAKE["dtd"](dtd)
    split_file = dtd / "split_zhou_DescribableTextures.json"
    splits = json.loads(split_file.read_text())
    (dtd / "images" / expected["train"][0][0][0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"DTD: 1 of 3 images of the split are missing"):
        open_images(f"dtd:{tmp_path}")
    for wrong in ("[]", "{", '{"train": [[1, 2]]}', json.dumps({"train": splits["train"]})[:-3]):
        split_file.write_text(wrong)
        with pytest.raises(ValueError, match=r"isn't of the form"):
            open_images(f"dtd:{tmp_path}")
    split_file.write_text(json.dumps({"train": [["../x.jpg", 0, "x"]]}))
    with pytest.raises(ValueError, match="lies outside"):
        open_images(f"dtd:{tmp_path}")
    split_file.write_text(json.dumps({"train": [["x.jpg", 1, "x"]]}))
    with pytest.raises(ValueError, match=r"labels from 1 to 1 for 1 classes; want each from 0 on"):
        open_images(f"dtd:{tmp_path}")


def test_the_table_in_the_docs_lists_every_data_set() -> None:
    table = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for name, entry in BENCHMARK_SETS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{entry.folder}/`" in row
        assert all(f"`{template}`" in row for template in entry.templates)
