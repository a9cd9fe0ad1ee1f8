"""Hashes of files: kept beside them, and what is said of a file that has changed."""

import json

import pytest

from vit_sae_plugin.fingerprints import (
    DamagedFileError,
    check_file_hashes,
    file_hashes,
    find_file_damage,
    read_manifest,
    write_manifest,
)

# FIPS 180-2, appendix B.1
ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "b.txt").write_text("four")
    (tmp_path / "inner").mkdir()
    return tmp_path


def test_the_manifest_holds_every_file_but_itself(folder):
    write_manifest(folder)
    write_manifest(folder)
    kept = json.loads((folder / "manifest.json").read_text())
    assert set(kept) == {"a.bin", "b.txt"}
    assert kept["a.bin"] == {"size": 3, "sha256": ABC_SHA256}
    assert kept == read_manifest(folder)
    check_file_hashes(folder, kept)


def test_a_flipped_bit_a_cut_and_a_missing_file_are_named(folder):
    hashes = file_hashes(folder, ["a.bin", "b.txt"])
    (folder / "a.bin").write_bytes(b"abb")
    with pytest.raises(DamagedFileError, match=r"the contents of a\.bin have changed"):
        check_file_hashes(folder, hashes)
    (folder / "a.bin").write_bytes(b"ab")
    assert find_file_damage(folder, hashes) == "a.bin has 2 bytes where 3 were written"
    (folder / "a.bin").unlink()
    assert find_file_damage(folder, hashes) == "a.bin is missing"
    assert find_file_damage(folder, file_hashes(folder)) is None


@pytest.mark.parametrize("hashes", [None, [], "x", {"a.bin": None}, {"a.bin": {"size": 3}}])
def test_hashes_that_are_none_are_damage(folder, hashes):
    assert find_file_damage(folder, hashes) == "the hashes of its files are unreadable"


def test_hashes_reach_no_file_outside_the_folder(folder):
    (folder / "c").write_bytes(b"abc")
    outside = {"../c": {"size": 3, "sha256": ABC_SHA256}}
    assert find_file_damage(folder / "inner", outside) == "../c is missing"


def test_a_manifest_that_is_missing_or_no_json_is_none(folder):
    assert read_manifest(folder) is None
    for text in ("", "{", "[" * 100_000):
        (folder / "manifest.json").write_text(text)
        assert read_manifest(folder) is None
