"""The result of an evaluation: tables with named rows, on screen, in a notebook, and on disk."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vit_sae_plugin.atomic_files import write_text_atomically

REPORT_FILE = "evaluation.json"
_MAX_SCREEN_WIDTH, _MAX_SCREEN_ROWS = 100, 30


@dataclass
class EvaluationReport:
    """Tables of metrics, the settings they were measured under, and what could not be measured."""

    tables: dict[str, pd.DataFrame]
    """Name → table; its index is named and saved with it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What a reader must know to compare numbers: sample sizes, thresholds, batch sizes, names."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def __getattr__(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return tables[name]
        raise AttributeError(f"the report has no {name!r}; its tables are {sorted(tables)}")

    def save(self, folder: str | Path) -> Path:
        """Write each table as ``NAME.csv`` and everything as ``evaluation.json``.

        Files are replaced whole, so a reader never meets half of one. NaN is ``null`` in JSON and
        empty in CSV.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            write_text_atomically(folder / f"{name}.csv", table.to_csv())
        content = {
            "settings": self.settings,
            "notes": self.notes,
            "tables": {name: _table_to_json(table) for name, table in self.tables.items()},
        }
        text = json.dumps(_jsonable(content), indent=2, allow_nan=False)
        write_text_atomically(folder / REPORT_FILE, text + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationReport:
        """Read what ``save`` wrote."""
        content = json.loads((Path(folder) / REPORT_FILE).read_text(encoding="utf-8"))
        tables = {name: _table_from_json(table) for name, table in content["tables"].items()}
        return cls(tables, content["settings"], content["notes"])

    def __str__(self) -> str:
        """For a screen. Of a long table only its name and size."""
        parts = []
        for name, table in self.tables.items():
            size = f"{len(table)} rows, {len(table.columns)} columns: report.tables[{name!r}]"
            is_long = len(table) > _MAX_SCREEN_ROWS
            parts.append(f"{name}\n{size if is_long else _format(table)}")
        if self.settings:
            parts.append("\n".join(f"{key}: {value}" for key, value in self.settings.items()))
        return "\n\n".join(parts + [f"note: {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        parts = []
        for name, table in self.tables.items():
            parts.append(f"<h4>{html.escape(name)}</h4>" + _readable(table).to_html(escape=True))
        listed = [f"{key}: {value}" for key, value in self.settings.items()] + self.notes
        items = "".join(f"<li>{html.escape(item)}</li>" for item in listed)
        return "".join(parts) + f"<ul>{items}</ul>"


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(_format_number)


def _format(table: pd.DataFrame) -> str:
    """For a screen: wide tables lie on their side."""
    readable = _readable(table)
    text = readable.to_string()
    if len(text.splitlines()[0]) <= _MAX_SCREEN_WIDTH or len(table) > len(table.columns):
        return text
    return readable.T.to_string()


def _format_number(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


def _table_to_json(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "index_names": list(table.index.names),
        "index": [list(row) if isinstance(row, tuple) else [row] for row in table.index],
        "columns": list(table.columns),
        "rows": table.astype(object).to_numpy().tolist(),
    }


def _table_from_json(content: Mapping[str, Any]) -> pd.DataFrame:
    names = content["index_names"]
    keys = [tuple(row) for row in content["index"]]
    index: pd.Index = (
        pd.Index([key[0] for key in keys], name=names[0])
        if len(names) == 1
        else pd.MultiIndex.from_tuples(keys, names=names)
    )
    rows = [[math.nan if value is None else value for value in row] for row in content["rows"]]
    return pd.DataFrame(rows, index=index, columns=content["columns"])


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
