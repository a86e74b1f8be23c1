"""The files that describe prepared data sets: damaged ones, and those of earlier versions."""

import json
import pathlib
import shutil
import tempfile

import pytest
import tensorflow_datasets as tfds
from support.real_files import some_videos
from tensorflow_datasets.core.utils import gcs_utils
from tensorflow_datasets.proto import tf_example_pb2

from i3d_jax import datasets, labels, video
from i3d_jax.datasets import clips, description, moving_shapes, own, records
from i3d_jax.datasets.__main__ import main
from i3d_jax.training import loop

FINAL = pathlib.Path("own", "videos", "1.0.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small data set."""
    folder = tmp_path_factory.mktemp("made")
    some_videos(
        folder / "videos",
        *[f"{split}/{label}/1.avi" for split in ("train", "val") for label in ("run", "jump")],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own.Own, "SHORT_SIDE", 16)
        given = ["--videos", str(folder / "videos"), "--data-dir", str(folder / "out")]
        assert main(["prepare", "own/videos", *given]) == 0
    return folder / "out"


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def say(out):
    """Runs `show`, and returns its exit status."""
    return main(["show", "own/videos", "--data-dir", str(out)])


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_before(out, final=FINAL):
    """Turns a data set into one of an earlier version: without checksums and format."""
    (out / final / description.CHECKSUMS).unlink()
    metadata = json.loads((out / final / "metadata.json").read_text())
    del metadata["format"]
    (out / final / "metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("name", [*description.FILES, description.CHECKSUMS])
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_a_damaged_file_is_named_in_one_line(name, damage, copy, capsys):
    path = copy / FINAL / name
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    assert say(copy) == 2
    error = capsys.readouterr().err
    # With another bit, checksums.json may accuse another file.
    if (name, damage) != (description.CHECKSUMS, "a bit"):
        assert error.startswith(f"python -m i3d_jax.datasets: {path}: ")
    assert error.count("\n") <= 1 and "Traceback" not in error


def shorten_labels(folder):
    path = folder / "label.labels.txt"
    path.write_text(path.read_text().partition("\n")[0] + "\n")


def exchange_a_label(folder):
    path = folder / "label.labels.txt"
    path.write_text(path.read_text().replace("run", "ran"))


def shorten_labels_and_their_number(folder):
    shorten_labels(folder)
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))


def edit_info(before, after):
    def edit(folder):
        path = folder / "dataset_info.json"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    return edit


@pytest.mark.parametrize(
    "damage,name,message",
    [
        (shorten_labels, "features.json", "it has 2 classes, label.labels.txt has 1"),
        (
            shorten_labels_and_their_number,
            "label.labels.txt",
            "its 1 classes are not the 2 of the data set",
        ),
        (exchange_a_label, "label.labels.txt", "its 2 classes are not the 2 of the data set"),
        (edit_info('"splits"', '"splits'), "dataset_info.json", "is damaged: "),
        (
            edit_info('"version": "1.0.0"', '"version": "1.0.1"'),
            "dataset_info.json",
            "version '1.0.1', wanted '1.0.0'",
        ),
        (
            edit_info('"2"', '"3"'),
            "dataset_info.json",
            "clips of splits are {'train': 3, 'validation': 3}, by metadata",
        ),
        (
            edit_info('"{DATASET}', '"../../{DATASET}'),
            "dataset_info.json",
            "'../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD",
        ),
        (
            lambda folder: change(folder / "metadata.json", splits=7),
            "metadata.json",
            "is damaged: ",
        ),
        (
            lambda folder: change(folder / "features.json", featuresDict={}),
            "features.json",
            "is damaged: 'features'",
        ),
        (
            lambda folder: (folder / "features.json").write_bytes(b"\xff{}"),
            "features.json",
            "is damaged: 'utf-8' codec",
        ),
    ],
)
def test_without_checksums_files_must_agree_with_each_other(damage, name, message, copy, capsys):
    as_before(copy)
    damage(copy / FINAL)
    assert say(copy) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"python -m i3d_jax.datasets: {copy / FINAL / name}: ") and message in line
    )


def test_a_data_set_of_known_classes_must_have_them(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Kinetics, "SHORT_SIDE", 16)
    some_videos(tmp_path / "videos", "yoga/a_000000_000001.mp4")
    (tmp_path / "list.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nyoga,a,0,1,train\n"
    )
    given = ["--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "list.csv")]
    assert main(["prepare", "kinetics/400", *given, "--data-dir", str(tmp_path)]) == 0
    final = pathlib.Path("kinetics", "400", "1.0.0")
    as_before(tmp_path, final)
    path, features = tmp_path / final / "label.labels.txt", tmp_path / final / "features.json"
    path.write_text("\n".join(labels.names("kinetics_400")[:399]))
    features.write_text(features.read_text().replace('"numClasses": "400"', '"numClasses": "399"'))
    with pytest.raises(
        ValueError, match="labels.txt: its 399 classes are not the 400 of the data set"
    ):
        datasets.available("kinetics/400", str(tmp_path))


@pytest.mark.parametrize(
    "damage,message", [("cut", r"has \d+ bytes, wanted \d+"), ("gone", "missing")]
)
def test_shards_of_another_size_are_named_before_they_are_read(damage, message, copy):
    shard = copy / FINAL / "own-train.array_record-00000-of-00001"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=f"{shard}: {message}"):
        datasets.prepared("own/videos", str(copy))


def test_a_label_that_is_no_class_is_named_with_its_record(made):
    found = datasets.prepared("own/videos", str(made)).records("train")
    assert sorted(record["label"] for record in found) == [0, 1]
    with pytest.raises(
        video.VideoError, match=r"record \d of train: cannot be read: label 1 of 1 classes"
    ):
        list(clips.Records(found.examples, "train", 1))


@pytest.mark.parametrize("name", ["label", "id", "frames", "video"])
def test_a_record_that_lacks_a_value_is_named_and_does_not_end_the_split(name, made):
    found = datasets.prepared("own/videos", str(made)).records("train")
    example = tf_example_pb2.Example.FromString(found.examples[0])
    kind = example.features.feature[name].WhichOneof("kind")
    del getattr(example.features.feature[name], kind).value[:]
    broken = clips.Records([example.SerializeToString(), found.examples[1]], "train", 2)
    with pytest.raises(video.VideoError, match="record 0 of train: cannot be read: "):
        list(broken)


def test_builders_leave_nothing_and_ask_no_network(tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("the network is asked")

    for name in "gcs_dataset_info_files", "is_dataset_on_gcs":
        monkeypatch.setattr(gcs_utils, name, asked)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in "kinetics/400", "ucf101/1", "hmdb51/2", "own/videos", "moving_shapes/images":
        datasets.builder(name, str(tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(moving_shapes, "CLIPS_PER_CLASS", {"images": {"train": 1}})
    datasets.prepared("moving_shapes/images", str(tmp_path / "data"))


def test_a_data_set_says_the_format_of_its_records(made, capsys):
    builder = datasets.prepared("own/videos", str(made))
    assert builder.format == records.FORMAT == "2" and builder.known_problem is None
    assert say(made) == 0
    captured = capsys.readouterr()
    assert "\nrecords: format 2\n" in captured.out and captured.err == ""


def test_records_of_the_first_format_are_read_with_one_line_of_warning(copy, capsys):
    wanted = list(datasets.prepared("own/videos", str(copy)).records("train"))
    as_before(copy)
    assert list(datasets.prepared("own/videos", str(copy)).records("train")) == wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{copy / FINAL}: prepared by an earlier version, which showed frames ")
    assert line.endswith("; prepare it again")
    config = {"dataset": {"name": "own/videos", "data_dir": str(copy)}}
    assert (
        loop._data_set(config | {"train_split": "train", "test_split": "validation"}).format == "1"
    )
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert say(copy) == 0
    captured = capsys.readouterr()
    assert (
        captured.err == f"python -m i3d_jax.datasets: {line}\n"
        and "records: format 1\n" in captured.out
    )


def test_earlier_records_of_moving_shapes_are_what_they_would_be_today(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(moving_shapes, "CLIPS_PER_CLASS", {"images": {"train": 1}})
    final = datasets.prepared("moving_shapes/images", str(tmp_path)).final
    as_before(tmp_path, final.relative_to(tmp_path))
    capsys.readouterr()
    assert datasets.prepared("moving_shapes/images", str(tmp_path)).format == "1"
    assert capsys.readouterr().err == ""


def test_tfds_reads_a_data_set_with_checksums(made):
    builder = tfds.builder_from_directory(str(made / FINAL))
    assert builder.info.splits["train"].num_examples == 2
