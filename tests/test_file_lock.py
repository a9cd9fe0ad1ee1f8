"""What else may lie where a lock's file is wanted."""

from __future__ import annotations

import os

import pytest

from vit_sae_plugin.file_lock import FileLock


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links can't be told from files here")
def test_a_link_in_the_locks_place_does_not_empty_what_it_points_at(tmp_path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("dear diary")
    (tmp_path / "a.lock").symlink_to(diary)
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / "a.lock").acquire()
    assert diary.read_text() == "dear diary"
