"""The command `prepare` on real files as users have them, and its interruptions."""

import csv
import errno
import importlib.util
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
import tensorflow_datasets as tfds
from support import real_files
from support.processes import gone, wait_until

from i3d_jax import datasets, evaluate, labels, pixels, video
from i3d_jax.datasets import description, shards
from i3d_jax.datasets.__main__ import main
from i3d_jax.prefetch import prefetch
from i3d_jax.video import h264

FINAL = pathlib.Path("kinetics", "400", "1.0.0")
PARTS = FINAL.with_name("1.0.0.parts")
# The command with small shards. It is run with -c, so that workers do not run it again.
DRIVER = """
import os, sys
os.cpu_count = lambda: 2
from i3d_jax.datasets import shards
from i3d_jax.datasets.__main__ import main
shards.CLIPS_PER_SHARD = 8
{}
sys.exit(main(sys.argv[1:]))
"""


def arguments(made, out, *more):
    found = [
        "prepare",
        "kinetics/400",
        "--videos",
        made.videos,
        "--annotations",
        *made.annotations,
        "--data-dir",
        out,
        *more,
    ]
    return [str(each) for each in found]


def run(*command, code=0):
    """Runs Python to its end, and returns the finished process with its output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], check=False, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done


def contents(out):
    """Everything below a folder: the bytes of files, None for folders."""
    return {
        str(p.relative_to(out)): None if p.is_dir() else p.read_bytes()
        for p in sorted(out.rglob("*"))
    }


def assert_same(out, wanted):
    found, wanted = contents(out), contents(wanted)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def rejections(out, final=FINAL):
    with (out / final / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file, strict=True)}


def records(out, name="kinetics/400"):
    builder = datasets.available(name, str(out))
    found = [record for split in builder.info.splits for record in builder.records(split)]
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def last_line(captured):
    return captured.err.rstrip("\n").rpartition("\n")[2]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return real_files.make(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return real_files.make(tmp_path_factory.mktemp("few"), seed=1, count=30)


@pytest.fixture(scope="module")
def prepared(real, tmp_path_factory):
    """The data set's folder, and the output of the command."""
    out = tmp_path_factory.mktemp("prepared")
    return out, run("-m", "i3d_jax.datasets", *arguments(real, out)).stdout


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 8)


@pytest.fixture(scope="module")
def few_prepared(few, tmp_path_factory):
    """The few videos, prepared in small shards."""
    out = tmp_path_factory.mktemp("few_prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CLIPS_PER_SHARD", 8)
        assert main(arguments(few, out)) == 0
    return out


@pytest.mark.slow  # Decodes many videos.
def test_every_bad_file_and_no_other_is_listed_with_its_reason(real, prepared):
    out, _ = prepared
    found = rejections(out)
    assert set(found) == set(real.bad) and len(found) == 48
    for identity, row in found.items():
        assert row["reason"].startswith(real.bad[identity]), row
        assert (
            os.path.isfile(row["file"])
            and identity in row["file"]
            or row["reason"].startswith("is missing")
        ), row


def test_the_command_says_how_many_of_the_annotated_clips_there_are(real, prepared):
    out, printed = prepared
    first, *lines = printed.splitlines()
    assert first == str(out / FINAL)
    for split, annotated, bad in ("train", 180, 36), ("validation", 60, 12):
        assert sum(good.split == split for good in real.good.values()) == annotated - bad
        line = f"{split}: {annotated - bad} of {annotated} annotated clips (20.0% missing), "
        assert sum(each.startswith(line) for each in lines) == 1, printed
    for reason in "is missing", "is empty", "has no video stream", "is truncated":
        assert f" {reason}" in printed


def test_the_statistics_add_up(real, prepared):
    out, _ = prepared
    builder = datasets.available("kinetics/400", str(out))
    everything = list(records(out).values())
    assert sum(found["frames"] for found in builder.statistics.values()) == sum(
        each["frames"] for each in everything
    )
    for split, found in builder.statistics.items():
        used = [good for good in real.good.values() if good.split == split]
        assert found["used"] == len(used) == builder.info.splits[split].num_examples
        assert found["annotated"] - found["used"] == sum(found["rejected"].values())
        assert found["annotated"] == sum(number for number, _ in found["classes"].values())
        for label, (_, number) in found["classes"].items():
            assert number == sum(good.label == label for good in used)
        size = sum(
            path.stat().st_size for path in (out / FINAL).glob(f"kinetics-{split}.array_record-*")
        )
        assert 0.7 * size < builder.info.splits[split].num_bytes < size


@pytest.mark.slow  # Decodes many videos.
def test_every_good_file_is_there_bit_for_bit_as_it_is_transcoded_alone(real, prepared):
    found = records(prepared[0])
    assert set(found) == set(real.good)

    def transcode(good):
        return h264.transcode(good.path, short_side=256, seconds=good.seconds)

    goods = real.good.items()
    for (identity, _), wanted in zip(
        goods, prefetch(transcode, real.good.values(), 2), strict=True
    ):
        record = found[identity]
        assert (record["video"], record["frames"]) == (wanted.data, wanted.frames), identity
        assert (record["height"], record["width"]) == (wanted.height, wanted.width), identity


def test_records_show_what_the_files_do_upright_and_in_time(real, prepared):
    for identity, record in records(prepared[0]).items():
        good = real.good[identity]
        frames = video.decode(record["video"]).astype(float)
        assert frames.shape == (record["frames"], record["height"], record["width"], 3)
        assert abs(len(frames) - good.lasts * 25) <= 1 and len(frames) <= 25 * good.seconds
        height, width = frames.shape[1:3]
        assert min(height, width) == 256 and width / height == pytest.approx(good.aspect, rel=0.03)
        red, green, blue = frames.transpose(3, 0, 1, 2)
        corner = np.s_[:, : height // 2 - 16, : width // 2 - 16]
        if good.colour:
            assert (
                red[corner].mean() > 190 and green[corner].mean() < 60 and blue[corner].mean() < 60
            ), good
        # Outside of the red quarter and its blur, brightness encodes the time.
        rest = np.s_[:, height // 2 + 16 :, 16:]
        assert abs(red[rest] - green[rest]).mean() < 12, good
        wanted = [real_files.brightness(index / 25) for index in range(len(frames))]
        # A frame stays until half an output frame before the next one.
        late = max(good.apart / 2, good.apart - 0.02)
        np.testing.assert_allclose(
            green[rest].mean((1, 2)), wanted, atol=5 + 100 * late, err_msg=str(good)
        )


def test_labels_are_in_the_order_of_the_published_logits(real, prepared):
    out, _ = prepared
    names = labels.names("kinetics_400")
    assert datasets.available("kinetics/400", str(out)).class_names == tuple(names)
    for identity, record in records(out).items():
        assert names[record["label"]] == real.good[identity].label


def test_tfds_reads_it_without_this_package(real, prepared):
    builder = tfds.builder_from_directory(str(prepared[0] / FINAL))
    found = {record["id"]: record for record in builder.as_data_source("validation")}
    assert set(found) == {
        identity.encode() for identity, good in real.good.items() if good.split == "validation"
    }
    assert all(record["video"][4:8] == b"ftyp" for record in found.values())


@pytest.mark.slow  # Starts processes.
def test_two_workers_write_the_same_bytes(real, prepared, tmp_path):
    printed = run("-m", "i3d_jax.datasets", *arguments(real, tmp_path, "--workers", 2)).stdout
    assert_same(tmp_path, prepared[0])
    assert printed.replace(str(tmp_path), "") == prepared[1].replace(str(prepared[0]), "")


@pytest.mark.slow  # Starts processes.
@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache-beam is not installed"
)
def test_beam_writes_the_same_bytes(real, prepared, tmp_path):
    run("-m", "i3d_jax.datasets", *arguments(real, tmp_path, "--beam-runner", "DirectRunner"))
    assert_same(tmp_path, prepared[0])


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None, reason="apache-beam is installed"
)
def test_without_beam_the_command_says_what_to_install(few, tmp_path, capsys):
    assert main(arguments(few, tmp_path, "--beam-runner", "DirectRunner")) == 2
    assert last_line(capsys.readouterr()).endswith(
        "Apache Beam is not installed: pip install 'i3d-jax-zoo[beam]'"
    )


def stamps(folder):
    """Inode and time of each shard, by name; they change if it is written again."""
    found = {path.name: path.stat() for path in folder.glob(f"kinetics-*-of-{5 * '[0-9]'}")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def finished(parts):
    """The stamps of finished shards."""
    found = stamps(parts)
    return {name: stamp for name, stamp in found.items() if (parts / f"{name}.json").exists()}


def start(*command, parts):
    """Starts Python in its own process group; returns the process once it writes parts."""
    before = set(os.listdir(parts)) if parts.exists() else set()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *command], start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet
    )
    wait_until(
        lambda: process.poll() is not None or parts.exists() and set(os.listdir(parts)) - before
    )
    assert process.poll() is None
    return process


@pytest.mark.slow  # Starts processes.
def test_a_preparation_killed_ten_times_ends_in_the_same_bytes_and_redoes_only_shards_in_flight(
    real, small_shards, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    begun = time.monotonic()
    assert main(arguments(real, undisturbed)) == 0
    lasted = time.monotonic() - begun
    rng, done = np.random.default_rng(), {}
    for number in range(10):
        workers = ("--workers", 2) if number % 2 else ()
        process = start("-c", DRIVER.format(""), *arguments(real, out, *workers), parts=out / PARTS)
        # At a random moment of the first or the second shard.
        first = len(done) + rng.integers(2)
        wait_until(lambda number=first: len(finished(out / PARTS)) >= number)
        time.sleep(rng.uniform(0, lasted / 31))
        assert process.poll() is None
        process.kill()
        process.wait()
        wait_until(lambda group=process.pid: gone(group))  # Workers end by themselves.
        now = finished(out / PARTS)
        assert {name: now.get(name) for name in done} == done
        done = now
    everything = [name for name in os.listdir(undisturbed / FINAL) if "array_record" in name]
    assert len(everything) == 31 and 2 < len(done) < 31
    run("-c", DRIVER.format(""), *arguments(real, out))
    assert_same(out, undisturbed)
    assert {name: stamps(out / FINAL)[name] for name in done} == done


def test_what_is_left_is_the_data_set_and_nothing_else(few_prepared):
    left = [name for name in contents(few_prepared) if not name.startswith(f"{FINAL}/")]
    folders = [
        "downloads",
        "downloads/extracted",
        "kinetics",
        "kinetics/.config",
        "kinetics/400",
        str(FINAL),
    ]
    assert sorted(left) == sorted([*folders, "kinetics/.config/metadata.json", f"{FINAL}.lock"])
    names = {path.name.partition(".array_record")[0] for path in (few_prepared / FINAL).iterdir()}
    own = {
        "dataset_info.json",
        "features.json",
        "metadata.json",
        "label.labels.txt",
        "checksums.json",
    }
    assert names == {"kinetics-train", "kinetics-validation", "rejected.csv", *own}


DEATHS = {
    "while shards are put in place": "link = shards._link_or_copy\n"
    "shards._link_or_copy = lambda *x: (link(*x), os._exit(9))",
    "while it is described": "import tensorflow_datasets as t\n"
    "t.core.DatasetInfo.write_to_directory = lambda *x: os._exit(9)",
    "before parts are removed": "shards.remove_parts = lambda final: os._exit(9)",
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_death_at_the_very_end_costs_nothing(
    when, few, few_prepared, small_shards, tmp_path, monkeypatch
):
    run("-c", DRIVER.format(DEATHS[when]), *arguments(few, tmp_path), code=9)
    assert len(finished(tmp_path / PARTS)) == 4
    monkeypatch.setattr(shards, "write", None)  # Not a single shard is written again.
    assert main(arguments(few, tmp_path)) == 0
    assert_same(tmp_path, few_prepared)


def interrupted(made, out, *more):
    """Prepares all shards, but does not move them into place; returns their stamps."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_):
            raise shards.PrepareError("stopped")

        patch.setattr(shards, "_link_or_copy", stop)
        assert main(arguments(made, out, *more)) == 2
    return stamps(out / PARTS)


def rewritten(before, out):
    """The names of the shards that were written again."""
    after = stamps(out / FINAL)
    return [name.removeprefix("kinetics-") for name in sorted(after) if before[name] != after[name]]


def test_damaged_parts_are_written_again(few, few_prepared, small_shards, tmp_path):
    before = interrupted(few, tmp_path)
    parts = tmp_path / PARTS
    one, two, three = (
        parts / f"kinetics-train.array_record-0000{number}-of-00003" for number in range(3)
    )
    os.truncate(one, one.stat().st_size - 1)
    torn = pathlib.Path(f"{two}.json")
    torn.write_text(torn.read_text()[:-20])
    pathlib.Path(f"{three}.json").unlink()
    assert main(arguments(few, tmp_path)) == 0
    assert rewritten(before, tmp_path) == [
        f"train.array_record-0000{number}-of-00003" for number in range(3)
    ]
    assert_same(tmp_path, few_prepared)


def test_other_annotations_redo_only_the_shards_that_they_change(few, small_shards, tmp_path):
    before = interrupted(few, tmp_path)
    lists = tmp_path / "other.csv"
    lists.write_text(few.annotations[0].read_text().replace("abseiling", "bungee jumping", 1))
    other = few._replace(annotations=(lists, few.annotations[1]))
    assert main(arguments(other, tmp_path)) == 0
    assert len(rewritten(before, tmp_path)) == 1
    lists.unlink()
    fresh = tmp_path / "fresh"
    lists.write_text(few.annotations[0].read_text().replace("abseiling", "bungee jumping", 1))
    assert main(arguments(other, fresh)) == 0
    assert contents(fresh / FINAL) == contents(tmp_path / FINAL)


def test_a_rejected_video_that_was_replaced_meanwhile_is_looked_at_again(tmp_path):
    real_files.some_videos(tmp_path / "videos", "good_000000_000001.mp4", "bad_000000_000001.mp4")
    bad = tmp_path / "videos" / "bad_000000_000001.mp4"
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    lists = real_files.write_list(tmp_path, "yoga,good,0,1,train", "yoga,bad,0,1,train")
    made = real_files.Made(tmp_path / "videos", (lists,), {}, {})
    before = interrupted(made, tmp_path)
    bad.write_bytes(whole)
    assert main(arguments(made, tmp_path)) == 0
    assert len(rewritten(before, tmp_path)) == 1 and rejections(tmp_path) == {}


def test_a_different_number_of_clips_leaves_no_shard_of_the_earlier_ones(
    few, small_shards, tmp_path
):
    interrupted(few, tmp_path)
    only = few._replace(annotations=few.annotations[1:])
    assert main(arguments(only, tmp_path)) == 0
    assert sorted(path.name for path in (tmp_path / FINAL).glob("*array_record*")) == [
        "kinetics-validation.array_record-00000-of-00001"
    ]
    assert not (tmp_path / PARTS).exists()


def test_a_second_process_is_refused_while_one_prepares(
    few, few_prepared, small_shards, tmp_path, capsys
):
    process = start("-c", DRIVER.format(""), *arguments(few, tmp_path), parts=tmp_path / PARTS)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert main(arguments(few, tmp_path)) == 2
    finally:
        os.kill(process.pid, signal.SIGCONT)
    captured = capsys.readouterr()
    assert (
        captured.err
        == f"python -m i3d_jax.datasets: {tmp_path / FINAL}: another process is preparing it\n"
    )
    assert process.wait() == 0
    assert_same(tmp_path, few_prepared)


def test_what_is_there_is_not_prepared_again(few, few_prepared, capsys, monkeypatch):
    monkeypatch.setattr(shards, "prepare", None)
    before = contents(few_prepared)
    assert main(arguments(few, few_prepared)) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{few_prepared / FINAL} exists; remove it to prepare it again\n"
    assert captured.out.startswith(f"{few_prepared / FINAL}\nrecords: format 2\ntrain: ")
    assert contents(few_prepared) == before


def test_a_disk_that_is_full_is_one_line_and_what_is_done_is_kept(
    few, few_prepared, small_shards, tmp_path, capsys
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = sorted(path.stat().st_size for path in (few_prepared / FINAL).glob("*array_record*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, limits[1]))
    try:
        assert main(arguments(few, tmp_path)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = last_line(capsys.readouterr())
    assert "File too large" in line and line.endswith("finished shards are kept"), line
    assert f"{tmp_path / PARTS}/kinetics-" in line
    assert [path.name for path in tmp_path.rglob("incomplete.*")] == []
    assert main(arguments(few, tmp_path)) == 0
    assert_same(tmp_path, few_prepared)


@pytest.mark.parametrize(
    "where,call",
    [
        (shards.csv, "writer"),
        (tfds.core.DatasetInfo, "write_dataset_info_json"),
        (description.files, "write_json"),
    ],
)
def test_a_disk_that_is_full_at_the_very_end_is_one_line_that_names_a_file(
    where, call, tmp_path, monkeypatch, capsys
):
    def fail(*_):  # Like Python's error, which does not name the file.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_files.some_videos(tmp_path / "videos", "good_000000_000001.mp4")
    lists = real_files.write_list(tmp_path, "yoga,good,0,1,train")
    made = real_files.Made(tmp_path / "videos", (lists,), {}, {})
    before = interrupted(made, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(where, call, fail)
        capsys.readouterr()
        assert main(arguments(made, tmp_path)) == 2
    line = last_line(capsys.readouterr())
    assert line.startswith("python -m i3d_jax.datasets: ") and "No space left on device" in line
    assert str(tmp_path / FINAL.parent) in line and not (tmp_path / FINAL).exists()
    assert main(arguments(made, tmp_path)) == 0 and rewritten(before, tmp_path) == []


DYING = """
import os, signal, sys
from i3d_jax.datasets import shards
from i3d_jax.datasets.__main__ import main

shards.CLIPS_PER_SHARD, record = 8, shards.make_record

def dying(clip, *given):
    if clip.id == {!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(clip, *given)

shards.make_record = dying
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_storage_that_goes_away_is_an_error_and_no_damage(
    few, small_shards, tmp_path, monkeypatch, capsys
):
    here, gone = tmp_path / "videos", tmp_path / "gone"
    shutil.copytree(few.videos, here, symlinks=True)
    moved = few._replace(videos=here)
    transcode, calls = h264.transcode, []

    def unmounting(*given, **options):
        calls.append(given)
        if len(calls) == 12:
            here.rename(gone)
        return transcode(*given, **options)

    monkeypatch.setattr(h264, "transcode", unmounting)
    assert main(arguments(moved, tmp_path / "out")) == 2
    line = last_line(capsys.readouterr())
    assert "No such file or directory; finished shards are kept" in line and "Traceback" not in line
    gone.rename(here)
    assert main(arguments(moved, tmp_path / "out")) == 0
    assert set(rejections(tmp_path / "out")) == set(few.bad)


def test_as_many_files_may_be_open_as_there_are_shards_of_all_splits(few_prepared):
    builder = datasets.prepared("kinetics/400", str(few_prepared))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    try:
        builder.records("train")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200 + len(
            list((few_prepared / FINAL).glob("*array_record*"))
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_damaged_or_missing_shard_is_named(few_prepared, tmp_path):
    shutil.copytree(few_prepared, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / FINAL / "kinetics-train.array_record-00000-of-00003"
    records = datasets.prepared("kinetics/400", str(tmp_path)).records("train")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    shard.write_bytes(content)
    with pytest.raises(
        video.VideoError, match=rf"record \d of train in {tmp_path / FINAL}: cannot be read: "
    ):
        list(records)
    shard.unlink()
    with pytest.raises(ValueError, match="00000-of-00003: missing, and 0 other files of train"):
        datasets.prepared("kinetics/400", str(tmp_path))


def test_a_worker_that_dies_is_one_line_that_names_the_video(
    few, few_prepared, small_shards, tmp_path
):
    identity, good = next(iter(few.good.items()))
    (tmp_path / "dying.py").write_text(DYING.format(identity))
    out = tmp_path / "out"
    done = run(tmp_path / "dying.py", *arguments(few, out, "--workers", 2), code=2)
    assert "Traceback" not in done.stderr
    last = done.stderr.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("python -m i3d_jax.datasets: a worker died: ") and str(good.path) in last
    assert main(arguments(few, out)) == 0
    assert_same(out, few_prepared)


def test_names_that_are_not_utf_8_are_prepared_and_listed(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"videos \xff\xe9")
    folder.mkdir()
    sort = real_files.steady(3, 25, 16, 16)
    sort.write(folder / "a_000000_000001.mp4", np.random.default_rng(0))
    (folder / "b_000000_000001.mp4").touch()
    made = real_files.Made(
        folder, (real_files.write_list(tmp_path, "yoga,a,0,1,train", "yoga,b,0,1,train"),), {}, {}
    )
    assert main(arguments(made, tmp_path / "out", "--workers", "1")) == 0
    assert set(records(tmp_path / "out")) == {"a_000000_000001"}
    listed = (tmp_path / "out" / FINAL / "rejected.csv").read_bytes()
    assert os.fsencode(folder) + b"/b_000000_000001.mp4,is empty,\r\n" in listed


def test_a_video_of_a_shape_that_cannot_be_resized_is_left_out(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, width in ("long", 600), ("short", 16):
        sort = real_files.steady(3, 25, 2, width, pix_fmt="yuv444p")
        sort.write(videos / f"{name}_000000_000001.mp4", np.random.default_rng(0))
    lists = real_files.write_list(tmp_path, "yoga,long,0,1,train", "yoga,short,0,1,train")
    assert main(arguments(real_files.Made(videos, (lists,), {}, {}), tmp_path / "out")) == 0
    assert rejections(tmp_path / "out")["long_000000_000001"]["reason"].startswith(
        "cannot be resized: frames of 2x600"
    )
    assert set(records(tmp_path / "out")) == {"short_000000_000001"}


def test_nothing_usable_is_an_error_that_gives_reasons(few, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    made = few._replace(videos=tmp_path / "videos")
    assert main(arguments(made, tmp_path / "out")) == 2
    assert "none of the clips of train has a file among the videos" in last_line(
        capsys.readouterr()
    )
    for name in "a", "b", "c", "d":
        (tmp_path / "videos" / f"{name}_000000_000001.mp4").touch()
    lists = real_files.write_list(tmp_path, *[f"yoga,{name},0,1,val" for name in "abcd"])
    assert main(arguments(made._replace(annotations=(lists,)), tmp_path / "out")) == 2
    line = last_line(capsys.readouterr())
    assert (
        "none of the 4 clips of validation can be used: " in line
        and line.count(".mp4: is empty") == 3
    ), line
    assert not (tmp_path / "out" / FINAL).exists()


@pytest.mark.parametrize(
    "given,message",
    [
        (
            "prepare kinetics/40 --data-dir {0}/out",
            "no data set is called 'kinetics/40'; there are kinetics/400, ",
        ),
        (
            "prepare kinetics/400 --data-dir {0}/out",
            "kinetics/400 is prepared from your files: --videos and --annotations are",
        ),
        (
            "prepare kinetics/400 --annotations {0}/list.csv --data-dir {0}/out",
            "--videos is missing",
        ),
        ("prepare kinetics/400 --videos {0} --data-dir {0}/out", "--annotations is missing"),
        (
            "prepare kinetics/400 --videos {0}/no --annotations {0}/list.csv --data-dir {0}/out",
            "--videos: {0}/no: no such folder",
        ),
        (
            (
                "prepare kinetics/400 --videos {0} --flow {0}/no --annotations {0}/list.csv "
                "--data-dir {0}/out"
            ),
            "--flow: {0}/no: no such folder",
        ),
        (
            "prepare kinetics/400 --videos {0} --annotations {0}/no.csv --data-dir {0}/out",
            "{0}/no.csv: No such file",
        ),
        (
            "prepare kinetics/400 --videos {0} --annotations {0}/bare.csv --data-dir {0}/out",
            "{0}/bare.csv:1: no column time_start",
        ),
        (
            "prepare kinetics/400 --videos {0} --annotations {0}/odd.csv --data-dir {0}/out",
            "{0}/odd.csv:2: label 'knitting sand'",
        ),
        (
            "prepare kinetics/400 --videos {0} --annotations {0}/list.csv --data-dir gs://a/b",
            "--data-dir: gs://a/b is not a local folder",
        ),
        (
            "prepare kinetics/400 --videos {0} --annotations {0}/list.csv --data-dir {0}/list.csv",
            "list.csv",
        ),
        (
            (
                "prepare moving_shapes/videos --videos {0} --annotations {0}/list.csv "
                "--data-dir {0}/out"
            ),
            "generates its own videos",
        ),
        (
            "prepare ucf101/1 --videos {0} --annotations {0} {0} --data-dir {0}/out",
            "2 annotations, wanted the one folder",
        ),
        (
            "prepare hmdb51/1 --videos {0} --annotations {0} --data-dir {0}/out",
            "{0}: has no brush_hair_test_split1.txt",
        ),
        ("doctor kinetics/400", "--videos and --annotations are missing"),
        (
            "doctor moving_shapes/videos --videos {0} --annotations {0}/list.csv",
            "generates its own videos",
        ),
        (
            "show kinetics/400 --data-dir {0}/out",
            "kinetics/400 is not prepared in {0}/out: python -m i3d_jax.datasets prep",
        ),
        (
            "show moving_shapes/videos --data-dir {0}/out",
            "moving_shapes/videos is not prepared in {0}/out",
        ),
    ],
)
def test_mistakes_in_commands_are_one_line(given, message, tmp_path, capsys):
    real_files.write_list(tmp_path, "yoga,a,0,1,train")
    (tmp_path / "bare.csv").write_text("label,youtube_id,split\nyoga,a,train\n")
    (tmp_path / "odd.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nknitting sand,a,0,1,train\n"
    )
    code = main([each.format(tmp_path) for each in given.split()])
    line = last_line(capsys.readouterr())
    assert (
        code == 2
        and line.startswith("python -m i3d_jax.datasets: ")
        and message.format(tmp_path) in line
    ), line
    assert not (tmp_path / "out" / FINAL).exists()


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_are_a_positive_number(workers, few, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments(few, tmp_path, "--workers", workers))
    assert left.value.code == 2 and "--workers" in last_line(capsys.readouterr())
    assert os.listdir(tmp_path) == []


def test_flow_that_fits_is_copied_and_other_flow_is_a_reason(few, tmp_path):
    flows = tmp_path / "flow"
    flows.mkdir()
    wanted, reasons = {}, {}
    for number, (identity, good) in enumerate(few.good.items()):
        made = h264.transcode(good.path, short_side=256, seconds=good.seconds)
        frames, height, width = made.frames, made.height, made.width
        kind = ("fits", "is longer", "is missing", "is small", "is short", "is text")[number % 6]
        if kind == "is small":
            height, reasons[identity] = height - 16, "its flow does not fit: "
        elif kind == "is short":
            reasons[identity] = "its flow does not fit: "
            frames -= 1
        elif kind == "is longer":
            frames += 3
        path = flows / f"{identity}.mp4"
        if kind == "is missing" or not frames:
            reasons[identity] = "its flow is missing"
        elif kind == "is text":
            path.write_text("u and v")
            reasons[identity] = "its flow cannot be decoded"
        else:
            flow = np.full((frames, height, width, 2), number * 0.1, np.float32)
            path.write_bytes(h264.encode(pixels.flow_bytes(flow)))
            if identity not in reasons:
                wanted[identity] = path.read_bytes()
    assert len(wanted) > 5 and len(reasons) > 10
    assert main(arguments(few, tmp_path / "out", "--flow", flows)) == 0
    found = records(tmp_path / "out")
    assert {identity: record["flow"] for identity, record in found.items()} == wanted
    assert datasets.available("kinetics/400", str(tmp_path / "out")).streams == ("rgb", "flow")
    listed = rejections(tmp_path / "out")
    assert set(listed) == set(reasons) | set(few.bad)
    for identity, reason in reasons.items():
        assert listed[identity]["reason"].startswith(reason), listed[identity]


@pytest.mark.parametrize("changed", ["SHORT_SIDE", "flow"])
def test_other_settings_redo_everything(changed, few, small_shards, tmp_path, monkeypatch):
    before = interrupted(few, tmp_path)
    if changed == "flow":
        (tmp_path / "flow").mkdir()
        for identity, good in few.good.items():
            made = h264.transcode(good.path, short_side=256, seconds=good.seconds)
            flow = np.zeros((made.frames, made.height, made.width, 2), np.float32)
            (tmp_path / "flow" / f"{identity}.mp4").write_bytes(
                h264.encode(pixels.flow_bytes(flow))
            )
        assert main(arguments(few, tmp_path, "--flow", tmp_path / "flow")) == 0
    else:
        monkeypatch.setattr(datasets.Kinetics, "SHORT_SIDE", 64)
        assert main(arguments(few, tmp_path)) == 0
        assert {
            min(record["height"], record["width"]) for record in records(tmp_path).values()
        } == {64}
    assert len(rewritten(before, tmp_path)) == 4


def test_ucf101_is_prepared_from_its_lists_and_the_share_that_is_missing_stated(tmp_path, capsys):
    lists, videos, names = (
        tmp_path / "ucfTrainTestlist",
        tmp_path / "UCF-101",
        labels.names("ucf101"),
    )
    lists.mkdir()
    numbered = list(enumerate(names, 1))
    (lists / "classInd.txt").write_text(
        "".join(f"{number} {name}\r\n" for number, name in numbered)
    )
    train = [
        f"{name}/v_{name}_g0{group}_c01.avi {number}\r\n"
        for number, name in numbered
        for group in (8, 9)
    ]
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text(
        "".join(f"{name}/v_{name}_g01_c01.avi\r\n" for name in names)
    )
    there = ("YoYo/v_YoYo_g08_c01.avi", "YoYo/v_YoYo_g09_c01.avi", "Archery/v_Archery_g08_c01.avi")
    real_files.some_videos(
        videos,
        *there,
        "Archery/v_Archery_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    )
    made = ["--videos", str(videos), "--annotations", str(lists)]
    assert main(["prepare", "ucf101/1", *made, "--data-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\ntrain: 3 of 202 annotated clips (98.5% missing), " in printed
    assert (
        "\ntest: 2 of 101 annotated clips (98.0% missing), " in printed
        and "99 is missing" in printed
    )
    found = records(tmp_path / "out", "ucf101/1")
    assert {identity: names[record["label"]] for identity, record in found.items()} == {
        "YoYo/v_YoYo_g08_c01": "YoYo",
        "YoYo/v_YoYo_g09_c01": "YoYo",
        "Archery/v_Archery_g08_c01": "Archery",
        "Archery/v_Archery_g01_c01": "Archery",
        "HandstandPushups/v_HandstandPushups_g01_c01": "HandstandPushups",
    }
    assert [found[place.removesuffix(".avi")]["frames"] for place in there] == [4, 5, 6]


def test_hmdb51_is_prepared_from_its_lists(tmp_path, capsys):
    lists, names = tmp_path / "testTrainMulti_7030_splits", labels.names("hmdb51")
    lists.mkdir()
    for name in names:
        lines = [f"April_09_{name}_u_nm_np1_ba_goo_{number}.avi {number} \n" for number in range(3)]
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    there = [f"April_09_wave_u_nm_np1_ba_goo_{number}" for number in range(3)]
    real_files.some_videos(tmp_path / "hmdb51_org", *[f"wave/{stem}.avi" for stem in there])
    made = ["--videos", str(tmp_path / "hmdb51_org"), "--annotations", str(tmp_path)]
    assert main(["prepare", "hmdb51/1", *made, "--data-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\ntrain: 1 of 51 annotated clips (98.0% missing), " in printed
    assert "\ntest: 1 of 51 annotated clips (98.0% missing), " in printed
    found = records(tmp_path / "out", "hmdb51/1")
    assert {identity: record["frames"] for identity, record in found.items()} == {
        f"wave/{there[1]}": 5,
        f"wave/{there[2]}": 6,
    }
    assert {names[record["label"]] for record in found.values()} == {"wave"}
    assert main(["show", "hmdb51/1", "--data-dir", str(tmp_path / "out"), "--classes"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown.count("  wave: 1 of 1") == 2 and shown.count("  walk: 0 of 1") == 2
    final = tmp_path / "out" / "hmdb51" / "1" / "1.0.0"
    (final / "checksums.json").unlink()  # Earlier versions did not write it.
    (final / "metadata.json").write_text(
        (final / "metadata.json").read_text().replace(', "format": "2"', "")
    )
    assert main(["show", "hmdb51/1", "--data-dir", str(tmp_path / "out")]) == 0
    message = (
        "prepared by an earlier version, made with the fault that B-frames in AVI came out of "
        "order; prepare it again"
    )
    assert capsys.readouterr().err == f"python -m i3d_jax.datasets: {final}: {message}\n"


@pytest.mark.slow
def test_a_real_clip_is_cut_to_its_annotation_and_recognised(shared_data, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(
        shared_data / "clips" / "flipping_a_pancake.mkv", videos / "-pan_cake00_000010_000020.mkv"
    )
    lists = real_files.write_list(tmp_path, "flipping pancake,-pan_cake00,10,20,val")
    out = tmp_path / "out"
    assert main(arguments(real_files.Made(videos, (lists,), {}, {}), out)) == 0
    (record,) = records(out).values()
    assert (record["frames"], record["height"], record["width"]) == (250, 256, 454)
    frames = video.decode(record["video"])
    original = video.decode(videos / "-pan_cake00_000010_000020.mkv", short_side=256, frames=250)
    assert len(frames) == 250 and abs(np.subtract(frames, original, dtype=np.int16)).mean() < 2.5
    weights = shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch"
    source = [
        "--weights",
        str(weights),
        "--dataset",
        "kinetics/400",
        "--data-dir",
        str(out),
        "--batch-size",
        "1",
    ]
    assert evaluate.main([*source, "--out", str(tmp_path / "results")]) == 0
    (line,) = (tmp_path / "results" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["top"][0][0] == "flipping pancake"
