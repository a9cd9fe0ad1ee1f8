"""Where vocabularies come from: files of one's own, public lists, and lists that are at hand.

| source | what it is |
| --- | --- |
| `shapes` | the words of the built-in shape scenes |
| `general` | names of 1,500 objects and actions that installed packages hold (see below) |
| `wordnet` | nouns of WordNet, if NLTK has it on this machine, with their hypernyms |
| `words.txt` | one word or phrase a line, in UTF-8 |
| `words.csv`, `words.parquet` | a column `word`, and `count` and `broader` if they have them |
| `splice:FILE` | LAION's or MSCOCO's words as SpLiCE and MSAE ship them: the rarest first |
| `clip-dissect:FILE` | one a line, the most frequent first |
| `broden:FILE` | Broden's `label.csv`, or labels one a line |
| `dn-cbm:FILE` | `concept_names.csv`: index and word, without a heading |

`?n=10000` takes only so many of a list, the most frequent ones. Public lists may repeat a word or
hold an empty line: those are left out. In a file of one's own they are errors.

`general` is read from where it lies, not copied: ImageNet's classes as open_clip lists them (MIT
licence), those of COCO and Kinetics-400 as torchvision does (BSD-3-Clause).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from vit_sae_plugin.concepts.vocabulary import Vocabulary, check_words
from vit_sae_plugin.near_names import near_names


def read_vocabulary(source: str | Path | Vocabulary) -> Vocabulary:
    """A vocabulary by its source: see the table above.

    Raises:
        ValueError: there is no such source or file, or the file is no list of words.
        ImportError: `wordnet` without NLTK.
    """
    if isinstance(source, Vocabulary):
        return source
    text, _, options = str(source).partition("?")
    n = _number(options, str(source))
    kind, colon, path = text.partition(":")
    if text in _AT_HAND:
        return _AT_HAND[text](n)
    if colon and kind in _LAYOUTS:
        return Vocabulary(_different(_LAYOUTS[kind](Path(path)))[:n], name=text)
    return _own_file(Path(text), n)


def _different(words: Iterable[str]) -> tuple[str, ...]:
    """Each word once, whatever its case, for tokenizers tend to fold it."""
    by_fold: dict[str, str] = {}
    for word in map(str.strip, words):
        if word:
            by_fold.setdefault(word.casefold(), word)
    return tuple(by_fold.values())


def _number(options: str, source: str) -> int | None:
    if not options:
        return None
    name, _, value = options.partition("=")
    if name != "n" or not value.isdecimal() or int(value) < 1:
        raise ValueError(f"vocabulary {source!r}: its option is {options!r}; want n=N, a number")
    return int(value)


def _own_file(path: Path, n: int | None) -> Vocabulary:
    if not path.is_file():
        near = near_names(str(path), _AT_HAND)
        meant = f" (near: {', '.join(near)})" if near else ""
        kinds = ", ".join(f"{kind}:FILE" for kind in _LAYOUTS)
        raise ValueError(
            f"there is no vocabulary {str(path)!r}{meant}; want a file with one word a line, a "
            f"table (.csv, .parquet), {kinds}, or one of {', '.join(_AT_HAND)}"
        )
    if path.suffix in (".csv", ".parquet"):
        return _from_table(_read_table(path), path, n)
    words = tuple(lines(path))
    check_words(words, str(path))
    return Vocabulary(words[:n], name=path.name)


def _from_table(table: pd.DataFrame, path: Path, n: int | None) -> Vocabulary:
    if "word" not in table:
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, table.columns)) or 'none'}; want one "
            "called 'word'"
        )
    words = table["word"].fillna("").astype(str)
    check_words(words, str(path))
    if "count" in table:
        counts = pd.to_numeric(table["count"], errors="coerce")
        if counts.isna().any() or (counts < 0).any():
            line = int((counts.isna() | (counts < 0)).to_numpy().argmax())
            raise ValueError(
                f"{path}: the count of {words.iloc[line]!r} is {table['count'].iloc[line]!r}; "
                "want a number of 0 or more"
            )
        if n is not None:
            table = table.loc[counts.sort_values(ascending=False, kind="stable").index[:n]]
    table = table.head(n) if n is not None else table
    broader = {}
    if "broader" in table:
        said = zip(table["word"].astype(str), table["broader"].fillna("").astype(str), strict=True)
        parts = {word: frozenset(_split(text)) for word, text in said}
        broader = {word: words for word, words in parts.items() if words}
    return Vocabulary(
        tuple(table["word"].astype(str)),
        name=path.name,
        counts=tuple(table["count"].astype(int)) if "count" in table else None,
        broader=broader,
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _read_table(path: Path, **settings: Any) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # "nan", "null" and "none" are words
        return pd.read_csv(path, keep_default_na=False, **settings)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}); save it as UTF-8") from None
    except (ValueError, OSError) as error:  # pandas' and Arrow's own are among them
        raise ValueError(f"{path} is no table of words: {error}") from None


def lines(path: Path) -> list[str]:
    """The lines of a text file, without white space at their ends.

    Raises:
        ValueError: there is no such file, or it isn't in UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; want a list of words") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from None


def _rarest_first(path: Path) -> Iterator[str]:
    return reversed(lines(path))


def _broden(path: Path) -> Iterable[str]:
    if path.suffix != ".csv":
        return lines(path)
    table = _existing_table(path)
    if "name" not in table:
        raise ValueError(f"{path} has no column 'name'; want Broden's label.csv")
    if "frequency" in table:
        table = table.sort_values("frequency", ascending=False, kind="stable")
    return table["name"].astype(str)


def _dn_cbm(path: Path) -> Iterable[str]:
    table = _existing_table(path, header=None, names=["index", "word"])
    return table["word"].astype(str)


def _existing_table(path: Path, **settings: Any) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; want a list of words")
    return _read_table(path, **settings)


_LAYOUTS: dict[str, Callable[[Path], Iterable[str]]] = {
    "splice": _rarest_first,
    "clip-dissect": lines,
    "broden": _broden,
    "dn-cbm": _dn_cbm,
}


def _shapes(n: int | None) -> Vocabulary:
    from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES, SIZES, TEXTURES
    from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES

    words = [*COLORS, *SHAPES, *TEXTURES, *SIZES, *SCENE_CLASS_NAMES]
    return Vocabulary(tuple(words[:n]), name="shapes")


def _general(n: int | None) -> Vocabulary:
    from open_clip import IMAGENET_CLASSNAMES
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
    from torchvision.models.video import R3D_18_Weights

    objects = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    actions = R3D_18_Weights.KINETICS400_V1.meta["categories"]
    coco = [name for name in objects if name not in ("__background__", "N/A")]
    return Vocabulary(_different([*coco, *actions, *IMAGENET_CLASSNAMES])[:n], name="general")


def _wordnet(n: int | None) -> Vocabulary:
    try:
        from nltk.corpus import wordnet

        nouns = list(wordnet.all_synsets("n"))
    except ImportError:
        raise ImportError("the vocabulary 'wordnet' needs NLTK: pip install nltk") from None
    except LookupError:
        raise ValueError(
            "NLTK has no WordNet on this machine; get it by python -m nltk.downloader wordnet"
        ) from None
    counts: dict[str, int] = {}
    broader: dict[str, set[str]] = {}
    for synset in nouns:
        word = _of_synset(synset)
        above = {_of_synset(other) for other in synset.closure(lambda one: one.hypernyms())}
        counts[word] = counts.get(word, 0) + sum(lemma.count() for lemma in synset.lemmas())
        broader.setdefault(word, set()).update(above - {word})
    words = sorted(counts, key=lambda word: (-counts[word], word))[:n]
    return Vocabulary(
        tuple(words),
        name="wordnet",
        counts=tuple(counts[word] for word in words),
        broader={word: frozenset(broader[word]) for word in words if broader[word]},
    )


def _of_synset(synset: Any) -> str:
    return synset.lemmas()[0].name().replace("_", " ")


_AT_HAND: dict[str, Callable[[int | None], Vocabulary]] = {
    "shapes": _shapes,
    "general": _general,
    "wordnet": _wordnet,
}
