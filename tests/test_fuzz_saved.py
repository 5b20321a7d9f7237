"""A few of the mutated folders that `python tests/fuzz_saved.py` makes by the hundred."""

from fuzz_saved import FILES, fuzz


def test_mutated_folders_are_loaded_or_refused(tmp_path):
    counts, faults = fuzz(32, tmp_path, seed=5)
    assert not faults
    for kind in FILES:
        assert counts[f"{kind}: refused"] > 2
