"""`prepare` and `doctor` on clips that have several files, or one that is not a regular file."""

import csv
import json
import os
import pathlib

import numpy as np
import pytest
from support import real_files

from i3d_jax import datasets, pixels
from i3d_jax.datasets import annotations, records, shards, video_files
from i3d_jax.datasets.__main__ import main
from i3d_jax.video import h264

FINAL = pathlib.Path("kinetics", "400", "1.0.0")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(datasets.Kinetics, "SHORT_SIDE", 16)


def write(path, frames, side=16):
    """Writes a video; tests recognise it by its number of frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real_files.steady(frames, 25, side, side).write(path, np.random.default_rng(frames))
    return path


@pytest.fixture
def made(tmp_path):
    """Six clips: a good one, two with a bad preferred file, and three that cannot be used.

    Of the two, one has a damaged file, the other a dangling link.
    """
    videos = tmp_path / "videos"
    yoga, others = videos / "train" / "yoga", videos / "replacement"
    write(yoga / "good_000000_000001.mp4", 3)
    write(others / "good_000000_000001.mp4", 4)
    (yoga / "worn_000000_000001.mp4").write_text("worn")
    (others / "worn_000000_000001.mp4").parent.mkdir(exist_ok=True)
    write(others / "worn_000000_000001.mp4", 5)
    (yoga / "linked_000000_000001.mp4").symlink_to("nowhere.mp4")
    write(others / "linked_000000_000001.mp4", 6)
    (yoga / "lost_000000_000001.mp4").write_text("lost")
    (others / "lost_000000_000001.mp4").touch()
    (yoga / "hollow_000000_000001.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(yoga / "pipe_000000_000001.mp4")
    names = ("good", "worn", "linked", "lost", "hollow", "pipe")
    lists = real_files.write_list(tmp_path, *[f"yoga,{name},0,1,train" for name in names])
    return videos, lists


def prepare(made, out, *more):
    videos, lists = made
    given = ["--videos", videos, "--annotations", lists, "--data-dir", out, *more]
    return main(["prepare", "kinetics/400", *map(str, given)])


def frames(out):
    """The number of frames of each record, by the clip's name."""
    builder = datasets.prepared("kinetics/400", str(out))
    return {record["id"].partition("_")[0]: record["frames"] for record in builder.records("train")}


def rejected(out):
    """Rejected files, each with the start of the reason and the file used instead."""
    with (out / FINAL / "rejected.csv").open(newline="") as file:
        return {
            row["file"]: (row["reason"].partition(": Inv")[0], row["used_instead"])
            for row in csv.DictReader(file)
        }


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / FINAL).iterdir()}


def test_the_first_file_that_can_be_used_is_and_the_others_are_listed(made, tmp_path, capsys):
    assert prepare(made, tmp_path / "out") == 0
    assert frames(tmp_path / "out") == {"good": 3, "worn": 5, "linked": 6}
    yoga, others = (f"{made[0]}/{folder}/" for folder in ("train/yoga", "replacement"))
    dangling = "is missing: a dangling link to nowhere.mp4"
    assert rejected(tmp_path / "out") == {
        f"{yoga}worn_000000_000001.mp4": ("cannot be decoded", f"{others}worn_000000_000001.mp4"),
        f"{yoga}linked_000000_000001.mp4": (dangling, f"{others}linked_000000_000001.mp4"),
        f"{yoga}lost_000000_000001.mp4": ("cannot be decoded", ""),
        f"{others}lost_000000_000001.mp4": ("is empty", ""),
        f"{yoga}hollow_000000_000001.mp4": (dangling, ""),
        f"{yoga}pipe_000000_000001.mp4": ("is no file: a FIFO", ""),
    }
    printed = capsys.readouterr().out
    assert "train: 3 of 6 annotated clips (50.0% missing)" in printed
    assert "left out: 1 is missing\n" in printed and "left out: 1 is no file\n" in printed
    assert (
        "left out: 1 cannot be decoded\n" in printed
        and "made from another than the preferred file: 2\n" in printed
    )


def test_workers_use_the_same_files(made, tmp_path):
    assert (
        prepare(made, tmp_path / "one") == 0
        and prepare(made, tmp_path / "two", "--workers", 2) == 0
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_job_that_was_sent_as_text_writes_the_same_bytes(made, tmp_path):
    videos, lists = made
    clips = video_files.clips(annotations.kinetics([lists], ["yoga"]), videos)
    written = []
    for name, write in (
        ("here", shards.write),
        ("sent", lambda job: shards._write_json(json.dumps(job))),
    ):
        (tmp_path / name).mkdir()
        (job,) = shards.shard_jobs(
            clips, "train", "x", tmp_path / name, records.Settings(("yoga",), 16, False)
        )
        write(job)
        assert shards.read_marker(job) is not None
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1] and len(written[0]) == 2


def stopped(made, out, *more):
    """Prepares all shards, but does not move them into place."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_):
            raise shards.PrepareError("stopped")

        patch.setattr(shards, "_link_or_copy", stop)
        assert prepare(made, out, *more) == 2


@pytest.mark.parametrize("change", ["mended", "another file", "link mended", "nothing"])
def test_files_that_change_meanwhile_are_noticed(change, made, tmp_path, monkeypatch):
    videos, _ = made
    stopped(made, tmp_path / "out")
    wanted = {"good": 3, "worn": 5, "linked": 6}
    if change == "mended":
        write(videos / "train" / "yoga" / "worn_000000_000001.mp4", 7)
        wanted["worn"] = 7
    elif change == "another file":
        write(videos / "more" / "lost_000000_000001.mp4", 8)
        wanted["lost"] = 8
    elif change == "link mended":
        write(videos / "train" / "yoga" / "nowhere.mp4", 9)
        wanted |= {"linked": 9, "hollow": 9}
    else:
        monkeypatch.setattr(shards, "write", None)
    assert prepare(made, tmp_path / "out") == 0
    assert frames(tmp_path / "out") == wanted


def test_flow_is_that_of_the_file_that_is_used(made, tmp_path):
    for folder, name, count in (
        ("train/yoga", "good", 3),
        ("replacement", "good", 4),
        ("replacement", "worn", 5),
        ("train/yoga", "linked", 2),
        ("", "linked", 6),
    ):
        path = tmp_path / "flow" / folder / f"{name}_000000_000001.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(h264.encode(pixels.flow_bytes(np.zeros((count, 16, 16, 2)))))
    flows = {path: path.read_bytes() for path in (tmp_path / "flow").rglob("*.mp4")}
    assert prepare(made, tmp_path / "out", "--flow", tmp_path / "flow") == 0
    builder = datasets.prepared("kinetics/400", str(tmp_path / "out"))
    found = {record["id"].partition("_")[0]: record for record in builder.records("train")}
    used = {"good": "train/yoga/good", "worn": "replacement/worn", "linked": "linked"}
    assert {name: (record["frames"], record["flow"]) for name, record in found.items()} == {
        name: (count, flows[tmp_path / "flow" / f"{used[name]}_000000_000001.mp4"])
        for name, count in (("good", 3), ("worn", 5), ("linked", 6))
    }


def test_a_split_of_links_that_lead_nowhere_says_so(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a_000000_000001.mp4").symlink_to("/unmounted/a.mp4")
    lists = real_files.write_list(tmp_path, "yoga,a,0,1,train")
    assert prepare((tmp_path / "videos", lists), tmp_path / "out") == 2
    place = tmp_path / "videos" / "a_000000_000001.mp4"
    line = (
        f"has a file among the videos: leave train's list out; {place}: "
        "is missing: a dangling link to /unmounted/a.mp4"
    )
    assert line in capsys.readouterr().err


def test_own_videos_that_are_no_files_are_listed(tmp_path, capsys):
    folder = tmp_path / "videos" / "train" / "run"
    write(folder / "a.mp4", 3)
    (folder / "b.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "c.mp4")
    out = tmp_path / "out"
    assert (
        main(
            ["prepare", "own/videos", "--videos", str(tmp_path / "videos"), "--data-dir", str(out)]
        )
        == 0
    )
    with (out / "own" / "videos" / "1.0.0" / "rejected.csv").open(newline="") as file:
        found = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert found == {
        "train/run/b.mp4": "is missing: a dangling link to nowhere.mp4",
        "train/run/c.mp4": "is no file: a FIFO",
    }
