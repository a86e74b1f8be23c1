"""The command `python -m i3d_jax.features`: its files, resuming, and its error messages."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.small_features import one_pass, rgb, save_video, save_weights
from support.videos import clip, encode

from i3d_jax import files, flow
from i3d_jax.features import __main__ as command
from i3d_jax.features.presets import PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of videos, some of them damaged, and weights beside it."""
    folder = tmp_path_factory.mktemp("some") / "videos"
    save_video(folder / "one.mp4", 40)
    save_video(folder / "a b" / "one.mkv", 30, 1)
    (folder / "text.mp4").write_text("hello")
    (folder / "notes.txt").write_text("no video")
    for stream in "rgb", "flow":
        save_weights(folder.parent, stream)
    return folder


@pytest.fixture
def run(folder):
    """Runs the command with the small network; returns its exit status."""

    def run(*arguments, weights=("rgb",)):
        paths = [
            word
            for name in weights
            for word in ("--weights", folder.parent / f"{name}.safetensors")
        ]
        try:
            return command.main([*map(str, [*arguments, *paths])])
        except SystemExit as error:
            return error.code

    return run


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in listed(folder) if name[0] != "."}


def test_a_video_becomes_a_file_that_says_how_it_was_made(folder, tmp_path, run, capsys):
    assert run(folder / "one.mp4", "--out", tmp_path) == 0
    assert listed(tmp_path) == [".lock", "features.json", "one.npz"]
    with np.load(tmp_path / "one.npz") as file:
        wanted = one_pass(f"{folder.parent}/rgb.safetensors", rgb(folder / "one.mp4"))[:, 0, 0]
        np.testing.assert_allclose(file["features"], wanted, rtol=0, atol=2e-6 * wanted.max())
        assert file["centre"].tolist() == [0.32, 0.64, 0.96, 1.28]
        about = json.loads(str(file["about"]))
    settings = json.loads((tmp_path / "features.json").read_text())
    assert about["settings"] == settings
    assert about["video"] == {
        "name": "one.mp4",
        "bytes": (folder / "one.mp4").stat().st_size,
        "frames": 40,
        "fps": 25.0,
    }
    assert settings["grid"] == {"kind": "dense", "step": 8, "size": 16}
    assert settings["crop"] == {"kind": "centre", "size": 32} and settings["flow"] is None
    assert settings["weights"][0]["model"] == "i3d" and len(settings["weights"]) == 1
    assert about["made_by"]["versions"]["i3d_jax"] == "0.1.0"
    said, errors = capsys.readouterr()
    assert said == f"{folder}/one.mp4 -> {tmp_path}/one.npz: 4 rows of 64, 40 frames\n"
    assert errors == ""


def test_folders_keep_their_layout_and_bad_videos_are_listed_at_the_end(
    folder, tmp_path, run, capsys
):
    assert run(folder, "--out", tmp_path / "new" / "out") == 1
    wanted = [".lock", "a b/one.npz", "features.json", "one.npz"]
    assert listed(tmp_path / "new" / "out") == wanted
    said, errors = capsys.readouterr()
    assert said.count(" rows of 64, ") == 2 and "Traceback" not in errors
    *_, heading, last = errors.splitlines()
    assert heading == "1 of 3 videos failed:"
    assert last.startswith(f"  {folder}/text.mp4: cannot be decoded: ")


def test_what_is_done_is_skipped_and_what_is_damaged_is_made_again(folder, tmp_path, run, capsys):
    names = folder / "one.mp4", folder / "a b" / "one.mkv"
    assert run(*names, "--out", tmp_path) == 0
    before = contents(tmp_path)
    assert set(before) == {"one.npz", "a b/one.npz", "features.json"}
    stamp = (tmp_path / "one.npz").stat().st_mtime_ns
    damaged = bytearray(before["a b/one.npz"])
    damaged[300] ^= 1  # In the values.
    (tmp_path / "a b" / "one.npz").write_bytes(damaged)
    (tmp_path / "a b" / f"{files.TEMPORARY_PREFIX}1").write_bytes(b"half")
    capsys.readouterr()
    assert run(*names, "--out", tmp_path) == 0
    assert contents(tmp_path) == before and (tmp_path / "one.npz").stat().st_mtime_ns == stamp
    said = capsys.readouterr().out
    assert said.startswith("1 of 2 videos: already done\n") and said.count(" -> ") == 1


@pytest.mark.parametrize(
    "change,name",
    [
        (["--window", "16"], "grid"),
        (["--fps", "own"], "fps"),
        (["--crop", "ten"], "crop"),
        (["--layer", "Mixed_5c"], "layer"),
        (["--format", "joint"], "format"),
    ],
)
def test_other_settings_in_one_folder_are_refused(change, name, folder, tmp_path, run, capsys):
    shutil.copytree(_done(folder, run), tmp_path, dirs_exist_ok=True)
    assert run(folder / "one.mp4", "--out", tmp_path, *change) == 2
    assert f"{tmp_path} has results of other settings: {name} is " in capsys.readouterr().err


def _done(folder, run):
    """A folder with the features of one.mp4."""
    out = folder.parent / "done"
    if not out.exists():
        assert run(folder / "one.mp4", "--out", out) == 0
    return out


def test_features_of_another_video_of_the_same_name_are_no_result(folder, tmp_path, run, capsys):
    shutil.copytree(_done(folder, run), tmp_path / "out")
    save_video(tmp_path / "one.mp4", 20, 5)
    assert run(tmp_path / "one.mp4", "--out", tmp_path / "out") == 2
    assert "has the features of another one.mp4, of " in capsys.readouterr().err


def test_files_that_are_not_from_this_command_are_left_alone(folder, tmp_path, run, capsys):
    (tmp_path / "one.npz").write_bytes(b"mine")
    assert run(folder / "one.mp4", "--out", tmp_path) == 2
    assert "one.npz: is there already, and not from this command" in capsys.readouterr().err
    assert (tmp_path / "one.npz").read_bytes() == b"mine"


def test_bytes_depend_neither_on_the_order_nor_on_shards_nor_on_the_batch_size(
    folder, tmp_path, run
):
    names = [folder / "one.mp4", folder / "a b" / "one.mkv"]
    for number in range(3):
        save_video(tmp_path / f"{number}.mp4", 20 + number, number)
        names.append(tmp_path / f"{number}.mp4")
    for grid in [], ["--window", 16, "--stride", 5]:
        outs = [tmp_path / f"{len(grid)} {number}" for number in range(3)]
        assert run(*names, *grid, "--out", outs[0]) == 0
        assert run(*names[::-1], *grid, "--out", outs[1], "--batch-size", 7) == 0
        for part in "2/3", "3/3", "1/3":
            assert run(*names, *grid, "--out", outs[2], "--shard", part) == 0
        assert contents(outs[0]) == contents(outs[1]) == contents(outs[2])
        assert len(contents(outs[0])) == 6


def test_several_processes_may_write_to_a_folder(folder, tmp_path, run):
    half = tmp_path / f"{files.TEMPORARY_PREFIX}of the other process"
    with files.shared_folder(tmp_path):
        half.write_bytes(b"half")
        assert run(folder / "one.mp4", "--out", tmp_path) == 0
        assert half.exists()
    assert run(folder / "one.mp4", "--out", tmp_path) == 0 and not half.exists()


def test_a_preset_sets_grid_names_and_shapes_and_flags_go_before_it(folder, tmp_path, run):
    name = folder / "one.mp4"
    assert run(name, "--out", tmp_path / "1", "--preset", "actionformer_anet") == 0
    assert listed(tmp_path / "1") == [".lock", "features.json", "v_one.npy", "v_one_about.json"]
    assert np.load(tmp_path / "1" / "v_one.npy").shape == (2, 64)
    more = ["--stride", 4, "--partial", "pad", "--format", "npz"]
    assert run(name, "--out", tmp_path / "2", "--preset", "actionformer_anet", *more) == 0
    settings = json.loads((tmp_path / "2" / "features.json").read_text())
    assert settings["grid"] == {
        "kind": "windows",
        "size": 16,
        "stride": 4,
        "partial": "pad",
        "following": 0,
    }
    assert np.load(tmp_path / "2" / "v_one.npz")["features"].shape == (7, 64)
    assert run(name, "--out", tmp_path / "3", "--preset", "ms_tcn") == 0
    assert np.load(tmp_path / "3" / "one.npy").shape == (64, 40)
    assert run(name, "--out", tmp_path / "4", "--preset", "pytorch_i3d") == 0
    assert np.load(tmp_path / "4" / "one.npy").shape == (4, 1, 1, 64)


@pytest.mark.slow  # Compiles a large batch.
def test_rtfm_has_ten_crops_and_a_row_for_the_rest(folder, tmp_path, run):
    assert run(folder / "one.mp4", "--out", tmp_path, "--preset", "rtfm") == 0
    assert np.load(tmp_path / "one.npy").shape == (3, 10, 64)


def test_every_preset_is_understood():
    for name, preset in PRESETS.items():
        flags = command.make_parser().parse_args(["x", "--out", "o", "--preset", name])
        command.resolve(flags)
        assert flags.windows == preset.windows and flags.crop == preset.crop
        assert (flags.weights == ["rgb_imagenet", "flow_imagenet"]) == (preset.stream == "both")


@pytest.mark.slow  # Compiles TV-L1.
def test_video_features_has_a_file_per_stream(folder, tmp_path, run):
    save_video(tmp_path / "a.mp4", 66)
    arguments = ["--preset", "video_features", "--flow-preset", "fast", "--stream", "both"]
    out = tmp_path / "out"
    assert run(tmp_path / "a.mp4", "--out", out, *arguments, weights=("flow", "rgb")) == 0
    names = ["about.json", "flow.npy", "fps.npy", "rgb.npy", "timestamps_ms.npy"]
    assert listed(out) == [".lock", *(f"a_{name}" for name in names), "features.json"]
    assert np.load(out / "a_rgb.npy").shape == np.load(out / "a_flow.npy").shape == (1, 64)
    assert np.load(out / "a_timestamps_ms.npy").tolist() == [2560]
    settings = json.loads((out / "features.json").read_text())
    assert settings["flow"] == flow.recipe("fast")


@pytest.mark.parametrize(
    "arguments,message",
    [
        ("{0}/one.mp4", "arguments are required: --out"),
        ("--out {1}", "arguments are required: VIDEO"),
        ("{0}/one.mp4 --out {1} --window 8", "windows of 8 frames, wanted 9 at least"),
        ("{0}/one.mp4 --out {1} --window 16 --dense", "not allowed with argument"),
        ("{0}/one.mp4 --out {1} --stride 4", "--stride is for windows: give --window, too"),
        ("{0}/one.mp4 --out {1} --partial pad", "--partial is for windows"),
        ("{0}/one.mp4 --out {1} --window 16 --per-frame linear", "--per-frame takes the dense"),
        ("{0}/one.mp4 --out {1} --fps 0", "'0' is neither own nor a number from 0.1 to 1000"),
        ("{0}/one.mp4 --out {1} --shard 3/2", "'3/2' is no shard"),
        ("{0}/one.mp4 --out {1} --layer Mixed_6z", "has no layer 'Mixed_6z'"),
        ("{0}/one.mp4 --out {1} --stream flow", "weights for rgb, not for flow"),
        ("{0}/one.mp4 --out {1} --preset mine", "invalid choice: 'mine'"),
        ("@{0}/../empty.txt --out {1}", "empty.txt: is an empty list, wanted a path per line"),
        ("@{0}/none.txt --out {1}", "none.txt: No such file or directory"),
        ("{1} --out {1}/x", "has no videos"),
        ("{0}/one.mp4 --out {0}/notes.txt", "notes.txt: File exists"),
        ("{0}/one.mp4 {0}/../twin/one.avi {0}/one.avi --out {1}", "would go there"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(
    arguments, message, folder, tmp_path, run, capsys
):
    (folder.parent / "empty.txt").write_text("\n")
    assert run(*(each.format(folder, tmp_path) for each in arguments.split())) == 2
    said, errors = capsys.readouterr()
    assert message in errors and errors.count("\n") == 1 and not said
    assert listed(tmp_path) == []


def test_a_video_that_is_missing_is_named(folder, tmp_path, run, capsys):
    assert run(folder / "none.mp4", folder / "one.mp4", "--out", tmp_path) == 1
    assert "none.mp4: cannot be decoded: No such file or directory" in capsys.readouterr().err
    assert "one.npz" in listed(tmp_path)


def test_without_space_one_line_names_the_file(folder, tmp_path, run, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        assert run(folder / "one.mp4", "--out", tmp_path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = capsys.readouterr().err
    assert f"{tmp_path}/one.npz: " in errors and errors.count("\n") == 1
    assert listed(tmp_path) == [".lock", "features.json"]


def test_ctrl_c_ends_in_mid_video(folder, tmp_path, run, capsys, monkeypatch):
    """A signal comes after the first batch."""
    whole = command.extract

    def interrupted(paths, what, advance):
        def advance_and_stop(frames):
            os.kill(os.getpid(), signal.SIGINT)
            advance(frames)

        return whole(paths, what, advance_and_stop)

    monkeypatch.setattr(command, "extract", interrupted)
    assert run(folder / "one.mp4", "--out", tmp_path) == 130
    assert "stopped; finished videos are kept" in capsys.readouterr().err
    assert listed(tmp_path) == [".lock", "features.json"]


MEASURED = """
import resource, sys
from i3d_jax.features import __main__ as command

status = command.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow  # Reads ten minutes of video.
def test_ten_minutes_take_no_more_memory_than_one(folder, tmp_path):
    minute = encode(clip(1500, 0, 48, 64), [*range(0, 60_000, 40)], "mpegts", preset="ultrafast")
    used = []
    for minutes in 1, 10:
        path = tmp_path / f"{minutes}.ts"
        path.write_bytes(minute * minutes)
        line = [sys.executable, "-c", MEASURED, path, "--out", tmp_path / "out", "--weights"]
        line += [folder.parent / "rgb.safetensors"]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        used.append(int(done.stderr.splitlines()[-1]))
        with np.load(tmp_path / "out" / f"{minutes}.npz") as file:
            # 1,500 frames a minute.
            assert len(file["features"]) == -(-1500 * minutes // 8) - 1
            assert abs(file["end"][-1] - 60 * minutes) < 1e-9
    # The rows of ten minutes are 0.5 MB; the times of their packets are 3 MB.
    assert used[1] < used[0] + 30


@pytest.mark.slow  # Computes 300 videos twice, in seven processes.
def test_300_videos_with_bad_ones_and_kills_are_the_same_bytes(folder, tmp_path):
    videos = tmp_path / "videos"
    for number in range(16):
        save_video(tmp_path / f"{number}.mp4", 9 + number, number)
    for number in range(300):
        path = videos / f"{number % 10}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 20 == 7:
            path.write_bytes(b"no video" * number)
        else:
            os.link(tmp_path / f"{number % 16}.mp4", path)
    line = [sys.executable, "-m", "i3d_jax.features", videos, "--weights"]
    line += [folder.parent / "rgb.safetensors", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run([*line, whole], check=False, **options)
    assert done.returncode == 1 and "\n15 of 300 videos failed:\n" in done.stderr
    for kill in range(5):
        process = subprocess.Popen([*line, killed], **options)
        wanted, deadline = 45 * (kill + 1), time.monotonic() + 300
        while _count(killed) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        assert wanted <= _count(killed) < 285
    # Also half a file, as of a machine that lost its power.
    first = killed / "0" / "0.npz"
    first.write_bytes(first.read_bytes()[:500])
    assert subprocess.run([*line, killed], check=False, **options).returncode == 1
    assert _count(killed) == 285 and contents(killed) == contents(whole)
    assert not [path for path in killed.rglob(f"{files.TEMPORARY_PREFIX}*")]


def _count(folder: pathlib.Path) -> int:
    return sum(1 for _ in folder.glob("*/*.npz"))
