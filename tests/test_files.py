import os
import pathlib
import threading
import time

import pytest

from i3d_jax import datasets, files
from i3d_jax.prefetch import prefetch


def test_a_full_disk_is_named_with_the_file_and_not_with_a_temporary_one(tmp_path):
    path = tmp_path / "weights"
    for write in (
        lambda temporary: temporary.symlink_to("/dev/full") or temporary.write_text("x"),
        lambda temporary: (temporary / "x").write_text("x"),  # The folder does not exist.
    ):
        with pytest.raises(OSError) as raised, files.atomic_write(path) as temporary:
            write(temporary)
        assert raised.value.filename == str(path) and raised.value.strerror
        assert not list(tmp_path.iterdir())
    (tmp_path / "log").symlink_to("/dev/full")
    path = tmp_path / "log"
    with (
        pytest.raises(OSError, match=f"No space left on device: '{path}'"),
        files.naming_errors(path),
    ):
        path.write_text("x")


def test_an_error_that_names_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="/nowhere/x"), files.atomic_write(tmp_path / "y"):
        pathlib.Path("/nowhere/x").read_text()


def test_a_folder_is_locked_and_what_killed_processes_left_in_it_is_removed_whoever_they_were(
    tmp_path,
):
    left = []
    with pytest.raises(KeyboardInterrupt):  # Leaves files as a killed process does.
        for name in "x", "y":
            with files.atomic_write(tmp_path / name) as temporary:
                left.append(temporary)
                raise KeyboardInterrupt
    (left[0]).write_text("half")
    (tmp_path / f"{left[0].name}.raw").write_text("half")
    (tmp_path / f"{files.TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / f"{files.TEMPORARY_PREFIX}folder" / "00000.png").write_text("half")
    (tmp_path / ".mine").write_text("whole")
    busy = ValueError("busy")
    with files.locked_folder(tmp_path, busy):
        assert sorted(os.listdir(tmp_path)) == [".lock", ".mine"]
        with files.atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("live")
            with pytest.raises(ValueError, match="busy"), files.locked_folder(tmp_path, busy):
                pass
    assert (tmp_path / "x").read_text() == "live"


def test_processes_that_write_one_file_have_temporary_files_of_their_own(tmp_path, monkeypatch):
    # In containers, process numbers and host names may be equal.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with files.atomic_write(tmp_path / "x") as first, files.atomic_write(tmp_path / "x") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "x").read_text() == "1" and os.listdir(tmp_path) == ["x"]


def test_whoever_only_reads_lines_leaves_the_last_one_to_who_writes_it(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntw")
    assert files.complete_lines(path, truncate=False) == ["one"] and path.read_text() == "one\ntw"
    assert files.complete_lines(path) == ["one"] and path.read_text() == "one\n"


def test_names_that_are_not_utf8_are_refused_where_a_library_takes_no_other(tmp_path):
    files.check_utf8(tmp_path / "動")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for look in datasets.builder, datasets.available, datasets.prepared:
        with pytest.raises(
            ValueError, match="\udcff: this name is not UTF-8, and cannot be used here"
        ):
            look("moving_shapes/videos", name)
    assert not list(tmp_path.iterdir())


def test_who_is_interrupted_does_not_wait_for_threads_that_work_ahead():
    over = threading.Event()

    def work(item):
        if item:
            over.wait(120)
        return item

    def items():
        yield from range(2)
        raise KeyboardInterrupt

    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(prefetch(work, items(), 1))
        assert time.monotonic() - began < 60
    finally:
        over.set()
