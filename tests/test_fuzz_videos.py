"""A few of the damaged videos that `python tests/fuzz_videos.py` makes by the thousand."""

from fuzz_videos import MAX_BYTES, MAX_SECONDS, READERS, fuzz


def test_damaged_videos_are_read_or_refused(tmp_path):
    counts, faults, longest, growth = fuzz(40, tmp_path, seed=3)
    assert not faults and longest < MAX_SECONDS and growth < MAX_BYTES
    for reader in READERS:
        assert counts[f"{reader}: read"] > 5 and counts[f"{reader}: refused"] > 5
