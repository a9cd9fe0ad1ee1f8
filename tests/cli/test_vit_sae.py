"""Each command once, end to end, on a folder of pictures and the packaged model."""

import json
import re
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.cli.command import vit_sae


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A short training run from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = vit_sae(
        *("train", "--images", photos, "--model", "shapes-clip", "--d-sae", 64),
        *("--training-tokens", 6400, "--seed", 1, "--device", "cpu", "--output-path", folder),
        *("--set", "train_batch_size_tokens=256", "--set", "n_batches_in_buffer=2"),
        *("--set", "sae.l1_coefficient=1e-3"),
    )
    assert code == 0
    return folder


def test_help_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys, vit_sae_cli\n"
        "try: vit_sae_cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'sae_lens', 'vit_sae_plugin'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for command in ("demo", "train", "eval", "analyze", "export"):
        assert f"\n    {command} " in done.stdout


def test_the_demo_writes_its_page_over_an_earlier_one(tmp_path, capsys, monkeypatch):
    from functools import partial

    from vit_sae_plugin import analysis, training
    from vit_sae_plugin.cli import demo

    preset = training.load_preset(demo.PRESET)
    small = preset | {"sae": {**preset["sae"], "d_sae": 64}, "train_batch_size_tokens": 512}
    monkeypatch.setattr(training, "load_preset", {demo.PRESET: small}.__getitem__)
    # After ten steps latents still fire everywhere, so all would be dense.
    lenient = partial(analysis.analyze, dense_frequency=1.0)
    monkeypatch.setattr(analysis, "analyze", lenient)
    monkeypatch.setattr(demo, "HELD_OUT", "shapes:test?n_images=100&n_objects=1")
    monkeypatch.setattr(demo, "N_EVALUATED", 50)
    monkeypatch.setattr(demo, "N_EXPLAINED", 5)
    monkeypatch.setattr(demo, "N_LATENTS_OF_EACH", 2)
    for part in ("run/config.yaml", "report/images/old.png", "atlas/old"):  # of an earlier demo
        (tmp_path / "demo" / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / part).touch()
    assert vit_sae("demo", "--output-path", tmp_path / "demo", "--training-tokens", 5120) == 0
    assert not list((tmp_path / "demo").rglob("old*"))
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count('class="latent"') > 0
    assert "data:image/png;base64," in page
    links = set(re.findall(r'(?:src|href)="(?!data:|#)([^"#]*)', page))
    assert links == {"report/index.html", "report/latent.html"}
    assert all((tmp_path / "demo" / link).is_file() for link in links)
    assert str(tmp_path / "demo" / "index.html") in capsys.readouterr().out


def test_the_demo_deletes_nothing_of_others(tmp_path):
    (tmp_path / "thesis.txt").touch()
    assert vit_sae("demo", "--output-path", tmp_path) == 2
    assert (tmp_path / "thesis.txt").exists()


def test_train_leaves_a_run_that_says_how_it_was_made(run):
    from vit_sae_plugin.training import ViTSAERunnerConfig, read_metrics

    config = ViTSAERunnerConfig.load(run / "config.yaml")
    assert (config.sae.architecture(), config.sae.d_sae, config.seed) == ("patchsae", 64, 1)
    assert config.sae.l1_coefficient == 1e-3
    assert config.hook_name == "blocks.2.hook_resid_post"  # the second last block's output
    metrics = read_metrics(run / "metrics.jsonl")
    assert metrics["n_tokens"].iloc[-1] == 6400
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]
    skipped = pd.read_csv(run / "skipped_images.csv")
    assert skipped["id"].tolist() == ["class 0/000broken.jpg"]


def test_eval_needs_only_the_folder_and_images(run, photos, tmp_path, capsys):
    assert vit_sae("eval", run / "sae", "--images", photos, "--output-path", tmp_path) == 0
    assert "explained_variance" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "reconstruction.csv", index_col=0)
    assert set(table.index) == {"all", "cls", "patches"}
    assert table.loc["cls", "n_tokens"] == 12
    assert table.loc["patches", "n_tokens"] == 12 * 64
    splicing = json.loads((tmp_path / "evaluation.json").read_text())["tables"]["splicing"]
    assert splicing["rows"]


def test_export_gives_a_plain_sae_with_equal_outputs(run, tmp_path):
    from sae_lens import SAE, StandardSAE

    assert vit_sae("export", run / "sae", tmp_path / "plain") == 0
    plain, ours = SAE.load_from_disk(tmp_path / "plain"), SAE.load_from_disk(run / "sae")
    assert type(plain) is StandardSAE
    x = torch.randn(5, plain.cfg.d_in)
    torch.testing.assert_close(plain(x), ours(x))


def test_train_on_a_file_of_embeddings_keeps_their_statistics(tmp_path):
    from sae_lens import SAE

    rows = np.random.default_rng(0).normal(3, 2, size=(400, 6)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    code = vit_sae(
        *("train", "--embeddings", tmp_path / "rows.npy", "--architecture", "standard"),
        *("--d-sae", 12, "--training-tokens", 2000, "--output-path", tmp_path / "run"),
        *("--set", "train_batch_size_tokens=100", "--set", "standardize_embeddings=true"),
    )
    assert code == 0
    sae = SAE.load_from_disk(tmp_path / "run" / "sae")
    statistics = sae.cfg.metadata.input_statistics
    assert statistics["mean"] == pytest.approx(rows.mean(axis=0), abs=1e-4)
    assert vit_sae("export", tmp_path / "run", tmp_path / "plain") == 0
    folded = SAE.load_from_disk(tmp_path / "plain")
    x = torch.from_numpy(rows[:20])
    standardized = (x - torch.tensor(statistics["mean"])) * statistics["scale"]
    assert torch.allclose(folded.encode(x), sae.encode(standardized), atol=1e-4)


def test_the_presets_are_listed(capsys):
    assert vit_sae("train", "--preset", "list") == 0
    assert "patchsae-vit-b-16\n    PatchSAE as published" in capsys.readouterr().out


def test_the_start_line_says_which_weights(photos, tmp_path, capsys):
    """Random weights are asked for, and said."""
    command = ["train", "--images", photos, "--d-sae", 8, "--training-tokens", "1e3"]
    command += ["--set", "train_batch_size_tokens=250", "--device", "cpu"]
    for name, flags, words in (
        ("packaged", [], "shapes-clip (pretrained weights)"),
        ("random", ["--pretrained", "none"], "shapes-clip (random weights)"),
    ):
        folder = tmp_path / name
        assert vit_sae(*command, "--model", "shapes-clip", *flags, "--output-path", folder) == 0
        assert f"blocks.2.hook_resid_post of {words} (width 128), 1,000 tokens in 4 steps" in (
            capsys.readouterr().err
        )
        metadata = json.loads((folder / "sae/cfg.json").read_text())["metadata"]
        assert metadata["model_weights"] in words


def test_a_resumed_run_says_what_may_be_given(run, tmp_path, capsys, photos):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for flag, value in (("--seed", 0), ("--lr", 0), ("--set", "lr=0")):
        assert vit_sae("train", "--resume", folder, flag, value) == 2
        assert f"leave out {flag} (what may be given: --device" in capsys.readouterr().err
    # longer, on the same images by another name, with measures on held-out ones
    more = ("--training-tokens", 7680, "--images", f"folder:{photos}", "--eval-images", photos)
    assert vit_sae("train", "--resume", folder, *more) == 0
    metrics = pd.read_json(folder / "metrics.jsonl", lines=True)
    assert metrics["n_tokens"].iloc[-1] == 7680
    assert metrics["held_out_explained_variance"].iloc[-1] < 1
    assert vit_sae("train", "--resume", folder, "--images", "shapes?n_images=5") == 2
    assert "can't resume with other model or images" in capsys.readouterr().err


def test_a_settings_file_starts_no_program(run, photos, tmp_path, capsys):
    """Commands only when they are typed; a model's settings only plain ones."""
    import yaml

    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"output_path": str(tmp_path / "out"), "training_tokens": 512}
    proof = tmp_path / "proof"
    pipe = f"wds:pipe:touch {proof}"
    unsafe = {"trust_remote_code": True}
    for change, message in (
        ({"dataset_path": pipe}, "opening them would start a program"),
        (
            {"eval_dataset_path": pipe, "eval_every_n_steps": 1},
            "opening them would start a program",
        ),
        ({"model_from_pretrained_kwargs": unsafe}, "which a file may not set"),
    ):
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(settings | change))
        assert vit_sae("train", "--config", path) == 2
        assert message in capsys.readouterr().err
        # the same file, as a run's own
        resumed = tmp_path / "resumed"
        resumed.mkdir(exist_ok=True)
        (resumed / "config.yaml").write_text(yaml.safe_dump(settings | change))
        assert vit_sae("train", "--resume", resumed) == 2
        assert message in capsys.readouterr().err
    assert not proof.exists()
    # a typed command is run: as training images in place of the file's, and as held-out ones
    with tarfile.open(tmp_path / "held_out.tar", "w") as shard:
        for picture in sorted(photos.glob("*/*.png")):
            shard.add(picture, arcname=picture.name)
    path.write_text(yaml.safe_dump(settings | {"dataset_path": pipe, "eval_every_n_steps": 1}))
    held_out = f"wds:pipe:tee {proof} < {tmp_path / 'held_out.tar'}"
    typed = ("--images", photos, "--eval-images", held_out)
    assert vit_sae("train", "--config", path, *typed) == 0
    assert proof.read_bytes() == (tmp_path / "held_out.tar").read_bytes()
    metrics = pd.read_json(tmp_path / "out" / "metrics.jsonl", lines=True)
    assert metrics["held_out_explained_variance"].notna().any()


def test_embeddings_replace_a_preset_s_images_and_fit_its_model(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(300, 128)).astype(np.float32)
    for width in (64, 128):
        np.save(tmp_path / f"{width}.npy", rows[:, :width])
    command = ["train", "--preset", "msae-shapes", "--device", "cpu", "--training-tokens", 600]
    command += ["--set", "train_batch_size_tokens=100", "--output-path"]
    assert vit_sae(*command, tmp_path / "a", "--embeddings", tmp_path / "64.npy") == 2
    assert "64 wide, but the embeddings of shapes-clip are 128 wide" in capsys.readouterr().err
    assert vit_sae(*command, tmp_path / "a", "--embeddings", tmp_path / "128.npy") == 0
    unnamed = ("--embeddings", tmp_path / "64.npy", "--set", "model_name=null")
    assert vit_sae(*command, tmp_path / "b", *unnamed) == 0
    names = [
        json.loads((tmp_path / run / "sae/cfg.json").read_text())["metadata"]["model_name"]
        for run in "ab"
    ]
    assert names == ["shapes-clip", None]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train"], "there is nothing to train on: give --images or --embeddings"),
        (["train", "--images", "no/such/folder"], "no/such/folder"),
        (["train", "--preset", "patchsae-vit-b16"], "near names: patchsae-vit-b-16"),
        (["train", "--config", "no.yaml"], "there is no settings file no.yaml"),
        (["train", "--resume", "no/run"], "no/run holds no run to resume"),
        (["train", "--resume", "run", "--lr", "1"], "leave out --lr"),
        (["train", "--images", "shapes", "--set", "lr"], "--set 'lr' has no '='"),
        (
            ["train", "--images", "shapes", "--model", "shapes-clip", "--hook-name", "blocks.9.x"],
            "blocks.9.x",
        ),
        (
            ["train", "--images", "shapes", "--model", "shapes-clip", "--set", "lrr=1"],
            "there is no setting 'lrr'; near names: lr",
        ),
        (["train", "--images", "shapes", "--model", "ViT-B-17"], "near names"),
        (["train", "--images", "shapes", "--device", "cuda:99"], "device 'cuda:99' can't be used"),
        (["eval", "no/sae", "--images", "shapes"], "there is no SAE in no/sae"),
        (["eval", "no/sae", "--images", "shapes", "--device", "gpu"], "device 'gpu' can't be used"),
        (["analyze", "no/sae", "--images", "shapes"], "there is no SAE in no/sae"),
        (["export", "no/sae", "out"], "there is no SAE in no/sae"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, capsys):
    assert vit_sae(*args) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"vit-sae {args[0]}: error: ")
    assert message in said[-1]


def test_a_picture_of_the_wrong_kind_is_no_reason_to_stop(run, tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.png").touch()
    assert vit_sae("eval", run / "sae", "--images", tmp_path, "--output-path", tmp_path / "e") == 0
