"""The scaling page: its tables are the script's, and the script's arithmetic is right."""

import csv
import json
from datetime import date

import pytest

from benchmarks import scaling_costs
from benchmarks.scaling_costs import Job, Machine, break_even, storage_usd


def machine(**images_per_second: float) -> Machine:
    rates = dict.fromkeys(scaling_costs.PARTS, 1e9) | images_per_second
    kinds = dict.fromkeys(scaling_costs.PARTS, "measured")
    return Machine("one", {"usd_per_hour": "2"}, rates, kinds)


def test_the_page_holds_what_the_script_gives():
    page = scaling_costs.PAGE.read_text(encoding="utf-8")
    assert page == scaling_costs.renewed(page), "run: python -m benchmarks.scaling_costs --write"


def test_arithmetic_by_hand():
    job = Job(n_tokens=10, d_in=4, d_sae=8, bytes_per_number=2, tower_flop=1000)
    assert job.bytes_per_image == 80
    assert job.step_flop == 5 * 2 * 4 * 8 * 10
    assert job.images_per_second("write", 160, "bytes/s") == 2
    assert job.images_per_second("steps", 30, "rows/s") == 3
    assert job.images_per_second("tower", 5000, "FLOP/s") == 5
    assert job.images_per_second("steps", 6400, "FLOP/s") == 2
    one = machine(tower=10, decode=20)
    assert one.hours("tower", 72_000) == 2
    assert one.slowest(("decode", "tower", "write")) == "tower"
    assert storage_usd(1e12) == pytest.approx(23)


def test_when_a_cache_pays():
    # a pass of 7,200 images: tower 1 h = $2, steps 0.25 h = $0.50
    one = machine(tower=2, decode=4, steps=8)
    # once $2 + storage; each run from the cache saves $2 − $0.50
    assert break_even(one, 7_200, storage=0.0) == 2
    assert break_even(one, 7_200, storage=4.0) == 5  # $6 of saving 1.5 each: equal at 4
    # where the SAE's steps are slowest nothing is saved
    assert break_even(machine(tower=2, steps=1), 7_200, storage=0.0) is None


def test_every_price_and_rate_has_its_source():
    with scaling_costs.PRICES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert date.fromisoformat(row["date"])
            assert row["source"].startswith("https://")
            assert float(row["usd_per_hour"]) > 0
    with scaling_costs.PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["kind"] in ("published", "assumed"), "measured is only what we ran"
            assert len(row["source"]) > 5


def test_rates_come_from_the_bench_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_costs, "RATES", tmp_path / "rates.json")
    table = [{"rates": {part: 10.0 + n}} for n, part in enumerate(scaling_costs.PARTS)]
    bench = tmp_path / "bench.json"
    section = {"table": table, "machine": {"cores": 2}}
    bench.write_text(json.dumps({"sections": {"scaling": section}}))
    scaling_costs.take_rates(bench)
    kept = json.loads((tmp_path / "rates.json").read_text())
    assert kept["machine"] == {"cores": 2}
    assert kept["rates"] == {
        "decode": 10.0, "tower": 11.0, "write": 12.0, "read": 13.0, "steps": 14.0
    }  # fmt: skip
    shuffled = {"rates": {"bytes_per_second": 9.0, "sequential_bytes_per_second": 18.0}}
    cache = {"table": [{"rates": {"bytes_per_second": 1.0}}, shuffled]}
    bench.write_text(json.dumps({"sections": {"scaling": section, "cache": cache}}))
    scaling_costs.take_rates(bench)
    assert json.loads((tmp_path / "rates.json").read_text())["rates"]["read"] == 9.0
    bench.write_text(json.dumps({"sections": {"scaling": section | {"table": table[:3]}}}))
    with pytest.raises(ValueError, match="no rates of read, steps; measure them with"):
        scaling_costs.take_rates(bench)
