"""The table of `make bench`: one column a machine, goals judged for each."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import bench
from benchmarks.ratios import Ratio


def result(processor: str, *lines: Ratio, section: str = "steps") -> dict[str, Any]:
    table = [asdict(line) for line in lines]
    return {"sections": {section: {"table": table, "machine": {"processor": processor}}}}


def test_machines_stand_side_by_side(tmp_path):
    step = Ratio("a step", 1.2, 1.1, 1.3, "five | products", "≤ 1.25", "100 ms")
    slower = Ratio("a step", 1.3, 1.2, 1.4, "five | products", "≤ 1.25", "200 ms")
    alone = Ratio("another", 0.5, 0.4, 0.6, "five | products", note="at most 3 GB")
    (tmp_path / "b.json").write_text(json.dumps(result("Intel(R) Processor @ Two", slower, alone)))
    (tmp_path / "a.json").write_text(json.dumps(result("One", step)))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.BEGIN}old\n{bench.END}after\n")
    bench.renew_page(page, bench.kept_results(tmp_path))
    assert page.read_text() == (
        f"before\n{bench.BEGIN}### SAE steps\n`python -m benchmarks.sae_steps`\n\n"
        "| what | One | Intel Two | ÷ | goal | on One |\n"
        "| --- | ---: | ---: | --- | --- | --- |\n"
        "| a step | 1.20 (1.10 to 1.30) | 1.30 (1.20 to 1.40) **missed** "
        "| five / products | ≤\u00a01.25 | 100 ms |\n"
        "| another | – | 0.50 (0.40 to 0.60) | five / products |  |  |\n"
        f"{bench.END}after\n"
    )


def test_a_page_needs_marks_and_results(tmp_path):
    with pytest.raises(ValueError, match=r"has no results; want a bench\.json of `make bench`"):
        bench.kept_results(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result("One")))
    with pytest.raises(ValueError, match=r"b\.json is of 'One', as another file is"):
        bench.kept_results(tmp_path)
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(ValueError, match="want both, a line each"):
        bench.renew_page(tmp_path / "page.md", {})


def test_the_page_is_that_of_the_kept_results():
    page = bench.KEPT.parents[1] / "docs" / "performance.md"
    between = page.read_text(encoding="utf-8").partition(bench.BEGIN)[2].partition(bench.END)[0]
    assert between == bench.as_markdown(bench.kept_results())
