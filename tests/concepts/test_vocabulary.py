"""Vocabularies: what is read from where, and what is refused."""

import re

import pandas as pd
import pytest

from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary


def test_one_word_a_line_csv_with_counts_and_parquet_hold_the_same(tmp_path):
    words = ["red", "red circle", "null"]
    (tmp_path / "words.txt").write_text("red\nred circle\nnull\n", encoding="utf-8-sig")
    table = pd.DataFrame({"word": words, "count": [3, 1, 2]})
    table.to_csv(tmp_path / "words.csv", index=False)
    table.to_parquet(tmp_path / "words.parquet")
    plain, csv, parquet = (
        read_vocabulary(tmp_path / f"words.{kind}") for kind in ("txt", "csv", "parquet")
    )
    assert plain.words == csv.words == parquet.words == tuple(words)
    assert plain.counts is None
    assert csv.counts == parquet.counts == (3, 1, 2)
    assert plain.sha256 == csv.sha256 != Vocabulary(("red",)).sha256
    # the most frequent ones, the first first
    assert read_vocabulary(f"{tmp_path}/words.csv?n=2").words == ("red", "null")
    assert read_vocabulary(f"{tmp_path}/words.txt?n=2").words == ("red", "red circle")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no word"),
        (b"red\n\nblue\n", "line 2 is empty"),
        (b"red\nblue\nred\n", "line 3 repeats 'red' of line 1"),
        ("caf\xe9\n".encode("latin-1"), "not in UTF-8 (byte 3"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(tmp_path, content, complaint):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name,count\nred,1\n", "has the columns name, count; want one called 'word'"),
        ("word,count\nred,many\n", "the count of 'red' is 'many'"),
        ("word,count\nred,-1\n", "the count of 'red' is"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, content, complaint):
    path = tmp_path / "words.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_vocabulary(path)


def test_public_lists_are_read_by_their_layouts(tmp_path):
    rarest_first = tmp_path / "laion.txt"
    rarest_first.write_text("zyzzyva\nRed\n\nred\ncar\n")
    assert read_vocabulary(f"splice:{rarest_first}").words == ("car", "red", "zyzzyva")
    assert read_vocabulary(f"splice:{rarest_first}?n=1").words == ("car",)
    assert read_vocabulary(f"clip-dissect:{rarest_first}?n=2").words == ("zyzzyva", "Red")
    broden = tmp_path / "label.csv"
    broden.write_text("number,name,category,frequency\n1,wall,object(1),5\n2,sky,object(2),9\n")
    assert read_vocabulary(f"broden:{broden}").words == ("sky", "wall")
    named = tmp_path / "concept_names.csv"
    named.write_text("0,cat\n1,dog\n2,cat\n")
    assert read_vocabulary(f"dn-cbm:{named}").words == ("cat", "dog")


def test_lists_at_hand():
    shapes, general = read_vocabulary("shapes"), read_vocabulary("general")
    assert {"red", "circle", "striped", "small", "red circle"} <= set(shapes.words)
    assert len(shapes) == 8 + 8 + 4 + 3 + 64
    assert {"bicycle", "Golden Retriever", "juggling balls"} <= set(general.words)


def test_an_unknown_vocabulary_names_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no vocabulary 'shape' \(near: shapes\)"):
        read_vocabulary("shape")
    with pytest.raises(ValueError, match=r"no file .*laion\.txt"):
        read_vocabulary(f"splice:{tmp_path}/laion.txt")
    with pytest.raises(ValueError, match="want n=N"):
        read_vocabulary("shapes?n=0")


def test_a_phrase_is_more_special_than_its_words_and_than_what_the_list_says(tmp_path):
    words = ("red", "circle", "red circle", "Red big circle", "poodle", "dog", "one two three")
    vocabulary = Vocabulary(words, broader={"poodle": frozenset({"dog", "animal"})})
    named = [tuple(words[at] for at in general) for general in vocabulary.generalizations]
    assert named == [
        (),
        (),
        ("red", "circle"),
        ("red", "circle", "red circle"),
        ("dog",),
        (),
        (),
    ]
    assert vocabulary.is_same_or_broader("red", "red circle")
    assert vocabulary.is_same_or_broader("dog", "poodle")
    assert not vocabulary.is_same_or_broader("red circle", "red")
    long = Vocabulary(("b c", "a c", "a b c d e f g"))
    assert [long.words[at] for at in long.generalizations[2]] == ["b c"]  # a run of words
    (tmp_path / "words.csv").write_text("word,broader\npoodle,dog;animal\ndog,\n")
    assert read_vocabulary(tmp_path / "words.csv").generalizations == ((1,), ())
