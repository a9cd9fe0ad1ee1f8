"""Values from files against a dataclass's annotations."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vit_sae_plugin.field_types import check_field_types, check_values


@dataclass
class Settings:
    size: int
    rate: float = 0.1
    mode: Literal["auto"] | int | None = None
    grid: tuple[int, int] = (1, 2)
    names: list[str] | None = None
    flag: bool = False
    rule: dict[str, Any] = field(default_factory=dict)
    anything: Any = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "size is missing"),
        ({"size": "3"}, "size is '3', a str; want int"),
        ({"size": True}, "size is True, a bool; want int"),
        ({"size": 2.5}, "size is 2.5, a float; want int"),
        ({"size": 3, "rate": None}, "rate is None, a NoneType; want float"),
        ({"size": 3, "rate": 10**400}, "rate is too large; want a number below"),
        ({"size": 3, "mode": "manual"}, "mode is 'manual', a str; want int or None or 'auto'"),
        ({"size": 3, "mode": [[]]}, "mode is"),
        ({"size": 3, "grid": [1]}, r"grid is \(1,\); want 2 entries"),
        ({"size": 3, "grid": [1, "2"]}, "an entry of grid is '2'"),
        ({"size": 3, "names": ["a", 1]}, "an entry of names is 1, a int; want str"),
        ({"size": 3, "flag": 1}, "flag is 1, a int; want bool"),
        ({"size": 3, "rule": []}, "rule is"),
    ],
)
def test_the_first_value_of_the_wrong_type_is_told(values, message):
    with pytest.raises(ValueError, match=message):
        check_values(values, Settings)


def test_right_values_pass_whatever_a_file_calls_them():
    values = {"size": 2e6, "rate": 1, "mode": "auto", "grid": [3, 4], "names": None, "more": {}}
    check_values(values, Settings)
    check_values({"rate": 1}, Settings, need_all=False)
    with pytest.raises(ValueError, match=r"^sae\.rate is"):
        check_values({"rate": "x"}, Settings, need_all=False, prefix="sae.")


def test_a_made_dataclass_gets_whole_numbers_and_tuples():
    settings = Settings(size=2e6, rate=1, grid=[3, 4])
    check_field_types(settings)
    assert (settings.size, settings.rate, settings.grid) == (2_000_000, 1.0, (3, 4))
    assert (type(settings.size), type(settings.rate)) == (int, float)
