"""What makes an SAE or a model another one, and what an atlas must refuse to be mistaken for."""

import copy
import json
import shutil
import warnings
from dataclasses import fields

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig, TrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from safetensors import safe_open
from torch import nn
from torchvision import transforms

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin import (
    MatryoshkaTopKTrainingSAEConfig,
    PatchAggregatedSAE,
    PatchTrainingSAEConfig,
)
from vit_sae_plugin.analysis import AtlasInfo, LatentAtlas, analyze, explain
from vit_sae_plugin.fingerprints import model_fingerprint, sae_fingerprint
from vit_sae_plugin.hooked_vit import HookedViT

N = 12


def make_topk(k=2):
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=40, k=k))
    for key, value in make_sae(make_model()).cfg.metadata.items():
        sae.cfg.metadata[key] = value
    return sae


def test_settings_count_and_whereabouts_do_not():
    sae, same = make_topk(), make_topk()
    assert sae_fingerprint(sae) == sae_fingerprint(same)
    same.cfg.device = "cuda:1"
    same.cfg.metadata.dataset_path = "elsewhere"
    assert sae_fingerprint(sae) == sae_fingerprint(same)
    assert sae_fingerprint(make_topk(k=20)) != sae_fingerprint(sae)
    same.cfg.apply_b_dec_to_input = False
    assert sae_fingerprint(same) != sae_fingerprint(sae)
    scaled = make_topk()
    scaled.cfg.metadata.input_statistics = {"modality": "image", "mean": [0.0] * 32, "scale": 2.0}
    assert sae_fingerprint(scaled) != sae_fingerprint(sae)
    nudged = make_topk()
    nudged.W_enc.data[0, 0] += 1e-6
    assert sae_fingerprint(nudged) != sae_fingerprint(sae)


TRAINING_CONFIGS = [
    PatchTrainingSAEConfig(d_in=8, d_sae=16),
    MatryoshkaTopKTrainingSAEConfig(d_in=8, d_sae=16, k_list=[2, 4]),
    TopKTrainingSAEConfig(d_in=8, d_sae=16, k=3),  # saving folds decoder norms into its weights
]


@pytest.mark.parametrize("config", TRAINING_CONFIGS, ids=lambda config: config.architecture())
def test_saving_and_loading_change_no_fingerprint(config, tmp_path):
    torch.manual_seed(0)
    trained = TrainingSAE.from_dict(config.to_dict())
    trained.W_dec.data *= 2
    before = sae_fingerprint(trained)
    trained.save_inference_model(tmp_path / "trained")
    loaded = SAE.load_from_disk(tmp_path / "trained")
    assert sae_fingerprint(loaded) == before
    lifted = PatchAggregatedSAE.from_sae(loaded, "max")
    lifted.save_model(tmp_path / "lifted")
    assert sae_fingerprint(SAE.load_from_disk(tmp_path / "lifted")) == sae_fingerprint(lifted)
    assert sae_fingerprint(lifted) != before  # it has an aggregation rule


def test_the_same_weights_under_another_activation_function_are_another_model():
    model, other = make_model(), make_model()
    assert model_fingerprint(model) == model_fingerprint(other)
    other.bare_model.visual.transformer.resblocks[0].mlp.gelu = nn.ReLU()
    assert model_fingerprint(other) != model_fingerprint(model)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    analyze(model, make_topk(), NoisePictures(N), folder=folder, progress=False)
    return folder


class StoppedPictures(NoisePictures):
    def record(self, index):
        if index == 9:
            raise InterruptedError
        return super().record(index)


@pytest.fixture(scope="module")
def unfinished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished")
    settings = {"batch_size_images": 4, "snapshot_seconds": 0, "progress": False}
    with pytest.raises(InterruptedError):
        analyze(model, make_topk(), StoppedPictures(N), folder=folder, **settings)
    return folder


def nudged_model():
    other = make_model()
    next(other.bare_model.visual.parameters()).data += 1e-3
    return other


def otherwise_preprocessed():
    squash = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
    return HookedViT.from_module(make_model().bare_model, preprocess=squash)


def renamed_classes():
    images = NoisePictures(N)
    images.class_names = ["red", "green", "azure"]
    return images


def with_metadata(**changes):
    sae = make_topk()
    for key, value in changes.items():
        sae.cfg.metadata[key] = value
    return sae


CHANGES = {
    "model_sha256": {"model": nudged_model},
    "sae_sha256": {"sae": lambda: make_topk(k=20)},
    "data_sha256": {"images": lambda: NoisePictures(N - 1)},
    "model_preprocessing": {
        "model": otherwise_preprocessed,
        "sae": lambda: with_metadata(preprocessing=None),
    },
    "class_names": {"images": renamed_classes},
    "threshold": {"threshold": 0.3},
    "aggregations": {"aggregations": ["mean", "max", "count"]},
    "n_reference_images": {"n_reference_images": 9},
    "n_partners": {"n_partners": 4},
    "n_coactivation_images": {"n_coactivation_images": 17},
    "dense_frequency": {"dense_frequency": 0.2},
    "sae_metadata.seqpos_slice": {"sae": lambda: with_metadata(seqpos_slice=[1, 5])},
    "sae_metadata.input_scaling": {"sae": lambda: with_metadata(input_scaling=2.0)},
    "sae_metadata.token_kind": {"sae": lambda: with_metadata(token_kind="patches")},
    "sae_metadata.hook_name": {"sae": lambda: with_metadata(hook_name="blocks.0.hook_resid_post")},
}


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("key", CHANGES)
def test_an_analysis_with_any_other_setting_is_refused(key, state, request):
    folder = request.getfixturevalue(state)
    made = {"model": make_model, "sae": make_topk, "images": lambda: NoisePictures(N)}
    changed = dict(CHANGES[key])
    parts = {name: changed.pop(name, make)() for name, make in made.items()}
    settings = {"batch_size_images": 4, "folder": folder, "progress": False, **changed}
    with pytest.raises(ValueError, match=rf"belongs to another analysis .*{key}: .* there, .* now"):
        analyze(**parts, **settings)


NOT_COMPARED = {"n_images", "n_skipped_images", "data_name", "schema_version", "request"}
NOT_COMPARED |= {"typical_activation", "embeddings_sha256"}


def test_every_field_of_a_finished_atlas_is_compared(model, finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    written = (folder / "atlas.json").read_text()
    for key in sorted({f.name for f in fields(AtlasInfo)} - NOT_COMPARED):
        values = json.loads(written)
        del values["sha256"]  # a hash of the file itself, which earlier releases didn't keep
        other = {"sae_metadata": {**values["request"]["sae_metadata"], "n_tokens": 99}}
        values["request"][key] = other.get(key, "something else")
        (folder / "atlas.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=rf"another analysis \({key}"):
            analyze(model, make_topk(), NoisePictures(N), folder=folder, progress=False)


def test_an_atlas_of_an_earlier_release_still_opens(model, finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    values = json.loads((folder / "atlas.json").read_text())
    for name in ("request", "typical_activation", "files", "sha256"):
        del values[name]
    (folder / "atlas.json").write_text(json.dumps(values))
    assert LatentAtlas.load(folder).info.n_images == N
    with pytest.raises(ValueError, match=r"of an earlier release, .* LatentAtlas\.load"):
        analyze(model, make_topk(), NoisePictures(N), folder=folder, progress=False)


def test_a_damaged_file_is_named(model, finished, tmp_path):
    names = sorted(path.name for path in finished.iterdir() if path.name != "atlas.json")
    assert len(names) == 7
    for name in names:
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        content = bytearray((folder / name).read_bytes())
        if content:
            content[len(content) // 2] ^= 1
        (folder / name).write_bytes(bytes(content) or b"?")
        with pytest.raises(
            ValueError, match=rf"is damaged: the contents of {name} have|is damaged: {name} has"
        ):
            LatentAtlas.load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"is damaged: {name} is missing"):
        LatentAtlas.load(folder)
    values = json.loads((folder / "atlas.json").read_text())
    values["n_images"] += 1
    (folder / "atlas.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"atlas\.json is damaged: its contents have changed"):
        LatentAtlas.load(folder)
    (folder / "atlas.json").write_text('{"schema_version": 2')
    with pytest.raises(ValueError, match=r"atlas\.json is damaged"):
        LatentAtlas.load(folder)


def test_messages_show_the_beginning_of_a_hash(model, finished):
    with pytest.raises(ValueError, match=r"sae_sha256: [0-9a-f]{8} there, [0-9a-f]{8} now"):
        analyze(model, make_topk(k=20), NoisePictures(N), folder=finished, progress=False)


def test_an_interrupted_replacement_goes_on(model, finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    settings = {"batch_size_images": 4, "folder": folder, "progress": False, "threshold": 0.3}
    replace = {"overwrite": True, "snapshot_seconds": 0}
    with pytest.raises(InterruptedError):
        analyze(model, make_topk(), StoppedPictures(N), **settings, **replace)
    atlas = analyze(model, make_topk(), NoisePictures(N), **settings)
    assert (atlas.info.threshold, atlas.info.n_images) == (0.3, N)


def test_files_carry_the_hashes_and_can_be_read_by_whoever_may_read_the_rest(finished):
    info = json.loads((finished / "atlas.json").read_text())
    paths = sorted(finished.glob("*.safetensors"))
    assert len(paths) == 4
    for path in paths:
        assert path.stat().st_mode == (finished / "atlas.json").stat().st_mode
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        assert metadata.pop("schema_version") == str(info["schema_version"])
        assert metadata == {
            name: info[name] for name in ("model_sha256", "sae_sha256", "data_sha256")
        }


def test_opening_a_finished_atlas_is_said(model, finished, capsys):
    analyze(model, make_topk(), NoisePictures(N), folder=finished)
    assert f"opening the finished atlas in {finished}" in capsys.readouterr().err


def test_an_atlas_of_another_sae_explains_nothing(model, finished):

    atlas = LatentAtlas.load(finished)
    picture = NoisePictures(N).picture(0)
    assert explain(model, make_topk(), atlas, picture).latents
    assert explain(model, copy.deepcopy(make_topk()), atlas, picture).latents
    with pytest.raises(ValueError, match=r"made from the SAE [0-9a-f]{8}, but this one is"):
        explain(model, make_topk(k=3), atlas, picture)


def test_another_model_is_told(model, finished):
    atlas, picture = LatentAtlas.load(finished), NoisePictures(N).picture(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, make_topk(), atlas, picture)
    with pytest.warns(UserWarning, match=r"the atlas was made from .* but this model is .* other"):
        explain(nudged_model(), make_topk(), atlas, picture)


def test_an_sae_is_hashed_again_only_when_it_changes(model, finished, monkeypatch):
    from vit_sae_plugin import fingerprints

    atlas, sae, picture = LatentAtlas.load(finished), make_topk(), NoisePictures(N).picture(0)
    hashed = []
    monkeypatch.setattr(
        fingerprints, "sae_fingerprint", lambda sae: hashed.append(1) or sae_fingerprint(sae)
    )
    explain(model, sae, atlas, picture)
    explain(model, sae, atlas, picture)
    assert len(hashed) == 1
    sae.cfg.k = 3
    with pytest.raises(ValueError, match="its weights or settings are others"):
        explain(model, sae, atlas, picture)
    sae.cfg.k = 2
    explain(model, sae, atlas, picture)
    former = sae.W_enc.data.clone()
    with torch.no_grad():
        sae.W_enc[0, 0] += 1
    with pytest.raises(ValueError, match="its weights or settings are others"):
        explain(model, sae, atlas, picture)
    # writes that PyTorch doesn't count: all back, then two rows and two columns exchanged
    sae.W_enc.data.copy_(former)
    explain(model, sae, atlas, picture)
    for exchanged in (former[[1, 0, *range(2, len(former))]], former.roll(1, dims=1)):
        sae.W_enc.data.copy_(exchanged)
        with pytest.raises(ValueError, match="its weights or settings are others"):
            explain(model, sae, atlas, picture)
    assert len(hashed) == 7


def test_a_model_is_hashed_again_after_a_write_through_data():
    """PyTorch doesn't count such a write."""
    from vit_sae_plugin.fingerprints import known_model_fingerprint

    model = make_model()
    before = known_model_fingerprint(model)
    weight = next(model.bare_model.parameters())
    counted = weight._version
    weight.data *= 2
    assert weight._version == counted
    assert known_model_fingerprint(model) == model_fingerprint(model) != before
