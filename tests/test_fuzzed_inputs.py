"""A short form of ``benchmarks/fuzz_inputs.py``: broken files end in one line, and run no code."""

import pytest

from benchmarks.fuzz_inputs import KINDS, World, run_cases

N_CASES = dict.fromkeys(KINDS, 5) | {"code in files": 32}  # that many there are


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    world.build()
    return world


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_ends_well(kind, world):
    table, faults = run_cases(world, [kind], N_CASES[kind], seed=0)
    assert not faults, [(case.name, ended, said[-2000:]) for case, ended, said in faults]
    assert table.loc["all", "cases"] == N_CASES[kind]
    if kind == "code in files":
        assert table.loc[kind, "one line"] == N_CASES[kind]


def test_a_fault_is_counted_as_one(world, monkeypatch):
    """The yardstick itself: tracebacks and code that was run are seen."""
    import vit_sae_cli

    def run(argv):
        if argv[0] == "train":
            world.mark.mkdir()
            raise ValueError("too late")
        raise KeyError("x")

    monkeypatch.setattr(vit_sae_cli, "main", run)
    table, faults = run_cases(world, ["embeddings", "atlases"], 2, seed=0)
    assert table.loc["embeddings", "code run"] == table.loc["atlases", "traceback"] == 2
    assert len(faults) == 4
