"""The command `python -m i3d_jax.flow`: its files, resuming, and its error messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from support.videos import clip

from i3d_jax import files, flow, pixels, video
from i3d_jax.flow import __main__ as command
from i3d_jax.flow import formats, videos
from i3d_jax.flow.colours import flow_to_rgb
from i3d_jax.video import h264


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of videos, some of them damaged."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "a b").mkdir()
    (folder / "one.mp4").write_bytes(h264.encode(clip(6)))
    (folder / "a b" / "two.mkv").write_bytes(h264.encode(clip(4, 1)))
    (folder / "text.mp4").write_text("hello")
    (folder / "notes.txt").write_text("no video")
    whole = h264.encode(clip(60, 2))
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def run(*arguments):
    try:
        return command.main(["--short-side", "32", "--flow-preset", "fast", *map(str, arguments)])
    except SystemExit as error:
        return error.code


@pytest.fixture(scope="module")
def wanted(folder):
    """The flow of one.mp4, in pixels."""
    return np.stack(
        list(videos.flow_of_frames(video.grey(folder / "one.mp4", short_side=32), flow.FAST))
    )


def test_h264_is_as_records_hold_flow(folder, wanted, tmp_path, capsys):
    assert run(folder / "one.mp4", "--out", tmp_path) == 0
    h264.check_flow(tmp_path / "one.mp4")
    found = pixels.to_unit(video.decode(tmp_path / "one.mp4", stream="flow"))
    assert found.shape == (6, 32, 40, 2)
    assert abs(20 * found - wanted).mean() < 0.1 and abs(wanted[..., 0] - 1.5).mean() < 0.5
    said = capsys.readouterr().out
    assert "one.mp4: 6 frames of 32x40, mean motion 1." in said and said.count("\n") == 1


def test_npz_is_exact_and_in_units_of_20_pixels(folder, wanted, tmp_path):
    assert run(folder / "one.mp4", "--out", tmp_path, "--format", "npz") == 0
    found = np.load(tmp_path / "one.npz")
    assert found.files == ["flow"] and found["flow"].dtype == np.float32
    np.testing.assert_array_equal(found["flow"], pixels.flow_unit(wanted))
    assert sorted(os.listdir(tmp_path)) == [".lock", "done.jsonl", "flow.json", "one.npz"]


def test_motion_of_more_than_20_pixels_is_truncated(tmp_path):
    formats.write_npz(tmp_path / "x.npz", [np.array([[[30.0, -40.0], [10.0, 0.0]]])], 1.0)
    assert np.load(tmp_path / "x.npz")["flow"].tolist() == [[[[1, -1], [0.5, 0]]]]


@pytest.mark.parametrize("form,full", [("colours", 2.0), ("png", 5.0)])
def test_pictures_are_the_colours_of_flow(form, full, folder, wanted, tmp_path):
    assert run(folder / "one.mp4", "--out", tmp_path, "--format", form, "--full-colour", full) == 0
    pictures = [flow_to_rgb(frame, full).astype(int) for frame in wanted]
    if form == "colours":
        found = video.decode(tmp_path / "one.colours.mp4")
        assert (
            abs(found - np.stack(pictures)).mean() < 12
        )  # H.264 halves the resolution of colours, and is lossy.
    else:
        names = sorted(os.listdir(tmp_path / "one.frames"))
        assert names == [f"{index:05d}.png" for index in range(6)]
        for name, picture in zip(names, pictures, strict=True):
            np.testing.assert_array_equal(video.decode(tmp_path / "one.frames" / name)[0], picture)


def test_folders_keep_their_layout_bad_videos_are_named_and_the_others_go_on(
    folder, tmp_path, capsys
):
    out = tmp_path / "new" / "flow"
    assert run(folder, "--out", out, "--parallel", 2) == 1
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [".lock", "a b/two.mp4", "done.jsonl", "flow.json", "one.mp4"]
    said, errors = capsys.readouterr()
    assert [line.split(" -> ")[0] for line in said.splitlines()] == [
        str(folder / "a b" / "two.mkv"),
        str(folder / "one.mp4"),
    ]
    assert f"{folder / 'text.mp4'}: cannot be decoded" in errors and "Traceback" not in errors
    assert f"{folder / 'broken.mp4'}: " in errors


def test_the_same_command_goes_on_and_other_settings_are_refused(folder, tmp_path, capsys):
    assert run(folder / "one.mp4", "--out", tmp_path) == 0
    for name in f"{files.TEMPORARY_PREFIX}abc.raw", f"{files.TEMPORARY_PREFIX}abc":
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "two.mp4").write_bytes(b"whole, but not noted: killed in between")
    before = (tmp_path / "one.mp4").stat()
    assert run(folder / "one.mp4", folder / "a b" / "two.mkv", "--out", tmp_path) == 0
    assert (tmp_path / "one.mp4").stat().st_mtime_ns == before.st_mtime_ns
    said = capsys.readouterr().out
    assert "one.mp4: already done\n" in said and "two.mp4: 4 frames of 32x40" in said
    assert sorted(os.listdir(tmp_path)) == [
        ".lock",
        "done.jsonl",
        "flow.json",
        "one.mp4",
        "two.mp4",
    ]
    for change in (
        ("--format", "npz"),
        ("--flow-preset", "opencv"),
        ("--frames", 3),
        ("--short-side", 34),
    ):
        assert run(folder / "one.mp4", "--out", tmp_path, *change) == 2
        assert f"{tmp_path} has results of other settings: " in capsys.readouterr().err
    (tmp_path / "flow.json").write_text("{")
    assert run(folder / "one.mp4", "--out", tmp_path) == 2
    assert "flow.json: damaged" in capsys.readouterr().err


def test_nothing_is_left_of_a_video_that_fails_half_way(folder, tmp_path, monkeypatch):
    def failing(path, **_):
        yield from clip(20)[..., 0]
        raise video.VideoError(str(path), "is damaged")

    monkeypatch.setattr(video, "grey", failing)
    for form in formats.FORMATS:
        assert run(folder / "one.mp4", "--out", tmp_path / form, "--format", form) == 1
        assert sorted(os.listdir(tmp_path / form)) == [".lock", "flow.json"]


def several(folder, count, frames):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.mp4").write_bytes(h264.encode(clip(frames, number)))
    return [
        sys.executable,
        "-m",
        "i3d_jax.flow",
        folder,
        "--short-side",
        "32",
        "--flow-preset",
        "fast",
        "--out",
    ]


def started(command, first):
    """Starts a command, waits until it has written a file, and returns its process."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.slow  # Starts processes.
def test_a_run_that_is_killed_goes_on_with_the_same_bytes(tmp_path):
    command = several(tmp_path / "videos", 20, 30)
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    process = started([*command, tmp_path / "killed"], tmp_path / "killed" / "0.mp4")
    process.kill()
    process.communicate()
    assert len(list((tmp_path / "killed").glob("[0-9]*.mp4"))) < 20
    subprocess.run([*command, tmp_path / "killed"], check=True, capture_output=True)
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))
    for name in (*(f"{number}.mp4" for number in range(20)), "flow.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("form", ["png", "npz"])
def test_a_run_that_was_killed_before_it_noted_what_it_had_done_goes_on(form, folder, tmp_path):
    def contents():
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    command = (folder / "one.mp4", "--out", tmp_path, "--format", form)
    assert run(*command) == 0
    before, done = contents(), tmp_path / "done.jsonl"
    done.write_bytes(done.read_bytes()[:-9])  # Cut in the middle of a line.
    assert run(*command) == 0 and contents() == before
    assert run(*command) == 0 and contents() == before


def test_flow_is_replaced_by_other_flow_and_by_nothing_else(folder, tmp_path):
    video = tmp_path / "one.mp4"
    shutil.copy(folder / "one.mp4", video)
    command = (video, "--out", tmp_path / "out", "--format", "png")
    assert run(*command) == 0
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    video.unlink()
    assert run(*command) == 1
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_in_mid_video_and_nothing_half_written(number, tmp_path):
    command = several(tmp_path / "videos", 8, 300)
    process = started(
        [*command, tmp_path / "out", "--format", "npz"], tmp_path / "out" / "done.jsonl"
    )
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert (
        errors.splitlines()[-1] == "stopped; finished videos are kept, and the same command resumes"
    )
    done = len((tmp_path / "out" / "done.jsonl").read_text().splitlines())
    whole = [f"{number}.npz" for number in range(done)]
    assert 1 <= done < 8
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", *whole, "done.jsonl", "flow.json"]


def test_flow_of_another_video_of_the_same_name_is_no_result(folder, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "one.mp4").write_bytes(h264.encode(clip(9, 9)))
    assert run(folder / "one.mp4", "--out", tmp_path / "out") == 0
    assert run(tmp_path / "other" / "one.mp4", "--out", tmp_path / "out") == 2
    assert "is the flow of another one.mp4, of " in capsys.readouterr().err


def test_files_that_are_not_from_this_command_are_left_alone(folder, tmp_path, capsys):
    (tmp_path / "one.mp4").write_bytes(b"mine")
    assert run(folder / "one.mp4", "--out", tmp_path) == 2
    assert (
        "one.mp4: is there already, and not from this command; use another --out"
        in capsys.readouterr().err
    )
    assert (tmp_path / "one.mp4").read_bytes() == b"mine"


def test_out_may_be_inside_the_folder_of_videos(tmp_path, capsys):
    (tmp_path / "one.mp4").write_bytes(h264.encode(clip(3)))
    for _ in range(2):
        assert run(tmp_path, "--out", tmp_path / "flow") == 0
    assert "one.mp4: already done" in capsys.readouterr().out


def test_a_folder_gets_the_flow_of_one_process_at_a_time(folder, tmp_path, capsys):
    half = tmp_path / f"{files.TEMPORARY_PREFIX}of the other process"
    with files.locked(tmp_path / ".lock", ValueError()):
        half.write_bytes(b"half")
        assert run(folder / "one.mp4", "--out", tmp_path) == 2
    said, errors = capsys.readouterr()
    assert not said and errors.count("\n") == 1
    assert f"{tmp_path}: another process writes flow to it; use another --out" in errors
    assert sorted(os.listdir(tmp_path)) == [half.name, ".lock"]  # The other process's file stays.
    assert run(folder / "one.mp4", "--out", tmp_path) == 0 and not half.exists()


@pytest.mark.parametrize(
    "where,error",
    [
        ("reading", MemoryError()),
        ("computing", MemoryError()),
        (
            "computing",
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        ),
        ("encoding", MemoryError()),
    ],
)
def test_whatever_goes_wrong_with_a_video_is_its_own(
    where, error, folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(
        folder, tmp_path / "videos", ignore=shutil.ignore_patterns("text.mp4", "broken.mp4")
    )
    failed = []

    def fail_first(place, function):
        def failing(*arguments, **options):
            if where == place and not failed:
                failed.append(place)
                raise error
            return function(*arguments, **options)

        return failing

    monkeypatch.setattr(video, "grey", fail_first("reading", video.grey))
    monkeypatch.setattr(command, "flow_of_frames", fail_first("computing", command.flow_of_frames))
    monkeypatch.setattr(h264, "encode", fail_first("encoding", h264.encode))
    assert run(tmp_path / "videos", "--out", tmp_path / "out") == 1
    said, errors = capsys.readouterr()
    assert (
        errors.startswith(f"{tmp_path / 'videos' / 'a b' / 'two.mkv'}: ")
        and errors.count("\n") == 1
    )
    assert "not enough memory" in errors
    assert "one.mp4: 6 frames" in said and said.count("\n") == 1


def test_one_failure_stops_the_others_at_work(tmp_path, monkeypatch, capsys):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(h264.encode(clip(3)))
    given = iter(range(10**6))

    def endless(path, **_):
        while next(given) < 10**5:
            yield clip(1)[0, ..., 0]

    def failing(path, flow, _):
        next(iter(flow))
        if "b.mp4" in str(wanted[threading.get_ident()]):
            raise OSError(28, "No space left on device", "b.mp4")
        for _ in flow:
            pass

    wanted = {}
    whole = command.write_flow
    monkeypatch.setattr(
        command,
        "write_flow",
        lambda job, *rest: (wanted.update({threading.get_ident(): job}), whole(job, *rest))[1],
    )
    monkeypatch.setattr(video, "grey", endless)
    monkeypatch.setitem(formats.FORMATS, "h264", formats.Format(".mp4", failing))
    assert (
        run(tmp_path / "a.mp4", tmp_path / "b.mp4", "--out", tmp_path / "out", "--parallel", 2) == 2
    )
    assert "No space left on device" in capsys.readouterr().err
    assert next(given) < 10**5 and sorted(os.listdir(tmp_path / "out")) == [".lock", "flow.json"]


def test_flow_json_says_how_the_flow_was_made(folder, tmp_path):
    assert run(folder / "one.mp4", "--out", tmp_path, "--frames", 3) == 0
    noted = json.loads((tmp_path / "flow.json").read_text())
    assert noted == flow.recipe("fast") | {"format": "h264", "short_side": 32, "frames": 3}
    assert len(video.decode(tmp_path / "one.mp4", stream="flow")) == 3


@pytest.mark.parametrize(
    "arguments,message",
    [
        ("{0}/one.mp4", "arguments are required: --out"),
        ("--out {1}", "arguments are required: VIDEO"),
        ("{0}/one.mp4 --out {1} --format avi", "invalid choice: 'avi'"),
        ("{0}/one.mp4 --out {1} --flow-preset slow", "invalid choice: 'slow'"),
        ("{0}/one.mp4 --out {1} --short-side 1", "--short-side: 1 is too small"),
        (
            "{0}/one.mp4 --out {1} --frames 0",
            "argument --frames: '0' is not a positive whole number",
        ),
        ("{0}/one.mp4 --out {1} --full-colour nan", "--full-colour: nan is not a positive number"),
        (
            "{0}/one.mp4 --out {1} --batch-size -1",
            "argument --batch-size: '-1' is not a positive whole number",
        ),
        ("{0}/one.mp4 --out {1} --batch-size 100000", "--batch-size: 100000 is too large"),
        ("{0}/one.mp4 --out {0}", "one.mp4: is a video itself; use another --out"),
        ("{0}/one.mp4 {1}/../other/one.avi --out {1}", "one.avi would go there"),
        ("{1} --out {1}/x", "has no videos"),
        ("{0}/one.mp4 --out {0}/notes.txt", "notes.txt"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(
    arguments, message, folder, tmp_path, capsys
):
    assert run(*(each.format(folder, tmp_path) for each in arguments.split())) == 2
    said, errors = capsys.readouterr()
    assert message in errors and "Traceback" not in errors and not said
    assert sorted(os.listdir(tmp_path)) == []


def test_a_video_that_is_named_twice_is_computed_once(folder, tmp_path, capsys):
    assert run(folder / "one.mp4", folder / "." / "one.mp4", "--out", tmp_path, "--frames", 2) == 0
    assert capsys.readouterr().out.count("one.mp4 -> ") == 1 and (tmp_path / "one.mp4").exists()


def test_a_video_that_is_missing_is_named(tmp_path, capsys):
    assert run(tmp_path / "none.mp4", "--out", tmp_path / "out") == 1
    assert "none.mp4: cannot be decoded: No such file or directory" in capsys.readouterr().err
