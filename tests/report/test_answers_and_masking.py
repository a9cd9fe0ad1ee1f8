"""What made an answer, and the masking study: their data and their pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from tests.report.pages import LISTED, TEXT, TEXTS, pixels, visit
from tests.report.reports import HOSTILE, Report
from vit_sae_plugin.analysis import analyze, explain
from vit_sae_plugin.attached_sae import AttachedSAE, attribute
from vit_sae_plugin.evaluation.masking_study import masking_report, masking_study
from vit_sae_plugin.report import write_report

HOOK = "blocks.0.hook_resid_post"
NAMES = ("cat", HOSTILE, "owl")
TEMPLATES = ["a photo of a {}"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A report with answers and a masking study; the study scores other images than it ranks by."""
    model, images = tiny_hooked_vit(), Pictures(12, NAMES)
    sae = tiny_sae(model, HOOK)
    atlas = analyze(model, sae, images, progress=False)
    study = masking_study(
        model,
        sae,
        Pictures(9, NAMES, seed=5),
        ranking=atlas,
        ks=[1, 10, 48],
        n_draws=2,
        templates=TEMPLATES,
    )
    saved = masking_report(study).save(tmp_path_factory.mktemp("study"))
    folder = tmp_path_factory.mktemp("report")
    settings = {"explain": [4, 7], "n_explained_references": 0, "progress": False}
    write_report(
        model,
        sae,
        atlas,
        images,
        folder,
        logit="predicted",
        templates=TEMPLATES,
        masking=saved,
        **settings,
    )
    return Report(model, sae, atlas, images, folder), study, saved


def test_an_answer_is_the_predicted_class_with_its_largest_parts(answered):
    made, _, _ = answered
    model = made.model
    classifier = model.zero_shot_classifier(list(NAMES), TEMPLATES)
    scale = model.logit_scale.item()
    for place, index in enumerate((4, 7)):
        answer = made.data(f"explain/{place:05d}")["answer"]
        one = made.images.batch(model)[index : index + 1]
        with torch.no_grad():
            unit = torch.nn.functional.normalize(model(one), dim=-1)
            logits = scale * (unit @ classifier)[0]
        assert answer["class"] == int(logits.argmax())
        assert answer["score"] == pytest.approx(float(logits.max()), rel=1e-3)
        labels, found, shares = zip(*answer["candidates"], strict=True)
        assert sorted(labels) == [0, 1, 2]
        assert list(found) == sorted(found, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-3)

        def score(embeds, label=answer["class"]):
            unit = torch.nn.functional.normalize(embeds, dim=-1)
            return scale * (unit @ classifier)[:, label]

        wanted = attribute(AttachedSAE(model, made.sae), one, score)
        by_latent = wanted.by_latent["attribution"]
        listed = answer["latents"][: answer["n_listed"]]
        assert [row[0] for row in listed] == by_latent.index[:20].tolist()
        np.testing.assert_allclose([row[1] for row in listed], by_latent[:20], rtol=1e-3)
        np.testing.assert_allclose(
            answer["patches"], wanted.on_grid().ravel(), rtol=1e-3, atol=1e-6
        )
        assert answer["total"] == pytest.approx(wanted.value.sum(), rel=1e-3)
        inside = sum(answer["patches"])
        assert answer["total"] - answer["elsewhere"] == pytest.approx(inside, rel=1e-3, abs=1e-5)
        for latent, _, _, patches, values in answer["latents"]:
            grid = wanted.on_grid(latent).ravel()
            np.testing.assert_allclose(values, grid[patches], rtol=1e-3, atol=1e-7)
            assert np.count_nonzero(grid) <= len(patches)


def test_other_numbers_than_the_prediction(answered, tmp_path):
    made, _, _ = answered
    settings = {"explain": [4], "n_explained_references": 0, "progress": False}

    def answer_to(logit):
        folder = tmp_path / "report"
        write_report(made.model, made.sae, made.atlas, made.images, folder, logit=logit, **settings)
        report = Report(made.model, made.sae, made.atlas, made.images, folder)
        return report.data("explain/00000").get("answer")

    assert answer_to(None) is None
    of_class = answer_to(2)
    assert of_class["class"] == 2
    assert "candidates" not in of_class
    wanted = explain(
        made.model, made.sae, made.atlas, made.images.record(4).load(), logit="a photo of a cat"
    )
    of_text = answer_to("a photo of a cat")
    assert of_text["what"] == "a photo of a cat"
    assert of_text["score"] == pytest.approx(wanted.attribution.score, rel=1e-3)
    assert answer_to(lambda embeds: embeds[:, 0])["what"] is None
    with pytest.raises(ValueError, match="logit is 3; want a class from 0 to 2"):
        answer_to(3)
    blind = tiny_hooked_vit(tokenizer=None)
    with pytest.raises(ValueError, match="no text tower and tokenizer to classify with; pass a fu"):
        write_report(
            blind, made.sae, made.atlas, made.images, tmp_path / "b", logit="predicted", **settings
        )


def test_the_study_is_shown_as_it_was_saved(answered, tmp_path):
    made, study, saved = answered
    data = made.data("masking")
    assert made.data("atlas")["has_masking"] is True
    overall, by_class = study.overall(), study.by_class()
    assert [tuple(row) for row in data["conditions"]] == overall.index.tolist()
    columns = ["accuracy", "low", "high"]
    np.testing.assert_allclose(data["overall"]["values"], overall[columns], atol=1e-4)
    assert data["overall"]["n_images"] == 9
    for label in range(3):
        some = data["classes"][str(label)]
        np.testing.assert_allclose(some["values"], by_class.loc[label][columns], atol=1e-4)
        assert some["n_images"] == 3
        first = study.first_latents.loc[("class", label), "latent"].tolist()
        assert data["latents"]["class"][str(label)] == first
        levels = np.asarray(made.atlas.class_counts[label], dtype=float)
        assert first == np.argsort(-levels, kind="stable")[:10].tolist()
    other = analyze(made.model, tiny_sae(made.model, HOOK, seed=3), made.images, progress=False)
    with pytest.raises(ValueError, match=r"study in .* is of the SAE .*; want a study of the same"):
        write_report(
            made.model,
            tiny_sae(made.model, HOOK, seed=3),
            other,
            made.images,
            tmp_path / "r",
            masking=saved,
        )
    with pytest.raises(
        ValueError, match=r"holds no evaluation\.json; want the folder that vit-sae"
    ):
        write_report(
            made.model, made.sae, made.atlas, made.images, tmp_path / "r", masking=tmp_path
        )
    assert not (tmp_path / "r").exists()


def test_the_page_of_an_image_tells_what_made_its_answer(answered, page):
    made, _, _ = answered
    answer = made.data("explain/00000")["answer"]
    visit(page, made.folder, "explain.html#0", "#made .parted")
    assert NAMES[answer["class"]] in page.run(TEXT, "#made .lead")
    ids = LISTED.replace(".listed", "#made .parted")
    assert page.run(ids) == [row[0] for row in answer["latents"][: answer["n_listed"]]]

    drawn = pixels(page, "#made canvas.mask")
    red, opaque = drawn[..., 0], drawn[..., 3]
    sums = np.array(answer["patches"]).reshape(opaque.shape)
    assert np.unravel_index(opaque.argmax(), opaque.shape) == np.unravel_index(
        np.abs(sums).argmax(), sums.shape
    )
    strong = np.abs(sums) > 0.3 * np.abs(sums).max()
    assert ((red > 130) == (sums > 0))[strong].all()
    # a patch by the keyboard: its latents by their part there
    page.run("document.querySelector('#made .picture').focus()")
    page.press("ARROW_RIGHT")
    state = page.run("return location.hash")
    row, column = (int(one) - 1 for one in state.split("made=")[1].split("&")[0].split(","))
    patch = row * made.atlas.info.grid[1] + column
    there = {
        latent: values[patches.index(patch)]
        for latent, _, _, patches, values in answer["latents"]
        if patch in patches
    }
    assert page.run(ids) == sorted(there, key=lambda latent: -abs(there[latent]))[:6]
    page.press("ESCAPE")
    assert len(page.run(ids)) == answer["n_listed"]
    assert page.run("return window.broken") is None
    assert page.messages() == []


def test_the_masking_page_shows_all_classes_and_each(answered, page):
    made, study, _ = answered
    visit(page, made.folder, "masking.html", "table.by-class")
    assert page.run("return document.querySelectorAll('svg .line.class').length") == 3
    shown = page.run(TEXTS, "table[data-mask=off] tbody tr:first-child td")
    overall = study.overall()
    for text, k in zip(shown, (1, 10, 48), strict=True):
        row = overall.loc[("class", "off", False, k)]
        assert text == f"{100 * row.accuracy:.1f} {100 * row.low:.1f}–{100 * row.high:.1f}"
    assert set(page.run(TEXTS, "table.by-class tbody th")) == set(NAMES)
    page.click("[data-error='1']")
    text = page.run(TEXTS, "table[data-mask=on] tbody tr:first-child td")[0]
    assert text.startswith(f"{100 * overall.loc[('class', 'on', True, 1), 'accuracy']:.1f} ")
    page.click("table.by-class [data-class='1'] a")
    page.wait("return document.querySelector('#scope')?.value === '1'")
    first = study.first_latents.loc[("class", 1), "latent"].tolist()
    linked = (
        "return [...document.querySelector('.firsts').children].map(e => Number(e.textContent))"
    )
    assert page.run(linked) == first
    one = study.by_class().loc[1].droplevel(0).loc[("class", "on", True, 10)]
    text = page.run(TEXTS, "table[data-mask=on] tbody tr:first-child td")[1]
    assert text.startswith(f"{100 * one.accuracy:.1f} ")
    assert page.run("return window.broken") is None
    page.resize(420, 900)
    beyond = page.run(
        "return [...document.querySelectorAll('main > *, .bar, .bar > *')].filter(e => "
        "e.getBoundingClientRect().right > window.innerWidth).map(e => e.outerHTML.slice(0, 90))"
    )
    assert beyond == []
    assert page.messages() == []
