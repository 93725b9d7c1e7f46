"""state/data_dir.py: all paths are below the data directory, and differ."""

from state.data_dir import LOCK_STRIPES, DataDir


def test_all_paths_are_below_the_data_directory_and_differ(tmp_path):
    layout = DataDir(tmp_path)
    places = [
        layout.manifest("m"),
        layout.record("J1"),
        layout.spool("J1"),
        layout.result("J1", 2),
        layout.parts,
        layout.trash,
        layout.run,
        layout.redis,
        layout.lock("job", "J1"),
    ]
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert len(set(places)) == len(places)


def test_locks_are_few_however_many_keys_there_are(tmp_path):
    layout = DataDir(tmp_path)
    locks = {layout.lock("job", str(key)) for key in range(5000)}
    assert len(locks) == LOCK_STRIPES
    assert layout.lock("job", "a") != layout.lock("checkpoint", "a")
