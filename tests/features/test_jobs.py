"""Which videos are named, and where their features go."""

import argparse
import itertools
import pathlib

import pytest

from i3d_jax.features import jobs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "a/x.mp4", "a/b/x.mkv", "c/x.mp4", "c/y.avi":
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text(name)
    return tmp_path


def targets(*names, **options):
    found = jobs.list_jobs(names, pathlib.Path("out"), **options)
    return {str(job.source): str(job.target.relative_to("out")) for job in found}


def test_files_of_a_folder_keep_their_paths(folder):
    assert targets("a") == {"a/b/x.mkv": "b/x", "a/x.mp4": "x"}


def test_single_files_keep_their_folders_below_the_one_they_share(folder):
    assert targets("a/x.mp4") == {"a/x.mp4": "x"}
    assert targets("a/x.mp4", "c/x.mp4") == {"a/x.mp4": "a/x", "c/x.mp4": "c/x"}
    assert targets("a/b/x.mkv", "a/x.mp4") == {"a/b/x.mkv": "b/x", "a/x.mp4": "x"}


def test_a_list_has_paths_relative_to_itself_or_absolute(folder):
    (folder / "a" / "list.txt").write_text(f"x.mp4\n\n  ../c/y.avi \n{folder}/c/x.mp4\n")
    found = targets("@a/list.txt")
    assert found == {"a/x.mp4": "a/x", "a/../c/y.avi": "c/y", f"{folder}/c/x.mp4": "c/x"}


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_an_error(text, folder):
    (folder / "list.txt").write_text(text)
    with pytest.raises(ValueError, match="list.txt: is an empty list, wanted a path per line"):
        targets("@list.txt")


def test_two_videos_of_one_target_are_both_named(folder):
    (folder / "c" / "y.mp4").write_text("")
    with pytest.raises(ValueError, match="out/y: the features of both c/y.avi and c/y.mp4 would"):
        targets("c")
    with pytest.raises(ValueError, match="out/x: the features of both a/x.mp4 and c/x.mp4 would"):
        targets("a", "c")


def test_a_video_that_is_named_twice_is_one(folder):
    assert targets("a/x.mp4", "./a/../a/x.mp4", "a/x.mp4") == {"a/x.mp4": "x"}


def test_a_prefix_is_added_where_it_is_missing(folder):
    (folder / "c" / "v_z.mp4").write_text("")
    assert targets("c", prefix="v_") == {
        "c/v_z.mp4": "v_z",
        "c/x.mp4": "v_x",
        "c/y.avi": "v_y",
    }


def test_videos_in_the_folder_for_features_are_left_out(folder):
    (folder / "out").mkdir()
    (folder / "out" / "z.mp4").write_text("")
    assert "out/z.mp4" not in targets(".")


def test_shards_are_disjoint_and_complete():
    all_jobs = [jobs.Job(pathlib.Path(f"{n}"), pathlib.Path(f"{n}")) for n in range(10)]
    parts = [jobs.shard(f"{number}/3").of(all_jobs) for number in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == sorted(all_jobs) and [*map(len, parts)] == [4, 3, 3]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", ""])
def test_wrong_shards_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no shard, wanted I/N"):
        jobs.shard(text)
