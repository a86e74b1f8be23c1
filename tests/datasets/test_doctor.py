"""What `python -m i3d_jax.datasets doctor` finds in folders with problems, and in a good one."""

import csv
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import real_files
from support.processes import gone, wait_until
from support.real_files import some_videos, steady, write_list

from i3d_jax import labels
from i3d_jax.datasets import doctor
from i3d_jax.datasets.__main__ import main


def write(folder, place, sort=None, seed=0):
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    (sort or steady(25, 25, 36, 48)).write(path, np.random.default_rng(seed))
    return path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder with a finding of every kind, and its list of clips."""
    folder = tmp_path_factory.mktemp("faulty")
    videos = folder / "videos"
    write(videos, "train/yoga/good_000000_000001.mp4", seed=1)
    write(
        videos,
        "abseiling/cut_000000_000010.mkv",
        steady(40, 25, 48, 64, container="matroska"),
        seed=2,
    )
    real_files.cut(videos / "abseiling/cut_000000_000010.mkv")
    (videos / "text_000000_000010.mp4").write_text("not available\n" * 50)
    (videos / "empty_000000_000010.mp4").touch()
    write(videos, "short_000000_000003.mp4", steady(60, 25, 24, 32), seed=3)
    write(videos, "nearly_000000_000003.mp4", steady(64, 25, 24, 32), seed=4)
    write(videos, "train/yoga/two_000000_000001.mp4", seed=5)
    write(videos, "again/two_000000_000001.webm", steady(25, 25, 36, 48, **real_files.WEBM), seed=6)
    write(videos, "twice_000000_000001.mp4", seed=7)
    write(videos, "same_000000_000001.mp4", seed=8)
    shutil.copy(videos / "same_000000_000001.mp4", videos / "as this_000000_000001.mkv")
    write(videos, "playing_cricket/wrong_000000_000001.mp4", seed=9)
    write(videos, "yoga/extra_000000_000001.mp4", seed=10)
    (write(videos, "train/yoga/worn_000000_000001.mp4", seed=11)).write_bytes(b"worn")
    write(videos, "replacement/worn_000000_000001.mp4", seed=12)
    write(videos, "replacement/linked_000000_000001.mp4", seed=13)
    for name in "linked", "hollow":
        (videos / f"train/yoga/{name}_000000_000001.mp4").symlink_to("/nowhere/x.mp4")
    os.mkfifo(videos / "pipe_000000_000001.mp4")
    (videos / "stray_000000_000001.mp4").symlink_to("/nowhere/x.mp4")
    (videos / "good_000000_000001.info.json").write_text("{}")
    (videos / "good_000000_000001.jpg").touch()
    (videos / ".hidden.mp4").touch()
    lists = write_list(
        folder,
        "yoga,good,0,1,train",
        "abseiling,cut,0,10,train",
        "abseiling,text,0,10,train",
        "abseiling,empty,0,10,val",
        "yoga,gone,0,1,val",
        "yoga,short,0,3,train",
        "yoga,nearly,0,3,train",
        "yoga,two,0,1,train",
        "yoga,twice,0,1,train",
        "abseiling,twice,0,1,val",
        "yoga,same,0,1,train",
        "abseiling,as this,0,1,val",
        "yoga,wrong,0,1,train",
        "yoga,worn,0,1,train",
        "yoga,linked,0,1,train",
        "yoga,hollow,0,1,train",
        "abseiling,pipe,0,1,train",
    )
    return videos, lists


BY_NAME = [
    ("missing", "validation", "yoga", "gone_000000_000001", "", "no file"),
    (
        "missing",
        "train",
        "yoga",
        "hollow_000000_000001",
        "train/yoga/hollow_000000_000001.mp4",
        "is missing: a dangling link to /nowhere/x.mp4",
    ),
    (
        "unreadable",
        "train",
        "abseiling",
        "pipe_000000_000001",
        "pipe_000000_000001.mp4",
        "is no file: a FIFO",
    ),
    (
        "replaced",
        "train",
        "yoga",
        "linked_000000_000001",
        "train/yoga/linked_000000_000001.mp4",
        (
            "is missing: a dangling link to /nowhere/x.mp4; "
            "replacement/linked_000000_000001.mp4 is used"
        ),
    ),
    (
        "duplicated",
        "train",
        "yoga",
        "linked_000000_000001",
        "train/yoga/linked_000000_000001.mp4",
        "also replacement/linked_000000_000001.mp4",
    ),
    (
        "duplicated",
        "train",
        "yoga",
        "worn_000000_000001",
        "train/yoga/worn_000000_000001.mp4",
        "also replacement/worn_000000_000001.mp4",
    ),
    (
        "duplicated",
        "validation",
        "abseiling",
        "twice_000000_000001",
        "",
        "annotated twice: as yoga, train at list.csv:10, and at list.csv:11",
    ),
    (
        "duplicated",
        "train",
        "yoga",
        "two_000000_000001",
        "train/yoga/two_000000_000001.mp4",
        "also again/two_000000_000001.webm",
    ),
    (
        "wrong label",
        "train",
        "yoga",
        "wrong_000000_000001",
        "playing_cricket/wrong_000000_000001.mp4",
        "annotated as yoga, in the folder of playing cricket",
    ),
    ("extra", "", "yoga", "", "yoga/extra_000000_000001.mp4", "not annotated"),
    (
        "extra",
        "",
        "",
        "",
        "stray_000000_000001.mp4",
        "not annotated; is missing: a dangling link to /nowhere/x.mp4",
    ),
]
BY_CONTENT = [
    (
        "unreadable",
        "train",
        "abseiling",
        "cut_000000_000010",
        "abseiling/cut_000000_000010.mkv",
        "is truncated: ends",
    ),
    (
        "unreadable",
        "train",
        "abseiling",
        "text_000000_000010",
        "text_000000_000010.mp4",
        "cannot be decoded: Invalid",
    ),
    (
        "unreadable",
        "validation",
        "abseiling",
        "empty_000000_000010",
        "empty_000000_000010.mp4",
        "is empty",
    ),
    (
        "replaced",
        "train",
        "yoga",
        "worn_000000_000001",
        "train/yoga/worn_000000_000001.mp4",
        (
            "cannot be decoded: Invalid data found when processing input; "
            "replacement/worn_000000_000001.mp4 is used"
        ),
    ),
    (
        "too short",
        "train",
        "yoga",
        "short_000000_000003",
        "short_000000_000003.mp4",
        "2.40 s of 3 s",
    ),
    (
        "duplicated",
        "validation",
        "abseiling",
        "as this_000000_000001",
        "as this_000000_000001.mkv",
        "the same bytes as same_000000_000001.mp4 (yoga, train)",
    ),
]


def check(videos, lists, *more, name="kinetics/400"):
    arguments = ["doctor", name, "--videos", videos, "--annotations", lists, *more]
    return main([str(each) for each in arguments])


def listed(path):
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["kind", "split", "label", "id", "file", "detail"]
    return [tuple(row) for row in rows]


def assert_found(rows, wanted):
    assert [row[:5] for row in sorted(rows)] == [row[:5] for row in sorted(wanted)]
    assert [
        row
        for row, (*_, detail) in zip(sorted(rows), sorted(wanted))
        if not row[5].startswith(detail)
    ] == []


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_is_found_with_its_file_and_detail(workers, faulty, tmp_path, capsys):
    assert check(*faulty, "--out", tmp_path / "found.csv", "--workers", workers) == 1
    rows = listed(tmp_path / "found.csv")
    assert_found(rows, BY_NAME + BY_CONTENT)
    assert [kind for kind in doctor.KINDS for row in rows if row[0] == kind] == [
        row[0] for row in rows
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "train: 9 of 13 clips can be used, 30.8% cannot",
        "validation: 1 of 3 clips can be used, 66.7% cannot",
        "classes that lack most: abseiling 80%, yoga 18%",
    ]
    for kind in doctor.KINDS:
        of_kind = [row for row in rows if row[0] == kind]
        example = (
            f"{kind}: {len(of_kind)}, such as {of_kind[0][4] or of_kind[0][3]} ({of_kind[0][5]})"
        )
        assert example in lines


def test_quick_finds_what_names_tell_and_opens_no_file(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_check_in_pool", None)
    assert check(*faulty, "--out", tmp_path / "found.csv", "--quick") == 1
    assert_found(listed(tmp_path / "found.csv"), BY_NAME)


def test_an_out_on_a_full_disk_is_named(faulty, tmp_path, capsys):
    out = tmp_path / "found.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert check(*faulty, "--quick", "--out", out) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert "File too large" in line and str(out) in line and os.listdir(tmp_path) == []


def test_without_an_out_nothing_is_written(faulty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check(*faulty, "--quick") == 1
    assert os.listdir(tmp_path) == [] and "missing: 2, such as " in capsys.readouterr().out


def test_good_files_of_all_names_and_sorts_give_nothing(tmp_path, capsys):
    sorts = (
        steady(16, 25, 24, 32),
        steady(20, 30, 32, 24, sound=0.7, extension=".mkv", container="matroska"),
        steady(16, 25, 24, 32, **real_files.WEBM),
        steady(8, 10, 25, 33, pix_fmt="yuv444p", extension=".MP4"),
        steady(26, 25, 24, 32, container="avi", extension=".mp4"),
        steady(60, 50, 24, 32, extension=".mov", container="mov"),
    )
    rows = []
    for number, identity in enumerate(real_files.IDS):
        label, sort = real_files.LABELS[number % 6], sorts[number // 4]
        layout = (f"train/{label}/", f"{label.replace(' ', '_')}/", "")[number % 3]
        write(
            tmp_path / "videos", f"{layout}{identity}_000000_000001{sort.extension}", sort, number
        )
        rows.append((label, identity, "0", "1", "train"))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("label", "youtube_id", "time_start", "time_end", "split"), *rows]
        )
    assert check(tmp_path / "videos", tmp_path / "list.csv", "--out", tmp_path / "found.csv") == 0
    assert capsys.readouterr().out == "train: 24 of 24 clips can be used, 0.0% cannot\n"
    assert listed(tmp_path / "found.csv") == []


def test_ucf101_is_checked_with_both_of_its_spellings(tmp_path, capsys):
    lists, videos = tmp_path / "ucfTrainTestlist", tmp_path / "UCF-101"
    lists.mkdir()
    train = ("HandstandPushups/v_HandStandPushups_g08_c01.avi 37", "YoYo/v_YoYo_g08_c01.avi 101")
    (lists / "trainlist01.txt").write_text("\n".join(train))
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    some_videos(
        videos, "HandstandPushups/v_HandstandPushups_g08_c01.avi", "YoYo/v_YoYo_g08_c01.avi"
    )
    some_videos(videos, "YoYo/v_YoYo_g02_c01.avi")
    assert check(videos, lists, "--out", tmp_path / "found.csv", name="ucf101/1") == 1
    assert listed(tmp_path / "found.csv") == [
        ("missing", "test", "YoYo", "YoYo/v_YoYo_g01_c01", "", "no file"),
        ("extra", "", "YoYo", "", "YoYo/v_YoYo_g02_c01.avi", "not annotated"),
    ]
    assert capsys.readouterr().out.startswith(
        "train: 2 of 2 clips can be used, 0.0% cannot\n"
        "test: 0 of 1 clips can be used, 100.0% cannot\n"
    )


def test_one_name_in_two_classes_of_hmdb51_is_no_duplicate(tmp_path):
    for name in labels.names("hmdb51"):
        (tmp_path / f"{name}_test_split1.txt").write_text(f"a_{name}_0.avi 0 \n")
        if name in ("sword", "sword_exercise", "jump"):
            (tmp_path / f"{name}_test_split1.txt").write_text(f"fight_{name[:5]}_0.avi 1 \n")
        else:
            (tmp_path / f"{name}_test_split1.txt").write_text(f"a_{name}_0.avi 2 \n")
    videos = tmp_path / "videos"
    some_videos(
        videos,
        "sword/fight_sword_0.avi",
        "sword_exercise/fight_sword_0.avi",
        "run/fight_jump_0.avi",
    )
    check(videos, tmp_path, "--out", tmp_path / "found.csv", name="hmdb51/1")
    rows = [row for row in listed(tmp_path / "found.csv") if row[0] != "missing"]
    assert rows == [
        (
            "wrong label",
            "train",
            "jump",
            "jump/fight_jump_0",
            "run/fight_jump_0.avi",
            "annotated as jump, in the folder of run",
        )
    ]


@pytest.mark.slow  # Starts processes.
def test_names_that_are_not_utf_8_are_listed_as_they_are(tmp_path):
    videos = tmp_path / "videos"
    write(videos, "a_000000_000001.mp4")
    (videos / os.fsdecode(b"\xe9t\xe9.mp4")).touch()
    rows = write_list(tmp_path, "yoga,a,0,1,train")
    command = [
        sys.executable,
        "-m",
        "i3d_jax.datasets",
        "doctor",
        "kinetics/400",
        "--videos",
        str(videos),
    ]
    command += ["--annotations", str(rows), "--out", str(tmp_path / "found.csv")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert b"extra,,,,\xe9t\xe9.mp4,not annotated" in (tmp_path / "found.csv").read_bytes()
    assert "extra: 1, such as " in done.stdout


# Workers run the lines before the last two as well.
CHECKS = """
import os, pathlib, signal, sys, time
from i3d_jax.datasets import doctor
from i3d_jax.datasets.__main__ import main

def check(job):
    pathlib.Path(sys.argv[0] + ".started").touch()
    {}

doctor.check = check
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def command(tmp_path, body):
    script = tmp_path / "checks.py"
    script.write_text(CHECKS.format(body))
    write(tmp_path / "videos", "a_000000_000001.mp4")
    lists = write_list(tmp_path, "yoga,a,0,1,train")
    more = ["--videos", tmp_path / "videos", "--annotations", lists, "--workers", "2"]
    return [str(each) for each in (sys.executable, script, "doctor", "kinetics/400", *more)]


def test_a_worker_that_dies_is_one_line_that_names_the_video(tmp_path):
    done = subprocess.run(
        command(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("python -m i3d_jax.datasets: a worker died: ")
    assert last.endswith(str(tmp_path / "videos" / "a_000000_000001.mp4"))


def test_workers_of_a_doctor_that_was_killed_end_by_themselves(tmp_path):
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command(tmp_path, "time.sleep(600)"), start_new_session=True, stdout=quiet, stderr=quiet
    )
    wait_until(pathlib.Path(tmp_path / "checks.py.started").exists)
    process.kill()
    process.wait()
    wait_until(lambda: gone(process.pid), 10)
