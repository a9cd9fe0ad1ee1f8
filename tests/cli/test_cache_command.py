"""`vit-sae cache`, and `vit-sae train` from what it wrote."""

from __future__ import annotations

import shutil

import pytest
from sae_lens import SAE

from tests.cli.command import vit_sae
from vit_sae_plugin.activations.cache import ActivationCache

MODEL = ["--model", "shapes-clip"]
HOOKS = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
SMALL = ["--batch-size-images", 4, "--images-per-shard", 4]


@pytest.fixture(scope="module")
def written(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches") / "photos"
    args = ["cache", folder, "--images", photos, *MODEL, "--hook-name", *HOOKS, *SMALL]
    assert vit_sae(*args, "--dtype", "bfloat16") == 0
    return folder


def test_a_cache_is_written_described_verified_and_repaired(written, photos, capsys) -> None:
    assert vit_sae("cache", written) == 0
    said = capsys.readouterr().out
    assert "780 rows of 12 images (all tokens of shapes-clip" in said
    assert "bfloat16, 415.0 kB in 4 shards; hooks: blocks.1.hook_resid_post (128 wide), " in said
    assert vit_sae("cache", written, "--verify") == 0
    assert "every byte is as it was written" in capsys.readouterr().out
    rows = written / "shards" / "shard-000002" / f"{HOOKS[0]}.rows.bin"
    contents = rows.read_bytes()
    rows.write_bytes(contents[:-1])
    assert vit_sae("cache", written, "--verify") == 1
    said = capsys.readouterr().out
    assert "shard 2 is damaged" in said
    assert "1 shards are damaged or missing; write just those anew with --repair" in said
    assert vit_sae("cache", written, "--repair") == 0
    assert "whole again" in capsys.readouterr().out
    assert rows.read_bytes() == contents


def test_the_same_command_goes_on_and_says_how_much_is_left(written, photos, capsys) -> None:
    shutil.rmtree(written / "shards" / "shard-000001")
    assert vit_sae("cache", written) == 0
    assert "It isn't finished: 1 shards are missing; give --images" in capsys.readouterr().out
    assert vit_sae("cache", written, "--images", photos) == 0  # the rest it knows
    said = capsys.readouterr()
    assert "65 rows an image at blocks.1.hook_resid_post, blocks.2.hook_resid_post, bfloat16: " in (
        said.err
    )
    assert "kB an image, 138.3 kB to write" in said.err
    assert "1 images could not be used and have no rows, the first class 0/000broken.jpg" in (
        said.err
    )
    assert f"vit-sae train --images cache:{written} --hook-name {HOOKS[0]}" in said.out


def test_an_sae_is_trained_from_it(written, tmp_path, capsys) -> None:
    args = ["train", "--images", f"cache:{written}", "--architecture", "topk", "--d-sae", 256]
    args += ["--set", "sae.k=8", "--set", "train_batch_size_tokens=64", "--training-tokens", 640]
    assert vit_sae(*args, "--output-path", tmp_path / "none") == 2
    said = capsys.readouterr().err.strip()
    assert f"holds {HOOKS[0]}, {HOOKS[1]}; choose one with --hook-name" in said
    assert vit_sae(*args, "--hook-name", HOOKS[1], "--output-path", tmp_path / "run") == 0
    assert "256 latents on blocks.2.hook_resid_post of shapes-clip" in capsys.readouterr().err
    sae = SAE.load_from_disk(tmp_path / "run" / "sae")
    assert (sae.cfg.d_in, sae.cfg.metadata.hook_name) == (128, HOOKS[1])
    assert vit_sae("train", "--resume", tmp_path / "run", "--training-tokens", 1280) == 0


def test_mixing_is_measured(written, capsys) -> None:
    assert vit_sae("cache", written, "--mixing", "--hook-name", HOOKS[1]) == 0
    said = capsys.readouterr().out
    assert "batches of 390 rows at blocks.2.hook_resid_post, 2 of them" in said
    assert "images a batch draws on    12.0 (uniform sampling: 12.0)" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{new}"], "there is nothing to cache: give --images"),
        (["{new}", "--verify"], "there is no activation cache in"),
        (["{there}", "--add"], "--add takes in further images: give them with --images"),
        (["{there}", "--images", "shapes?n_images=4"], "is of photos"),
        (["{there}", "--images", "{photos}", "--dtype", "int8"], "dtype is 'bfloat16' in the cac"),
        (["{new}", "--images", "{photos}", *MODEL, "--images-per-shard", "33"], "a multiple of"),
        (["{new}", "--images", "{photos}", *MODEL, "--hook-name", "blocks.7.hook_resid_post"], "7"),
        (["{there}/cache.json", "--images", "{photos}", *MODEL], "it is a file"),
    ],
)
def test_bad_input_is_one_line(written, photos, tmp_path, args, message, capsys) -> None:
    places = {"new": tmp_path / "new", "there": written, "photos": photos}
    assert vit_sae("cache", *(str(arg).format(**places) for arg in args)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("vit-sae cache: error: ")
    assert message in lines[-1]
    assert ActivationCache(written).n_images == 12
