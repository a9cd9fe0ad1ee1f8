"""The concept suite from pictures to one table, its controls, and what it refuses."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.command import vit_sae
from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.evaluation import concept_suite
from vit_sae_plugin.evaluation.concept_methods import feature_methods
from vit_sae_plugin.evaluation.image_concepts import presence, read_groups

SMALL = {"min_images": 2, "min_maps": 3, "n_calibration_images": 20, "batch_size_images": 8}


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def pictures():
    return Pictures(n_images=40)


def test_one_table_of_all_measures_and_controls(model, pictures):
    sae = tiny_sae(model)
    control = tiny_sae(model, seed=1)
    groups = {"animals": ["cat", "dog", "owl"]}
    report = concept_suite(
        model, sae, pictures, controls={"other": control, "same": sae}, groups=groups, **SMALL
    )
    summary = report.summary
    measures = "monosemanticity spatial_coherence sparse_probing absorption_jaccard".split()
    assert list(summary.index.unique("measure")) == [*measures, "absorption_f1_gap"]
    methods = ["latents", "neurons", "random_latents", "other", "same"]
    for measure in measures:
        part = summary.loc[measure]
        assert list(part.index) == methods
        assert (part["low"] <= part["value"] + 0.05).all()
        # the same SAE as its own control: no difference, and an interval of no width
        same = part.loc["same", ["latents_above", "latents_above_low", "latents_above_high"]]
        assert same.tolist() == [0, 0, 0]
        assert part.loc["same", "value"] == part.loc["latents", "value"]
    assert summary.loc[("sparse_probing", "neurons"), "chance"] == 0.5
    assert len(report.latents) == sae.cfg.d_sae
    assert report.settings["encoder"] == "tiny"
    assert any("no independent encoder" in note for note in report.notes)
    assert set(report.tables) >= {"monosemanticity", "sparse_probing", "absorption", "latents"}


def test_the_batch_size_changes_nothing(model, pictures):
    sae = tiny_sae(model)
    one = concept_suite(model, sae, pictures, **SMALL)
    other = concept_suite(model, sae, pictures, **SMALL | {"batch_size_images": 40})
    pd.testing.assert_frame_equal(one.latents, other.latents, atol=1e-5)


def test_random_latents_fire_as_often_as_the_latents(model, pictures):
    sae = tiny_sae(model)
    from vit_sae_plugin.attached_sae import AttachedSAE

    attached = AttachedSAE(model, sae)
    rows = attached.activations(pictures.batch(model)).flatten(0, 1)
    methods = feature_methods(attached, {}, rows, seed=0)
    wanted, got = (methods[name].n_active(rows) for name in ("latents", "random_latents"))
    assert (wanted - got).abs().max() <= 1
    assert methods["neurons"].n_features == 2 * attached.d_in
    both = methods["neurons"].encode(rows)
    np.testing.assert_allclose(
        both[:, : attached.d_in] - both[:, attached.d_in :], rows - rows.mean(0), atol=1e-5
    )


def test_a_latent_that_is_a_class_is_monosemantic_and_found(model, pictures):
    """An encoder that sees only one neuron's sign: that neuron's latents are its concepts."""
    sae = identity_sae(model, token_kind="cls")
    _, cache = model.run_with_cache(pictures.batch(model), names_filter="blocks.1.hook_resid_post")
    sign = cache["blocks.1.hook_resid_post"][:, 0] > 0
    neuron = int((sign.float().mean(0) - 0.5).abs().argmin())
    positive = sign[:, neuron]
    rows = torch.eye(2)[positive.long()].numpy()
    embeddings = EmbeddingRows(rows, [f"picture {i}" for i in range(40)], name="sign")
    report = concept_suite(model, sae, pictures, encoder=embeddings, **SMALL)
    score = report.latents["monosemanticity"]
    both = [neuron, neuron + 32]  # the latents of its positive and of its negative side
    np.testing.assert_allclose(score[both], 1)
    assert score.drop(both).mean() < 0.8
    assert "spatial_coherence" not in report.summary.index.unique("measure")
    assert any("reads no patches" in note for note in report.notes)


def test_one_clear_error_for_each_bad_input(model, pictures):
    sae = tiny_sae(model)

    def refused(match, **settings):
        with pytest.raises(ValueError, match=match) as error:
            concept_suite(model, sae, pictures, **SMALL | settings)
        assert "\n" not in str(error.value)

    refused("'neurons', as another is", controls={"neurons": sae})
    elsewhere = tiny_sae(model, "blocks.0.hook_resid_post")
    refused("reads the hook 'blocks.0.hook_resid_post'", controls={"low": elsewhere})
    refused("reads the tokens 'patches'", controls={"p": tiny_sae(model, token_kind="patches")})
    refused(r"ks is \[0\]; want numbers of features from 1 up", ks=[0])
    refused("'pets' has 1 members", groups={"pets": ["cat"]})
    refused("a class 'doge', which the images don't have.*dog", groups={"pets": ["cat", "doge"]})
    refused("there are no groups", groups={})
    refused("no concept is on 30 images", groups={"a": ["cat", "dog"]}, min_images=30)
    uneven = Pictures(40, class_names=("cat", "dog", "owl", "emu"))
    uneven.record = lambda index: replace(pictures.record(index), label=index % 3)
    with pytest.raises(ValueError, match="no group has two classes on 2 images of each half"):
        concept_suite(model, sae, uneven, groups={"a": ["cat", "emu"]}, **SMALL)
    lacking = EmbeddingRows(np.ones((2, 3), np.float32), ["picture 0", "picture 1"], name="two")
    refused("38 of 40 images have no row in two", encoder=lacking)
    broken = deepcopy(sae)
    broken.b_enc.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        concept_suite(model, broken, pictures, **SMALL)


def test_images_without_labels_are_measured_as_far_as_that_goes(model):
    report = concept_suite(model, tiny_sae(model), Pictures(20, labelled=False), **SMALL)
    assert list(report.summary.index.unique("measure")) == ["monosemanticity", "spatial_coherence"]
    assert any("no sparse probing" in note for note in report.notes)


def test_concepts_must_be_on_and_off_in_both_halves():
    shown = [{("k", "all"), ("k", "some")}, {("k", "all")}, {("k", "all"), ("k", "one")}]
    shown += [{("k", "all"), ("k", "some")}, {("k", "all")}, {("k", "all")}]
    concepts, table = presence(shown, min_images=1)
    assert concepts == [("k", "some")]
    assert table[:, 0].tolist() == [True, False, False, True, False, False]


def test_groups_are_read_from_a_table(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("group,class,note\npets,cat,\npets,dog,x\nbirds,owl,\n")
    assert read_groups(path) == {"pets": ["cat", "dog"], "birds": ["owl"]}
    path.write_text("parent,class\npets,cat\n")
    with pytest.raises(ValueError, match="the columns parent, class; want rows under 'group'"):
        read_groups(path)
    path.write_bytes(b"\xff\xfe\x00group")
    with pytest.raises(ValueError, match=r"groups\.csv is no CSV file"):
        read_groups(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_groups(tmp_path / "none.csv")


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    train = ("train", "--preset", "patchsae-shapes", "--images", "shapes?n_images=60")
    small = ("--training-tokens", 2000, "--d-sae", 64, "--device", "cpu")
    small += ("--set", "train_batch_size_tokens=400", "--set", "lr_warm_up_steps=1")
    small += ("--set", "lr_decay_steps=1")
    assert vit_sae(*train, *small, "--output-path", run) == 0
    frozen = ("--set", "freeze_decoder=true", "--output-path", tmp_path / "frozen")
    assert vit_sae(*train, *small, *frozen) == 0
    sae = run / "sae"
    suite = ("eval", sae, "--suite", "concepts", "--images", "shapes:test?n_images=130")
    control = ("--control", f"frozen_decoder={tmp_path / 'frozen' / 'sae'}")
    assert vit_sae(*suite, *control) == 0
    assert "frozen_decoder" in capsys.readouterr().out
    table = pd.read_csv(sae / "concepts" / "summary.csv", index_col=["measure", "method"])
    assert ("sparse_probing", "frozen_decoder") in table.index
    assert len(pd.read_csv(sae / "concepts" / "latents.csv")) == 64

    for bad, message in (
        (("--control", "frozen"), "--control is 'frozen'; want NAME=FOLDER"),
        ((*control, *control), "names 'frozen_decoder' twice"),
        (("--encoder", "a", "--encoder-embeddings", "b"), "either --encoder or --encoder-emb"),
        (("--groups", tmp_path / "no.csv"), "there is no file"),
    ):
        assert vit_sae(*suite, *bad) == 2
        assert message in capsys.readouterr().err
    assert vit_sae("eval", sae, "--images", "shapes", "--groups", "x.csv") == 2
    assert "--groups goes with --suite concepts" in capsys.readouterr().err
