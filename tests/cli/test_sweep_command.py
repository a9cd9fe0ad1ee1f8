"""``vit-sae train --sweep``: from a file to SAEs, a table and a page."""

from __future__ import annotations

import pandas as pd
import pytest
from sae_lens import SAE

from tests.cli.command import vit_sae

SMALL = """
settings:
  model_name: shapes-clip
  hook_name: blocks.1.hook_resid_post
  train_batch_size_tokens: 128
  n_batches_in_buffer: 2
  training_tokens: 1024
  log_every_n_steps: 2
  sae: {architecture: topk, d_sae: 64}
members:
  - {name: few, sae.k: 4}
  - {name: many, sae.k: 16}
  - {name: deeper, sae.k: 4, hook_name: blocks.2.hook_resid_post}
  - {name: too-fast, lr: 1e30, sae: {architecture: standard}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SMALL)
    return path


def test_a_sweep_from_the_command_line(file, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--images", "shapes?n_images=12", "--output-path", out, "--device", "cpu")
    assert vit_sae("train", "--sweep", file, *flags, "--set", "seed=7") == 0
    said = capsys.readouterr()
    assert "4 SAEs on one stream of rows (blocks.1.hook_resid_post, blocks.2" in said.err
    assert "too-fast was stopped: the loss is" in said.err
    table = pd.read_csv(out / "sweep.csv", index_col="name")
    assert table["status"].to_list() == ["finished"] * 3 + ["diverged"]
    assert table["l0"].to_list()[:3] == [4, 16, 4]
    assert table.loc["many", "explained_variance"] > table.loc["few", "explained_variance"]
    assert SAE.load_from_disk(out / "deeper/sae").cfg.metadata.hook_name == (
        "blocks.2.hook_resid_post"
    )
    page = (out / "index.html").read_text()
    for text in ("too-fast was stopped", "k=16", "topk at blocks.2", "3 of 4"):
        assert text in page
    before = (out / "few/sae/sae_weights.safetensors").read_bytes()
    assert vit_sae("train", "--resume", out, "--device", "cpu") == 0
    assert (out / "few/sae/sae_weights.safetensors").read_bytes() == before
    assert vit_sae("train", "--sweep", file, *flags) == 2
    assert "already holds a sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", "1"), "lr is set for all members, but member 'too-fast' has its own"),
        (("--preset", "relu"), "--preset doesn't go with --sweep; name it in the sweep's file"),
        (("--set", "n_worker=1"), "there is no setting 'n_worker'; near names: n_workers"),
        (("--set", "hook_name=blocks.9.hook_resid_pre"), "hook_name is set for all members"),
        ((), "there is nothing to train on"),
        (("--images", "shapes?n_images=4", "--token-kind", "patch"), "invalid choice"),
    ],
)
def test_what_a_sweep_refuses(file, flags, message, tmp_path, capsys):
    try:
        code = vit_sae("train", "--sweep", file, "--output-path", tmp_path / "out", *flags)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
