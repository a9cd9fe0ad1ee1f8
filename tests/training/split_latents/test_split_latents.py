"""Two processes that share an SAE's latents train the SAE that one process trains."""

from __future__ import annotations

import json

import pytest
import sae_lens
import torch
from safetensors.torch import load_file

from tests.training.ranks.processes import Processes
from tests.training.split_latents.shared_training import share_latents
from tests.training.split_latents.short_runs import (
    CASES,
    D_IN,
    D_SAE,
    K_LIST,
    N_STEPS,
    draw_batches,
    new_trainer,
    resumed,
    tied_rows_of_latents,
    train,
    whole_weights,
)
from vit_sae_plugin.training.split_latents import LatentSplit, check_splittable
from vit_sae_plugin.training.split_latents.shared_top_k import select_shared_top_k

ONE = LatentSplit()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Each case trained in one process, the plain way, and saved; with its metrics."""
    trained = {}
    for name in CASES:
        trainer = new_trainer(name, None)
        begun = {key: value.clone() for key, value in trainer.sae.state_dict().items()}
        metrics = train(trainer, draw_batches())
        folder = tmp_path_factory.mktemp("plain")
        trainer.set_final_sae_metadata()
        trainer.sae.save_inference_model(folder)
        trained[name] = (trainer, begun, metrics, folder)
    return trained


@pytest.fixture(scope="module")
def two(tmp_path_factory, plain):
    """The folder in which two processes left what they found; they are started once."""
    folder = tmp_path_factory.mktemp("two")
    for name in CASES:
        trainer = new_trainer(name, ONE)
        train(trainer, draw_batches(), 25)
        trainer.write_files(folder / name / "of one")
        (folder / name / "sae").mkdir()
    Processes(2, lambda: share_latents(folder), folder / "logs").end()
    return folder


def assert_close(found, wanted, rtol=0.0, atol=1e-5):
    """All that is wanted is found; NaN equals NaN."""
    assert found.keys() >= wanted.keys()
    of_both = ({name: each[name].float() for name in wanted} for each in (found, wanted))
    torch.testing.assert_close(*of_both, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, plain, two):
    trainer, begun, _, _ = plain[name]
    assert_close(load_file(two / name / "begun.safetensors"), begun, atol=0)
    ended = load_file(two / name / "ended.safetensors")
    assert_close(ended, trainer.sae.state_dict())
    for counter in ("act_freq_scores", "n_forward_passes_since_fired"):
        assert torch.equal(ended[counter], getattr(trainer, counter)), counter
    moved = (trainer.sae.W_dec - begun["W_dec"]).abs().max()
    assert moved > 1e-3  # or there was nothing to compare


@pytest.mark.parametrize("name", CASES)
def test_each_step_reports_the_whole(name, plain, two):
    expected = plain[name][2]
    found = json.loads((two / name / "metrics.json").read_text())
    assert len(found) == N_STEPS
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    for wanted, seen in zip(expected, found, strict=True):
        # a ghost's gradient is divided by its error, and magnifies rounding where that is small
        assert seen.pop("grad_norm") == pytest.approx(wanted["grad_norm"], rel=2e-2)
        others = {key: value for key, value in wanted.items() if key != "grad_norm"}
        assert seen == pytest.approx(others, rel=1e-4, abs=1e-5)
    assert max(step["n_dead_latents"] for step in expected) >= 10


@pytest.mark.parametrize("name", CASES)
def test_b_dec_is_the_same_to_the_bit_on_both(name, two):
    first, second = load_file(two / name / "of_all.safetensors")["b_dec"]
    assert torch.equal(first, second)
    assert first.abs().max() > 0


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_as_if_never_stopped(name, two):
    ended = load_file(two / name / "ended.safetensors")
    again = load_file(two / name / "resumed.safetensors")
    assert_close(again, ended, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_another_number_of_processes_can_go_on(name, plain, two):
    wanted = plain[name][0].sae.state_dict()
    assert_close(load_file(two / name / "resumed from one.safetensors"), wanted)
    alone = resumed(name, ONE, two / name / "of two")
    assert alone.n_training_steps == 25
    train(alone, draw_batches())
    assert_close(whole_weights(alone), wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_saved_folder_is_that_of_one_process(name, plain, two):
    trainer, _, _, folder = plain[name]
    saved = two / name / "sae"
    assert sorted(path.name for path in saved.iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    wanted, found = (load_file(each / "sae_weights.safetensors") for each in (folder, saved))
    assert found.keys() == wanted.keys()
    # a decoder whose rows have norm 0.1 is saved with rows of norm 1, and rounding grows with it
    assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    cfgs = [json.loads((each / "cfg.json").read_text()) for each in (folder, saved)]
    l0s = [cfg["metadata"].pop("l0") for cfg in cfgs]
    assert l0s[1] == pytest.approx(l0s[0], rel=1e-3)
    assert cfgs[1] == cfgs[0]
    rows = draw_batches()[0]
    loaded = [sae_lens.SAE.load_from_disk(each) for each in (folder, saved)]
    torch.testing.assert_close(loaded[1](rows), loaded[0](rows), rtol=1e-4, atol=1e-4)
    sparsity = load_file(two / name / "of_all.safetensors")["sparsity"]
    torch.testing.assert_close(sparsity, trainer.log_feature_sparsity)


def test_of_equal_latents_the_lower_number_is_kept_whoever_holds_them(two):
    rows = tied_rows_of_latents()
    by_number = rows.nan_to_num(nan=1e9, posinf=1e8).sort(dim=-1, descending=True, stable=True)
    for positive_only in (True, False):
        by_shard = load_file(two / "kept.safetensors")[f"positive only {positive_only}"]
        of_two = torch.cat(list(by_shard), dim=-1).bool()
        alone = select_shared_top_k(rows, K_LIST, ONE, positive_only=positive_only)
        for level, k in enumerate(K_LIST):
            wanted = torch.zeros_like(rows, dtype=torch.bool)
            wanted.scatter_(-1, by_number.indices[:, :k], True)
            if positive_only:
                wanted &= ~(rows <= 0)
            assert torch.equal(of_two[level], wanted)
            kept = torch.zeros_like(wanted).scatter(-1, alone.latents, alone.kept(level))
            assert torch.equal(kept, wanted)


@pytest.mark.parametrize("k_list", [[2, 30], [2, 30, 400]], ids=["found", "sorted"])
def test_of_many_equal_latents_the_lower_numbers_are_kept(k_list):
    """A few of many latents are found, many are sorted: with the same result."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(-40, 12, (7, 2_000), generator=generator).float() / 8
    rows[5, ::3], rows[6] = torch.nan, 0.5
    by_number = rows.nan_to_num(nan=1e9).sort(dim=-1, descending=True, stable=True).indices
    for positive_only in (True, False):
        chosen = select_shared_top_k(rows, k_list, ONE, positive_only=positive_only)
        for level, k in enumerate(k_list):
            wanted = torch.zeros_like(rows, dtype=torch.bool).scatter(-1, by_number[:, :k], True)
            if positive_only:
                wanted &= ~(rows <= 0)
            kept = torch.zeros_like(wanted).scatter(-1, chosen.latents, chosen.kept(level))
            assert torch.equal(kept, wanted)


def test_no_process_ever_holds_a_whole_matrix(two):
    largest = json.loads((two / "largest.json").read_text())
    assert largest == dict.fromkeys(largest, D_IN * D_SAE // 2)


def test_an_sae_that_cannot_be_split_is_refused():
    cfg = CASES["topk"]
    with pytest.raises(ValueError, match=r"d_sae is 48 with n_latent_shards=5; want a multiple"):
        check_splittable(cfg, 5)
    gated = sae_lens.GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
    with pytest.raises(ValueError, match=r"architecture is 'gated'.*'patchsae', 'topk'"):
        check_splittable(gated, 2)
    exact = type(cfg).from_dict({**cfg.to_dict(), "dtype": "float64"})
    with pytest.raises(ValueError, match=r"dtype is 'float64'.*want one of 'float32'"):
        check_splittable(exact, 2)
