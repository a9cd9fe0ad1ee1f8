"""An SAE's folder is opened only if its bytes, types, shapes and values are sound."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_sae_plugin.fingerprints import DamagedFileError, write_manifest
from vit_sae_plugin.saes import (
    PatchAggregatedSAE,
    PatchSAE,
    PatchSAEConfig,
    load_saved_sae,
    save_exported,
)

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return PatchSAE(PatchSAEConfig(d_in=4, d_sae=6))


@pytest.fixture
def folder(sae, tmp_path):
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def edit(folder, **changes):
    path = folder / "cfg.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not Ellipsis}))


def test_a_folder_with_or_without_hashes_and_a_run_around_it_are_opened(sae, folder):
    rows = torch.randn(3, 4)
    torch.testing.assert_close(load_saved_sae(folder)(rows), sae(rows))
    write_manifest(folder)
    torch.testing.assert_close(load_saved_sae(folder.parent)(rows), sae(rows))


def test_a_flipped_bit_is_told_with_its_file(folder):
    write_manifest(folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"the contents of {WEIGHTS} have changed"):
        load_saved_sae(folder)
    write_manifest(folder)
    load_saved_sae(folder)
    edit(folder, d_sae=7)
    with pytest.raises(DamagedFileError, match=r"cfg\.json .*delete manifest\.json"):
        load_saved_sae(folder)
    (folder / "manifest.json").write_text("")
    with pytest.raises(DamagedFileError, match="hashes of its files are unreadable"):
        load_saved_sae(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(sae, folder, value, tmp_path):
    weights = load_file(folder / WEIGHTS)
    weights["W_enc"][2, 1:3] = value
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"W_enc of the SAE in .* 2 values .* \(of 24\)"):
        load_saved_sae(folder)
    sae.W_enc.data[0, 0] = value
    with pytest.raises(ValueError, match="W_enc of this SAE holds 1 values"):
        save_exported(sae, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": "6"}, r"cfg\.json: d_sae is '6', a str; want int"),
        ({"d_in": 0}, r"cfg\.json: d_in is 0; want 1 or more"),
        ({"d_in": Ellipsis}, r"cfg\.json: d_in is missing"),
        ({"d_sae": 7}, "don't go together, or one is damaged"),
        ({"architecture": "patchsea"}, "unknown architecture 'patchsea'; known: .*patchsae"),
        ({"architecture": {"a": 1}}, "unknown architecture {'a': 1}"),
        ({"architecture": "topk", "k": 7}, "k is 7; want 1 to d_sae, 6"),
        ({"metadata": [1]}, "want settings by name, with metadata by name"),
        ({"apply_b_dec_to_input": ""}, "apply_b_dec_to_input is '', a str; want bool"),
        ({"dtype": "int7"}, "int7"),
        ({"aggregation": {"name": "nope"}}, "nope"),
    ],
)
def test_settings_of_the_wrong_kind_are_told(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_saved_sae(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 50_000, "\0"])
def test_a_cfg_that_is_no_settings_is_told(folder, text):
    (folder / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=r"cfg\.json"):
        load_saved_sae(folder)


def test_weights_that_are_missing_misshaped_or_damaged_are_told(folder):
    weights = load_file(folder / WEIGHTS)
    for changed in (
        {"b_enc": None},
        {"W_dec": torch.zeros(3)},
        {"W_dec": torch.zeros(())},
        {"scaling_factor": torch.full((2,), 3.0)},
        {"surplus": torch.zeros(2)},
    ):
        kept = {k: v for k, v in {**weights, **changed}.items() if v is not None}
        save_file(kept, folder / WEIGHTS)
        with pytest.raises(
            ValueError, match=rf"(?s)don't go together.*{next(iter(changed))}|factor"
        ):
            load_saved_sae(folder)
    (folder / WEIGHTS).write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"the weights in .* can't be read"):
        load_saved_sae(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"it holds no {WEIGHTS}"):
        load_saved_sae(folder)


def test_a_lifted_sae_is_checked_too(sae, tmp_path):
    PatchAggregatedSAE.from_sae(sae, "mean").save_model(tmp_path)
    load_saved_sae(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["base.b_dec"][0] = math.nan
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"base\.b_dec of the SAE"):
        load_saved_sae(tmp_path)


def test_an_export_is_hashed_and_replaces_nothing(sae, folder, tmp_path):
    plain = save_exported(sae, tmp_path / "plain")
    assert sorted(path.name for path in plain.iterdir()) == ["cfg.json", "manifest.json", WEIGHTS]
    load_saved_sae(plain)
    shutil.copytree(folder, tmp_path / "other")
    for taken in (plain, tmp_path / "other", folder / "cfg.json"):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(FileExistsError, match="an export replaces nothing"):
            save_exported(sae, taken)
        assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "empty").mkdir()
    load_saved_sae(save_exported(sae, tmp_path / "empty"))
