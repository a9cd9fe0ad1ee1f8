"""The files of a report."""

import re
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.analysis.test_explanation import Stream
from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.report.reports import HOSTILE, Report, UnlabelledPictures, shares_of
from vit_sae_plugin.analysis import analyze, explain, heatmap
from vit_sae_plugin.analysis.atlas.latent_tables import ReferenceTable
from vit_sae_plugin.analysis.pictures.seen_region import seen_region
from vit_sae_plugin.report import (
    check_report_folder,
    check_report_options,
    static_site,
    write_report,
)
from vit_sae_plugin.report.patch_masks import as_shares, mask_string, preview_string
from vit_sae_plugin.report.reference_masks import ReferenceMasks
from vit_sae_plugin.report.site_data import leading_labels, number, write_data


def test_files_need_no_server_and_no_network(made):
    pages = {path.name for path in made.folder.iterdir() if path.is_file()}
    assert {"index.html", "latent.html", "explain.html", "site.css", "site.js"} <= pages
    for name in pages:
        text = (made.folder / name).read_text(encoding="utf-8")
        remote = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
        assert set(remote) <= {"http://www.w3.org"}, name  # the name of the SVG elements
        assert not re.search(r"fetch\(|XMLHttpRequest|innerHTML|type=.module", text), name
        for linked in re.findall(r'(?:src|href)="([\w./]+)"', text):
            assert (made.folder / linked).is_file(), (name, linked)


def test_index_data_is_that_of_the_atlas(made):
    data = made.data("atlas")
    alive = made.atlas.latents[~made.atlas.latents["is_dead"]]
    assert data["latents"]["id"] == alive.index.tolist()
    for key, column in {
        "frequency": "frequency",
        "token_frequency": "token_frequency",
        "mean": "mean_activation",
        "max": "max_activation",
        "entropy": "label_entropy",
        "std": "label_std",
        "n_active_images": "n_active_images",
        "dense": "is_dense",
    }.items():
        assert data["latents"][key] == [number(value) for value in alive[column]], key
    assert None in data["latents"]["entropy"]
    assert data["names"].keys() == {"3"}
    assert data["names"]["3"]["name"] == "third one"
    assert data["facts"]["n_dead"] == len(data["dead"]) > 0
    assert made.atlas.latents.loc[data["dead"], "is_dead"].all()
    assert data["facts"]["hashes"]["SAE"] == made.atlas.info.sae_sha256
    leading = leading_labels(made.atlas, alive.index)
    assert data["latents"]["classes"] == [[c for c, _ in some] for some in leading]
    top = [made.atlas.top_classes(i, 1, by="rate").index.tolist() for i in alive.index]
    assert data["latents"]["top_class_by_rate"] == [some[0] if some else None for some in top]
    top = [made.atlas.top_classes(i, 1).index.tolist() for i in alive.index]
    assert data["latents"]["top_class"] == [some[0] if some else None for some in top]


def test_the_heading_class_leads_the_reference_images(made):
    """Class-level counts grow with a class's size: they must not name a latent."""
    for latent, classes in zip(range(6), leading_labels(made.atlas, range(6)), strict=True):
        rows = made.atlas.reference_images(latent)
        sums = rows.groupby("label")["value"].sum().sort_values(ascending=False)
        assert [c for c, _ in classes] == sums.index.tolist()[:3], latent
        shares = (sums / rows["value"].sum()).tolist()[:3]
        assert [share for _, share in classes] == pytest.approx(shares)
    atlas = replace(made.atlas, class_counts=made.atlas.class_counts * [[1], [1000], [1]])
    assert leading_labels(atlas, range(6)) == leading_labels(made.atlas, range(6))


def test_latent_data_is_that_of_the_atlas(made):
    atlas = made.atlas
    latent = made.data("atlas")["latents"]["id"][0]
    images, details = made.data("latents/00000")["images"], made.details(latent)
    for name in ("mean", "count", "max"):
        rows = atlas.reference_images(latent, name)
        assert [i for i, _ in details["references"][name]] == rows["image"].tolist()
        assert [images[str(i)][0] for i in rows["image"]] == rows["id"].tolist()
    classes = atlas.top_classes(latent)
    assert [row[:2] for row in details["classes"]] == [
        [c, n] for c, n in zip(classes.index, classes["count"], strict=True)
    ]
    assert [row[2] for row in details["classes"]] == [number(n) for n in classes["count_per_image"]]
    assert details["coactive"] == [
        [i, number(s)] for i, s in atlas.coactive(latent).jaccard.items()
    ]
    assert details["similar"] == [[i, number(s)] for i, s in atlas.similar(latent).cosine.items()]
    assert len(details["similar"]) == 10
    assert details["histogram"] == atlas.histogram[latent].tolist()
    assert sum(details["histogram"]) == atlas.latents["n_active_tokens"].loc[latent]


@pytest.mark.parametrize("which", ["made", "wide"])
def test_pictures_and_masks_are_what_the_model_sees(which, request):
    report: Report = request.getfixturevalue(which)
    latent = report.data("atlas")["latents"]["id"][0]
    details, grid = report.details(latent), report.model.cfg.grid
    index = details["references"]["mean"][0][0]
    picture = report.images.picture(index)
    region = seen_region(report.model.require_preprocess(), picture.size)
    saved = Image.open(report.folder / f"images/{index:07d}.png")
    assert saved.size[0] * grid[0] == saved.size[1] * grid[1]
    assert region.width < picture.width or region.height < picture.height  # so the crop matters
    np.testing.assert_array_equal(np.asarray(saved), np.asarray(region.crop(picture, saved.size)))
    mask, largest = details["masks"][str(index)]
    patches = heatmap(report.model, report.sae, picture, latent).patches
    assert patches.shape == grid
    assert largest == pytest.approx(patches.max(), rel=1e-3)
    np.testing.assert_allclose(shares_of(mask, grid), patches / patches.max(), atol=0.003)


def test_explain_data_is_that_of_explain(made):
    data = made.data("explain/00000")
    explanation = explain(made.model, made.sae, made.atlas, made.images.picture(4), n_latents=20)
    assert [i for i, _ in data["image"]] == [one.latent for one in explanation.latents]
    for patch in (0, 6, 15):
        there = explanation.at_patch(patch // 4, patch % 4, n_latents=12)
        assert [i for i, _ in data["patches"][patch]] == [one.latent for one in there]
    first, second, *references = made.data("atlas")["explained"]
    assert made.data("atlas")["n_chosen"] == 2
    assert (first["id"], first["index"], first["class"]) == (f"{HOSTILE}4.png", 4, 1)
    assert (second["id"], second["index"], second["class"]) == (None, None, None)
    # every reference image but the one explained already, that of most latents first
    used = {int(i) for t in made.atlas.references.values() for i in t.image.ravel() if i >= 0}
    assert sorted(entry["index"] for entry in references) == sorted(used - {4})
    one = made.data(f"explain/{references[0]['file']}")
    picture = made.images.picture(references[0]["index"])
    again = explain(made.model, made.sae, made.atlas, picture, n_latents=20)
    assert [i for i, _ in one["image"]] == [latent.latent for latent in again.latents]
    assert (made.folder / "images" / references[0]["picture"]).is_file()


def test_unreadable_images_are_not_explained(wide):
    assert wide.atlas.skipped_images["index"].tolist() == [0, 15]
    entries = wide.data("atlas")["explained"]
    assert [entry["index"] for entry in entries[:4]] == [1, 5, 10, 14]
    assert wide.data("atlas")["n_chosen"] == 4
    assert all((wide.folder / f"images/{e['picture']}").is_file() for e in entries)
    with pytest.raises(ValueError, match=r"image 15 can't be explained: .*not an image"):
        write_report(
            wide.model, wide.sae, wide.atlas, wide.images, wide.folder, explain=[15], progress=False
        )


def test_images_lost_since_the_analysis_are_left_out(wide, tmp_path):
    latent = wide.data("atlas")["latents"]["id"][0]
    lost = int(wide.atlas.reference_images(latent)["image"].iloc[0])

    class Lost(UnlabelledPictures):
        def record(self, index):
            record = super().record(index)
            return replace(record, content=b"lost") if index == lost else record

    with pytest.warns(UserWarning, match=rf"lacks 1 images .* such as image {lost} \(not an"):
        write_report(
            wide.model,
            wide.sae,
            wide.atlas,
            Lost(16),
            tmp_path,
            latents=[latent],
            explain=[lost, 3],
            progress=False,
        )
    report = replace(wide, folder=tmp_path)
    assert [entry["index"] for entry in report.data("atlas")["explained"]] == [3]
    rows = wide.atlas.reference_images(latent)["image"].tolist()
    assert [i for i, _ in report.details(latent)["references"]["mean"]] == rows[1:]
    assert [i for i, _ in report.data("previews/00000")[0]] == rows[1:6]


def test_a_short_stream_of_unknown_length(made, tmp_path):
    class Endless(Stream):
        def records(self, start=0):
            yield from (NoisePictures.record(self, index) for index in range(start, 8))

    images = Endless(8)
    images.n_images = None
    atlas = analyze(made.model, made.sae, images, progress=False)
    with warnings.catch_warnings(action="error", category=UserWarning):
        write_report(made.model, made.sae, atlas, images, tmp_path, progress=False)
    data = replace(made, folder=tmp_path).data("atlas")
    assert [entry["index"] for entry in data["explained"]] == list(range(8))
    assert data["n_chosen"] == 8


def test_what_can_be_explained(made, tmp_path):
    """Indices of any integer type, arrays and files beside pictures."""
    turned = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = turned.getexif()
    exif[274] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    wanted = [np.int64(3), tmp_path / "turned.jpg", np.zeros((40, 36, 3), np.uint8)]
    write_report(
        made.model,
        made.sae,
        made.atlas,
        made.images,
        tmp_path / "report",
        latents=[3],
        explain=wanted,
        progress=False,
    )
    report = replace(made, folder=tmp_path / "report")
    assert [entry["index"] for entry in report.data("atlas")["explained"]] == [3, None, None]
    upright = explain(
        made.model, made.sae, made.atlas, Image.new("RGB", (20, 40)), n_latents=20
    ).table["value"]
    shown = report.data("explain/00001")["image"]
    assert [i for i, _ in shown] == upright.index.tolist()
    with pytest.raises(ValueError, match=r"explain\[0\] \(nowhere.png\) can't be read: no such"):
        write_report(
            made.model, made.sae, made.atlas, made.images, tmp_path / "x", explain=["nowhere.png"]
        )


def test_a_report_replaces_an_earlier_one_and_nothing_else(made, tmp_path):
    folder = tmp_path / "report"
    arguments = (made.model, made.sae, made.atlas, made.images, folder)
    write_report(*arguments, n_explained=3, progress=False)
    (folder / "my notes.txt").write_text("keep")
    (folder / ".aside-00000000-1-leftover").mkdir()  # of a process that was killed
    lowest = int(made.atlas.latents["label_entropy"].idxmin())
    write_report(*arguments, n_explained=1, latents=[lowest], progress=False)
    used = {
        f"images/{int(i):07d}.png"
        for name in made.atlas.references
        for i in made.atlas.reference_images(lowest, name)["image"]
    }
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.parent != folder}
    explained = replace(made, folder=folder).data("atlas")["explained"]
    assert left == used | {
        *("data/latents", "data/previews", "data/explain", "data/atlas.js"),
        *("data/latents/00000.js", "data/previews/00000.js", "data/explain/00000.js"),
        *(f"images/{entry['picture']}" for entry in explained),
    }
    assert (folder / "my notes.txt").read_text() == "keep"
    others = tmp_path / "mine" / "images"
    others.mkdir(parents=True)
    (others / "0000001.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match="mine holds files that are no report"):
        write_report(*arguments[:-1], tmp_path / "mine", progress=False)
    assert [path.name for path in others.iterdir()] == ["0000001.png"]


def test_a_disk_that_fills_up_leaves_the_report_as_it_was(made, tmp_path, monkeypatch):
    arguments = (made.model, made.sae, made.atlas, made.images)
    write_report(*arguments, tmp_path / "old", latents=[3], n_explained=1, progress=False)
    before = {p: p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()}

    def full(path, key, data):
        if key == "atlas":
            raise OSError(28, "No space left on device")
        write_data(path, key, data)

    monkeypatch.setattr(static_site, "write_data", full)
    for folder in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            write_report(*arguments, tmp_path / folder, n_explained=2, progress=False)
    assert before == {p: p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()}
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.undo()
    write_report(*arguments, tmp_path / "new", latents=[3], n_explained=1, progress=False)


def test_latents_of_explained_images_are_always_shown(made, tmp_path):
    arguments = (made.model, made.sae, made.atlas, made.images, tmp_path)
    write_report(*arguments, n_explained=2, n_latents=1, progress=False)
    report = replace(made, folder=tmp_path)
    data = report.data("atlas")
    assert len(data["explained"]) == data["n_chosen"] == 2
    listed = set()
    for entry in data["explained"]:
        one = report.data(f"explain/{entry['file']}")
        listed |= {i for some in (one["image"], *one["patches"]) for i, _ in some}
    lowest = int(made.atlas.latents["label_entropy"].idxmin())
    assert data["latents"]["id"] == sorted(listed | {lowest})


def test_the_report_says_which_weights_the_model_has(made, tmp_path):
    arguments = (made.model, made.sae, made.atlas, made.images, tmp_path)
    for pretrained, words in [(None, "unknown"), (False, "random"), (True, "pretrained")]:
        made.model.has_pretrained_weights = pretrained
        try:
            write_report(*arguments, latents=[3], explain=[], progress=False)
        finally:
            made.model.has_pretrained_weights = None
        data = replace(made, folder=tmp_path).data("atlas")
        assert data["facts"]["weights"] == f"{words} weights"
        assert f"({words} weights), blocks.1.hook_resid_post" in data["title"]


def test_the_strongest_stand_in_for_entropies_that_nobody_knows(wide, tmp_path):
    arguments = (wide.model, wide.sae, wide.atlas, wide.images, tmp_path)
    write_report(*arguments, n_explained=0, n_latents=3, progress=False)
    table = wide.atlas.latents
    ranked = table[~table["is_dense"]].sort_values("max_activation", ascending=False)
    data = replace(wide, folder=tmp_path).data("atlas")
    assert data["latents"]["id"] == sorted(ranked.index[:3])
    assert data["facts"]["n_live"] == int((~table["is_dead"]).sum())


def test_atlases_of_other_things_are_refused(made, tmp_path):
    model, sae, atlas, images = made.model, made.sae, made.atlas, made.images
    other = make_sae(model)
    other.W_enc.data[0, 0] += 1
    another = make_model()
    next(another.bare_model.parameters()).data += 1
    for arguments, what in [
        ((model, other, atlas, images), "SAE"),
        ((model, sae, atlas, NoisePictures(26, size=(90, 30))), "data set"),
        ((another, sae, atlas, images), "model"),
    ]:
        with pytest.raises(ValueError, match=f"the atlas was made from the {what} "):
            write_report(*arguments, tmp_path / "report", progress=False)
    assert not (tmp_path / "report").exists()


def test_options_are_checked_before_any_work(tmp_path, made):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file; name a folder"):
            check_report_folder(folder)
    check_report_folder(tmp_path / "new" / "one")
    check_report_folder(made.folder)
    for options, message in [
        ({"n_explained": -1}, "n_explained is -1; want 0"),
        ({"n_latents": 0}, "n_latents is 0; want 1"),
        ({"explain": [3, 26], "n_images": 26}, "there is no image 26 to explain; want 0 to 25"),
        ({"explain": [-1]}, "there is no image -1 to explain; want 0 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_report_options(tmp_path / "new", **options)
        options.pop("n_images", None)
        with pytest.raises(ValueError, match=message.replace("0 or more", "0 to 25")):
            write_report(made.model, made.sae, made.atlas, made.images, tmp_path / "new", **options)
    with pytest.raises(ValueError, match="there is no latent 40; want 0 to 39"):
        write_report(made.model, made.sae, made.atlas, made.images, tmp_path / "new", latents=[40])
    assert not (tmp_path / "new").exists()


def test_masks_as_strings():
    patches = np.array([[0.0, 1.0], [2.0, np.nan]])
    assert as_shares(patches).tolist() == [[0, 128], [255, 0]]
    assert preview_string(as_shares(patches)) == "07f0"
    assert mask_string(as_shares(np.zeros((2, 2)))) == ""
    wide = np.zeros((4, 20))
    wide[1, 19] = 1
    assert preview_string(as_shares(wide)) == "0" * 15 + "f" + "0" * 16


def test_masks_are_kept_by_image_and_read_by_latent(tmp_path):
    first = ReferenceTable(np.array([[5, 2], [-1, -1], [2, 9]]), np.ones((3, 2)), np.ones((3, 2)))
    second = ReferenceTable(np.array([[2, 5], [-1, -1], [9, 7]]), np.ones((3, 2)), np.ones((3, 2)))
    masks = ReferenceMasks([first, second], [0, 1, 2], (1, 2), tmp_path)
    assert masks.images == [2, 5, 7, 9]
    assert {i: masks.latents_of(i) for i in masks.images} == {2: [0, 2], 5: [0], 7: [2], 9: [2]}
    masks.put(2, np.array([[[0, 4.0]], [[2.0, 1.0]]]))
    assert masks.get(0, 2).shares.tolist() == [[0, 255]]
    assert masks.get(0, 2).largest == 4
    assert masks.get(2, 2).shares.tolist() == [[255, 128]]
    assert masks.get(2, 9) is None
    assert list(tmp_path.iterdir()) == []


def test_masks_take_little_memory(tmp_path):
    n_latents, n_images = 10_000, 20
    image = np.arange(n_latents * n_images).reshape(n_latents, n_images) % 5_000
    table = ReferenceTable(image, np.ones(image.shape), np.ones(image.shape))
    some = np.random.default_rng(0).random((n_latents, 14, 14))
    tracemalloc.start()
    masks = ReferenceMasks([table], range(n_latents), (14, 14), tmp_path)
    for index in range(0, 5_000, 100):
        masks.put(index, some[: len(masks.latents_of(index))])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_masks = n_latents * n_images
    assert peak < 100 * n_masks, f"{peak / n_masks:.0f} bytes a mask, of 196 patches"


def test_data_files_can_not_become_anything_else(tmp_path, made):
    hostile = {"text": HOSTILE + "\u2028 ü", "missing": None}
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data/some.js", "key", hostile)
    assert "<" not in (tmp_path / "data/some.js").read_text(encoding="ascii")
    assert replace(made, folder=tmp_path).data("some") == hostile
