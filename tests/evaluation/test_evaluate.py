"""evaluate_sae on a tiny CLIP: every hook and token kind, splicing by hand, missing pieces."""

import json
import math

import pandas as pd
import pytest
import torch
from sae_lens import Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from torch.nn.functional import normalize

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.evaluation import EvaluationReport, evaluate_sae
from vit_sae_plugin.evaluation.contrastive import contrastive_loss
from vit_sae_plugin.saved_sae import load_saved_sae
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner

HOOK = "blocks.1.hook_resid_post"
QUICK = {"templates": ["a {}", "the {}"], "batch_size_contrastive": 3, "batch_size_images": 5}


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


@pytest.mark.parametrize(
    ("hook_name", "token_kind"),
    [
        (HOOK, "all"),
        (HOOK, "patches"),
        (HOOK, "cls"),
        ("blocks.2.hook_mlp_out", "all"),
        ("blocks.0.mlp.hook_post", "patches"),
        ("blocks.1.attn.hook_z", "all"),
        ("blocks.1.attn.hook_q", "cls"),
        ("hook_image_embed", "all"),
    ],
)
def test_a_perfect_sae_recovers_everything(model, hook_name, token_kind):
    sae = identity_sae(model, hook_name, token_kind)
    report = evaluate_sae(model, sae, Pictures(), **QUICK)

    n_tokens = {"all": 17, "patches": 16, "cls": 1} if hook_name != "hook_image_embed" else {}
    rows = report.reconstruction
    assert rows.index.to_list() == ["all", "cls", "patches"]
    assert rows.loc["all", "n_tokens"] == 12 * n_tokens.get(token_kind, 1)
    reads_cls = hook_name != "hook_image_embed" and token_kind in ("all", "cls")
    assert rows.loc["cls", "n_tokens"] == 12 * reads_cls
    assert rows.loc["all", "explained_variance"] == pytest.approx(1)
    assert rows.loc["all", "l0"] == pytest.approx(sae.cfg.d_in, rel=0.05)

    table = report.splicing
    assert table.index.to_list() == ["original", "spliced", "zeros", "share_recovered"]
    assert table.loc["spliced", "contrastive_loss"] == pytest.approx(
        table.loc["original", "contrastive_loss"], rel=1e-4
    )
    assert table.loc["share_recovered", "contrastive_loss"] == pytest.approx(1, rel=1e-3)
    assert table.loc["zeros", "output_cosine"] < 0.9999
    assert report.notes == []


@pytest.mark.parametrize("token_kind", ["all", "patches", "cls"])
def test_splicing_equals_the_same_edit_made_by_hand(model, token_kind):
    sae, pictures = tiny_sae(model, HOOK, token_kind), Pictures(n_images=3)
    report = evaluate_sae(model, sae, pictures, **QUICK)
    chosen = {"all": slice(0, 17), "patches": slice(1, 17), "cls": slice(0, 1)}[token_kind]

    def edited(make):
        def hook(value, hook):
            value = value.clone()
            value[:, chosen] = make(value[:, chosen])
            return value

        with torch.no_grad():
            return model.run_with_hooks(pictures.batch(model), fwd_hooks=[(HOOK, hook)])

    outputs = {
        "original": edited(lambda x: x),
        "spliced": edited(sae),
        "zeros": edited(torch.zeros_like),
    }
    classifier = model.zero_shot_classifier(["cat", "dog", "owl"], ["a {}", "the {}"])
    labels = torch.arange(3)
    table = report.splicing
    for name, output in outputs.items():
        right = (normalize(output, dim=-1) @ classifier).argmax(-1) == labels
        assert table.loc[name, "zero_shot_accuracy"] == right.double().mean().item()
        loss = contrastive_loss(output, classifier.T, model.logit_scale.item())
        assert table.loc[name, "contrastive_loss"] == pytest.approx(loss, rel=1e-4)
    assert (table["contrastive_batch_size"] == 3).all()
    losses = table["contrastive_loss"]
    assert losses["share_recovered"] == pytest.approx(
        (losses["zeros"] - losses["spliced"]) / (losses["zeros"] - losses["original"])
    )


def test_class_token_is_token_0_of_every_image_and_not_image_0(model):
    sae, pictures = tiny_sae(model), Pictures()
    _, cache = model.run_with_cache(pictures.batch(model), names_filter=HOOK)
    with torch.no_grad():
        latents = sae.encode(cache[HOOK])
    rows = evaluate_sae(model, sae, pictures, splice=False).reconstruction
    assert rows["n_tokens"].to_list() == [12 * 17, 12, 12 * 16]
    for name, chosen in (("all", latents), ("cls", latents[:, 0]), ("patches", latents[:, 1:])):
        assert rows.loc[name, "l0"] == pytest.approx((chosen > 0).sum(-1).double().mean().item())
        assert rows.loc[name, "l1"] == pytest.approx(
            chosen.sum(-1).double().mean().item(), rel=1e-5
        )
        dead = (chosen.flatten(0, -2) > 0).sum(0) == 0
        assert rows.loc[name, "dead_share"] == dead.double().mean().item()


def test_batches_do_not_change_the_result(model):
    sae = tiny_sae(model)
    whole = evaluate_sae(model, sae, Pictures(), **(QUICK | {"batch_size_images": 12}))
    parts = evaluate_sae(model, sae, Pictures(), **(QUICK | {"batch_size_images": 5}))
    pd.testing.assert_frame_equal(parts.reconstruction, whole.reconstruction, rtol=1e-5)
    other_order = evaluate_sae(model, sae, Pictures(), **(QUICK | {"seed": 7}))
    pd.testing.assert_frame_equal(other_order.reconstruction, whole.reconstruction, rtol=1e-5)
    pd.testing.assert_frame_equal(parts.splicing, whole.splicing, rtol=1e-4)


def test_n_images_is_a_sample_fixed_by_the_seed(model):
    sae = tiny_sae(model)
    l1 = [
        evaluate_sae(model, sae, Pictures(), n_images=4, seed=seed, splice=False).reconstruction
        for seed in (0, 0, 1)
    ]
    pd.testing.assert_frame_equal(l1[0], l1[1])
    assert l1[0].loc["cls", "n_tokens"] == 4
    assert l1[0].loc["all", "l1"] != l1[2].loc["all", "l1"]


@pytest.mark.parametrize("normalization", ["covariance_whitening", "expected_average_only_in"])
def test_a_runs_checkpoint_explains_what_its_finished_sae_does(model, tmp_path, normalization):
    pictures = Pictures(n_images=60)
    settings = {
        "sae": {
            "architecture": "topk",
            "d_in": 32,
            "d_sae": 64,
            "k": 16,
            "normalize_activations": normalization,
        },
        "model_name": "tiny",
        "hook_name": HOOK,
        "training_tokens": 100 * 128,
        "train_batch_size_tokens": 128,
        "lr": 5e-3,
        "n_checkpoints": 1,
        "n_batches_for_norm_estimate": 8,
        "output_path": str(tmp_path),
        "verbose": False,
    }
    cfg = ViTSAERunnerConfig.from_dict(settings)
    ViTSAETrainingRunner(cfg, override_images=pictures, override_model=model).run()
    last = max((tmp_path / "checkpoints").iterdir())
    _, cache = model.run_with_cache(pictures.batch(model), names_filter=HOOK)
    rows = cache[HOOK].flatten(0, 1).detach()
    finished = load_saved_sae(tmp_path / "sae")
    with torch.no_grad():
        missed = (rows - finished(rows)).square().sum()
    explained = 1 - (missed / (rows - rows.mean(0)).square().sum()).item()
    assert explained > 0.7
    for sae in (finished, load_saved_sae(last)):
        report = evaluate_sae(model, sae, pictures, splice=False)
        found = report.reconstruction.loc["all", "explained_variance"]
        assert found == pytest.approx(explained, abs=1e-4)


def test_a_transcoder_is_measured_on_what_it_writes(model):
    cfg = TranscoderConfig(d_in=32, d_out=32, d_sae=8, apply_b_dec_to_input=False)
    cfg.metadata = SAEMetadata(
        hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out"
    )
    torch.manual_seed(0)
    transcoder, pictures = Transcoder(cfg), Pictures()
    report = evaluate_sae(model, transcoder, pictures, **QUICK)
    names = [cfg.metadata.hook_name, cfg.metadata.hook_name_out]
    _, cache = model.run_with_cache(pictures.batch(model), names_filter=names)
    read, written = (cache[name].flatten(0, 1).detach() for name in names)
    with torch.no_grad():
        missed = (written - transcoder(read)).square().sum()
    expected = 1 - (missed / (written - written.mean(0)).square().sum()).item()
    row = report.reconstruction.loc["all"]
    assert row["explained_variance"] == pytest.approx(expected, rel=1e-4)
    assert report.splicing.loc["original", "output_cosine"] == pytest.approx(1, abs=1e-6)
    assert report.splicing.loc["spliced", "output_cosine"] < 1


def test_activations_that_are_not_numbers_are_refused(model):
    broken = tiny_hooked_vit()
    with torch.no_grad():
        broken.bare_model.visual.conv1.weight[0, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="the activations that the SAE reads hold NaN"):
        evaluate_sae(broken, tiny_sae(model), Pictures(), splice=False)


def test_two_classes_with_one_name_stay_two(model):
    pictures = Pictures(class_names=("crane", "dog", "crane"))
    report = evaluate_sae(model, identity_sae(model), pictures, **QUICK)
    # "crane" and "crane" may not be each other's negatives: only two distinct captions are left
    assert (report.splicing["contrastive_batch_size"] == 2).all()
    # and images of class 2 are never right, for the first of two equal columns wins
    assert report.splicing.loc["original", "zero_shot_accuracy"] <= 2 / 3
    assert report.settings["n_images_zero_shot"] == 12


def test_captions_are_used_where_there_are_some(model):
    captions = [f"picture number {index // 2}" for index in range(12)]
    report = evaluate_sae(model, identity_sae(model), Pictures(), captions=captions, **QUICK)
    assert (report.splicing["contrastive_batch_size"] == 3).all()
    assert report.settings["n_contrastive_batches"] == 4


def test_scenes_that_show_the_same_are_not_each_others_negatives(model):
    scenes = ShapeScenes(12, n_objects=1)
    scenes.scene = lambda index: ShapeScenes(12, n_objects=1).scene(index % 2)
    assert scenes.scene(0).objects[0].label != scenes.scene(1).objects[0].label
    report = evaluate_sae(model, identity_sae(model), scenes, **QUICK)
    assert (report.splicing["contrastive_batch_size"] == 2).all()


def test_a_label_without_a_name_is_an_error(model):
    with pytest.raises(ValueError, match="label 2; want one below 2, the number of class names"):
        evaluate_sae(model, identity_sae(model), Pictures(), class_names=["cat", "dog"], **QUICK)


def test_without_labels_only_what_needs_them_is_left_out(model):
    report = evaluate_sae(model, identity_sae(model), Pictures(labelled=False), **QUICK)
    assert math.isnan(report.splicing.loc["original", "zero_shot_accuracy"])
    assert report.splicing.loc["share_recovered", "output_cosine"] == pytest.approx(1, abs=1e-4)
    assert report.reconstruction.loc["all", "explained_variance"] == pytest.approx(1)
    assert len(report.notes) == 2
    assert all("labels" in note for note in report.notes)
    assert "labels" in str(report)


def test_without_a_text_tower_the_rest_still_comes(model):
    import timm

    from vit_sae_plugin.hooked_vit import HookedViT

    tower = timm.create_model("test_vit", num_classes=0, img_size=32, pretrained=False).eval()
    plain = HookedViT.from_module(tower, preprocess=model.preprocess)
    report = evaluate_sae(plain, identity_sae(plain, "blocks.1.hook_resid_post"), Pictures())
    assert "no text tower" in report.notes[0]
    assert report.splicing[["zero_shot_accuracy", "contrastive_loss"]].isna().all(axis=None)
    assert report.splicing.loc["spliced", "output_cosine"] == pytest.approx(1, abs=1e-4)


def test_half_precision_model(model):
    half = tiny_hooked_vit().to(torch.bfloat16)
    report = evaluate_sae(half, identity_sae(half), Pictures(), **QUICK)
    assert report.reconstruction.loc["all", "explained_variance"] == pytest.approx(1, abs=1e-3)


def test_report_on_disk_on_screen_and_in_a_notebook(model, tmp_path):
    report = evaluate_sae(model, tiny_sae(model, token_kind="patches"), Pictures(), **QUICK)
    report.save(tmp_path / "eval")
    table = pd.read_csv(tmp_path / "eval" / "reconstruction.csv", index_col="tokens")
    assert table.index.to_list() == ["all", "cls", "patches"]
    assert math.isnan(table.loc["cls", "l0"])
    pd.testing.assert_frame_equal(table, report.reconstruction)
    content = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert content["settings"]["hook_name"] == HOOK
    loaded = EvaluationReport.load(tmp_path / "eval")
    pd.testing.assert_frame_equal(loaded.splicing, report.splicing)
    assert not [path for path in (tmp_path / "eval").iterdir() if path.name.startswith(".")]
    assert "share_recovered" in str(report)
    assert "contrastive_batch_size" in report._repr_html_()
    with pytest.raises(AttributeError, match="its tables are"):
        report.nonsense  # noqa: B018


def test_file_names_and_notes_are_escaped_in_html():
    report = EvaluationReport({}, {"images": "<script>"}, ["<b>"])
    assert "<script>" not in report._repr_html_()
    assert "<b>" not in report._repr_html_()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size_images": 0}, "batch_size_images is 0; want 1"),
        ({"n_images": 0}, "n_images is 0; want 1 or more, or None"),
        ({"templates": ["no place for the name"]}, "exactly one"),
        ({"templates": []}, "templates is empty"),
        ({"dense_frequency": 2}, "dense_frequency is 2; want a share"),
        ({"batch_size_contrastive": 1}, "batch_size_contrastive is 1; want 2"),
    ],
)
def test_wrong_settings_are_refused(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluate_sae(model, tiny_sae(model), Pictures(), **(QUICK | kwargs))


def test_an_sae_for_another_width_is_refused(model):
    sae = tiny_sae(model, "blocks.0.mlp.hook_post")
    sae.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match=r"32 wide, but the SAE\'s d_in is 128"):
        evaluate_sae(model, sae, Pictures())
