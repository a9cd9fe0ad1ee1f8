"""What a release says in several places is the same in all of them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OF_DEVELOPERS = {"bench", "docs", "test"}
OF_THE_PACKAGE = sorted(EXTRAS.keys() - OF_DEVELOPERS - {"notebooks"})
"""Extras that something in the package imports."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def lower_ends(requirements: list[str]) -> dict[str, str]:
    found = (re.match(r"([\w-]+)(?:\[.*?\])?>=([\w.]+)", each) for each in requirements)
    return {each[1]: each[2] for each in found if each}


def test_changelog_and_citation_have_the_version_and_its_day():
    heading = re.search(r"^## (\d\S*) – (\S+)$", text("CHANGELOG.md"), re.M)
    citation = yaml.safe_load(text("CITATION.cff"))
    assert heading.groups() == (PROJECT["version"], citation["date-released"])
    assert citation["version"] == PROJECT["version"]


def test_the_lowest_constraints_are_the_lower_ends_of_all_ranges():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text("constraints-lowest.txt"), re.M))
    ends: dict[str, str] = {}
    for requirements in [PROJECT["dependencies"], EXTRAS["test"]]:
        for name, end in lower_ends(requirements).items():
            assert ends.setdefault(name, end) == end, name
    for name in pins:
        assert (pins[name] + ".0.0").startswith(ends[name] + "."), (name, pins[name], ends[name])
    of_users = [each for extra in OF_THE_PACKAGE for each in EXTRAS[extra]]
    assert pins.keys() == lower_ends([*PROJECT["dependencies"], *of_users]).keys()


def test_ten_minutes_lists_every_extra_of_users():
    table = re.findall(r"^\| `(\w+)` \|", text("docs/ten_minutes.md"), re.M)
    assert sorted(table) == sorted(EXTRAS.keys() - OF_DEVELOPERS)


def test_tests_install_what_users_extras_do():
    for extra in OF_THE_PACKAGE:
        assert set(EXTRAS[extra]) <= set(EXTRAS["test"]), extra


def test_the_readme_begins_with_a_picture_two_commands_and_five_lines():
    lines = text("README.md").splitlines()
    assert len(lines) < 150
    first = "\n".join(lines[:36])
    assert re.search(r"^!\[", first, re.M)
    for kind, count in (("sh", 2), ("python", 5)):
        block = re.search(rf"```{kind}\n(.*?)```", first, re.S)[1]
        assert len([line for line in block.splitlines() if line]) == count


@pytest.mark.parametrize("workflow", ["test", "docs", "publish"])
def test_workflows_are_yaml_with_jobs(workflow):
    jobs = yaml.safe_load(text(f".github/workflows/{workflow}.yml"))["jobs"]
    assert all(job["steps"] for job in jobs.values())
    pythons = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "3." in c}
    if workflow == "test":
        assert set(jobs["test"]["strategy"]["matrix"]["python"]) == pythons
