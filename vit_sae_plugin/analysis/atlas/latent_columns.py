"""Further measures of latents, and the file they are kept in: ``columns.json`` beside an atlas.

What takes another SAE, another model or more images than the atlas to know of each latent, such as
its stability from seed to seed::

    {"format": "vit-sae latent columns", "version": 1, "sae_sha256": "…",
     "columns": {"stability": [0.91, null, …]}}
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from vit_sae_plugin.analysis.atlas.sae_json import SAEJson

COLUMNS_FILE = "columns.json"
_FILE = SAEJson(
    "vit-sae latent columns", 1, "columns", "columns of latents", "a file that an atlas wrote"
)


def checked_columns(columns: pd.DataFrame, d_sae: int) -> pd.DataFrame:
    """Numbers of latents, a row for each; missing where there is none.

    Raises:
        ValueError: a column of no numbers, or other rows than the latents.
    """
    if len(columns) != d_sae or list(columns.index) != list(range(d_sae)):
        raise ValueError(
            f"the columns have {len(columns)} rows; want a row for each of the {d_sae} latents, in "
            "their order"
        )
    for name in columns:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"a column is called {name!r}; want a name of letters, digits and _")
        if not pd.api.types.is_numeric_dtype(columns[name]):
            raise ValueError(f"the column {name!r} holds {columns[name].dtype}; want numbers")
    values = {
        name: columns[name].astype("Float64").to_numpy(float, na_value=np.nan) for name in columns
    }
    found = pd.DataFrame(values, index=pd.RangeIndex(d_sae, name="latent"))
    if np.isinf(found.to_numpy()).any():
        raise ValueError("the columns hold infinity; want finite numbers, or missing ones")
    return found


def write_columns(path: str | Path, columns: pd.DataFrame, sae_sha256: str) -> None:
    """Write columns of an SAE's latents."""
    values = {
        str(name): [None if math.isnan(value) else value for value in columns[name].tolist()]
        for name in columns
    }
    _FILE.write(path, values, sae_sha256, indent=None)


def read_columns(path: str | Path, *, sae_sha256: str, d_sae: int) -> pd.DataFrame:
    """The columns in a file.

    Raises:
        ValueError: it is no such file, or damaged, or about another SAE.
    """
    path = Path(path)
    columns = _FILE.read(path, sae_sha256)
    if not isinstance(columns, dict) or not all(map(_are_numbers, columns.values())):
        raise ValueError(f"{path} is damaged: want a list of numbers for each column")
    table = {name: pd.Series(values, dtype=float) for name, values in columns.items()}
    return checked_columns(pd.DataFrame(table), d_sae)


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(
        value is None or isinstance(value, int | float) for value in values
    )
