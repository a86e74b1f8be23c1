"""`datasets show --clips`: what a network is shown, as a picture."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from i3d_jax import datasets, distributed, video
from i3d_jax.datasets import clip_sheet, moving_shapes, pipeline
from i3d_jax.datasets.__main__ import main
from i3d_jax.pictures import text
from i3d_jax.training import config_files, loop
from i3d_jax.video import h264, planes

# "two" is pretrained on images; "rgb" is quick to set up.
CONFIG = """
from ml_collections import ConfigDict


def run(name, model, streams, augmented):
    return dict(
        steps=2,
        batch_size=8,
        seed=3,
        model=dict(name=model, width=0.1),
        dataset=dict(name=name, data_dir="DATA"),
        train_clips=dict(crop=32, **streams, **augmented),
        eval_clips=dict(crop=40, batch_size=8, **streams),
        optimizer=dict(lr=1e-4),
    )


def get_config(name="two"):
    augmented = dict(flip=True, reverse=True)
    if name == "rgb":
        return ConfigDict(run("moving_shapes/videos", "c3d", dict(rgb=(16, 1)), augmented))
    images = run("moving_shapes/images", "inception", dict(rgb=(1, 1)), dict(flip=True))
    streams = dict(rgb=(3, 10), flow=(30, 1))
    made = run("moving_shapes/videos", "fused_two_stream", streams, augmented)
    return ConfigDict(made | dict(pretrain=images))
"""
VIDEOS = "moving_shapes/videos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small data set and a config of two runs on it."""
    made = tmp_path_factory.mktemp("clip_sheet")
    with pytest.MonkeyPatch.context() as patch:
        counts = {kind: {"train": 1, "validation": 1} for kind in ("videos", "images")}
        patch.setattr(moving_shapes, "CLIPS_PER_CLASS", counts)
        for kind in counts:
            datasets.prepared(f"moving_shapes/{kind}", str(made / "data"))
    (made / "config.py").write_text(CONFIG.replace("DATA", str(made / "data")))
    return made


@pytest.fixture
def drawn(monkeypatch):
    """The lists of clips that are drawn."""
    found, draw = [], clip_sheet.draw
    monkeypatch.setattr(clip_sheet, "draw", lambda *all: found.append(all[0]) or draw(*all))
    return found


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.png"


def show(folder, *arguments, name=VIDEOS, config="two"):
    given = [] if config is None else [f"--config={folder / 'config.py'}:{config}"]
    return main(["show", name, *given, *map(str, arguments)])


def assert_shows(clips, batches, name, folder):
    """Asserts that clips are those of some batches, in order and pixel by pixel."""
    records = {each["id"]: each for each in datasets.prepared(name, folder).records("train")}
    rows = [
        (batch, row, jax.jit(planes.unpack)({k: v for k, v in batch.items() if k != "label"}))
        for batch in batches
        for row in range(len(batch["label"]))
    ]
    for clip, (batch, row, streams) in zip(clips, rows, strict=False):
        assert clip.label == batch["label"][row] == records[clip.record]["label"]
        assert clip.mirrored == batch["mirrored"][row]
        assert clip.backwards == batch.get("backwards", np.zeros(len(batch["label"])))[row]
        assert set(clip.frames) == set(streams)
        for stream, frames in clip.frames.items():
            whole = np.asarray(streams[stream][row])
            assert clip.lengths[stream] == len(whole)
            # Programs for other batches may round otherwise.
            np.testing.assert_allclose(frames[[0, -1]], whole[[0, -1]], atol=1e-6)
            shown = whole[clip_sheet.shown_frames(len(whole))]
            np.testing.assert_allclose(frames, shown, atol=1e-6)


def test_shown_frames_are_evenly_spaced_from_the_first_to_the_last():
    assert clip_sheet.shown_frames(1).tolist() == [0]
    assert clip_sheet.shown_frames(3).tolist() == [0, 1, 2]
    assert clip_sheet.shown_frames(11).tolist() == [0, 2, 4, 6, 8, 10]
    assert len(clip_sheet.shown_frames(64)) == 6


class CaughtError(Exception):
    """Raised where a run would compile its first step."""


def test_the_clips_are_those_that_the_run_trains_on(folder, drawn, out, tmp_path, monkeypatch):
    assert show(folder, "--clips", 8, "--out", out, config="rgb") == 0
    first = []

    def catch(update, state, batch, key):
        first.append(jax.device_get(batch))
        raise CaughtError

    monkeypatch.setattr(distributed, "compile_on_all_processes", catch)
    config = config_files.load(f"{folder / 'config.py'}:rgb").to_dict()
    with pytest.raises(CaughtError):
        loop.train(str(tmp_path / "run"), **config)
    assert len(drawn[0]) == 8 and len({clip.record for clip in drawn[0]}) > 4
    assert_shows(drawn[0], first, VIDEOS, str(folder / "data"))


def test_clips_of_two_streams_go_beyond_the_first_batch_in_order(folder, drawn, out):
    options = "--config.seed=5", "--config.train_clips.crop=24"
    assert show(folder, "--clips", 11, "--out", out, *options) == 0
    records = datasets.prepared(VIDEOS, str(folder / "data")).records("train")
    batches = pipeline.train_batches(
        records,
        batch_size=8,
        seed=5,
        crop=24,
        rgb=(3, 10),
        flow=(30, 1),
        flip=True,
        reverse=True,
    )
    assert len(drawn[0]) == 11
    assert_shows(drawn[0], itertools.islice(batches, 2), VIDEOS, str(folder / "data"))
    assert {(clip.mirrored, clip.backwards) for clip in drawn[0]} == set(
        itertools.product([False, True], repeat=2)
    )


def test_the_name_chooses_the_images_that_a_run_is_pretrained_on(folder, drawn, out, capsys):
    name = "moving_shapes/images"
    assert show(folder, "--clips", 4, "--out", out, name=name) == 0
    records = datasets.prepared(name, str(folder / "data")).records("train")
    batches = pipeline.train_batches(records, batch_size=8, seed=3, crop=32, rgb=(1, 1), flip=True)
    assert_shows(drawn[0], itertools.islice(batches, 1), name, str(folder / "data"))
    assert capsys.readouterr().out.endswith(
        f"training clips of {folder / 'config.py'}:two (config.pretrain), seed 3\n"
    )
    assert show(folder, "--clips", 1, "--out", out) == 0
    assert f" trains on {name} first: " in capsys.readouterr().out


def test_test_clips_are_whole_videos_cropped_at_the_centre(folder, drawn, out):
    assert show(folder, "--clips", 2, "--out", out, "--split", "validation") == 0
    records = datasets.prepared(VIDEOS, str(folder / "data")).records("validation")
    for clip, record in zip(drawn[0], records, strict=False):
        assert (clip.record, clip.label) == (record["id"], record["label"])
        assert not clip.mirrored and not clip.backwards
        flow = video.decode(record["flow"], stream="flow")[:30, 8:48, 8:48]
        found = np.rint(127 * clip.frames["flow"] + 128)
        np.testing.assert_array_equal(found, flow[[0, 6, 12, 17, 23, 29]])


def test_without_a_config_the_clips_are_the_papers(folder, drawn, out, capsys):
    data = "--data-dir", folder / "data"
    assert show(folder, *data, "--clips", 2, "--out", out, config=None) == 0
    assert capsys.readouterr().out.endswith(
        f"{out}: {VIDEOS}, train: the first 2 of the paper's training clips for I3D, crop 56\n"
    )
    for clip in drawn[0]:
        assert clip.lengths == {"rgb": 64, "flow": 64}
        assert clip.frames["rgb"].shape == (6, 56, 56, 3)


def record(number, count=12):
    """A record whose red is x, whose green tells the record, and whose blue is the frame."""
    t, _, x = np.meshgrid(np.arange(count), np.arange(36), np.arange(40), indexing="ij")
    rgb = np.stack([5 * x + 10, np.full_like(x, 40 * number + 20), 15 * t + 10], -1)
    encoded = h264.encode(rgb.astype(np.uint8), crf=5)
    about = {"label": 1 - number % 2, "id": f"clip{number}"}
    return about | {"video": encoded, "frames": count, "height": 36, "width": 40}


def test_what_is_mirrored_or_backwards_is_captioned_so_and_with_its_record():
    source = [record(number) for number in range(5)]
    numbered, names, seen = clip_sheet.Numbered(source), ("walk", "run"), set()
    options = dict(batch_size=4, seed=0, crop=32, rgb=(8, 1), reverse=True)
    batches = pipeline.train_batches(numbered, **options)
    for clip in itertools.islice(clip_sheet.training_clips(batches, numbered), 16):
        red, green, blue = np.moveaxis(clip.frames["rgb"], -1, 0)
        mirrored = bool(red[..., 0].mean() > red[..., -1].mean())
        backwards = bool(blue[0].mean() > blue[-1].mean())
        number = round((127.5 * (green.mean() + 1) - 20) / 40)
        marks = " · mirrored" * mirrored + " · backwards" * backwards
        assert clip_sheet.captions(clip, names, {"rgb": (8, 1)}, 1.0) == (
            f"{('run', 'walk')[number % 2]}{marks}",
            f"RGB 8 x 1 · clip{number}",
        )
        seen.add((mirrored, backwards))
    assert len(seen) == 4


def clip(frames=1, side=32, streams=("rgb",), seed=0):
    rng = np.random.default_rng(seed)
    channels = {"rgb": 3, "flow": 2}
    shown = {
        name: rng.uniform(-1, 1, (frames, side, side, channels[name])).astype(np.float32)
        for name in streams
    }
    return clip_sheet.Clip(
        "train/a folder/of a video.mp4", 0, shown, dict.fromkeys(streams, 64), True, True
    )


def places(picture, block):
    """Where a part is in a picture."""
    height, width = block.shape[:2]
    corners = np.argwhere((picture[: 1 - height, : 1 - width] == block[0, 0]).all(-1))
    return [
        (top, left)
        for top, left in corners.tolist()
        if (picture[top : top + height, left : left + width] == block).all()
    ]


def test_frames_are_drawn_pixel_by_pixel_rgb_above_flow():
    streams = {"rgb": (64, 1), "flow": (64, 1)}
    clips = [clip(4, 32, ("rgb", "flow"), seed) for seed in range(2)]
    picture = clip_sheet.draw(clips, ["yoga"], streams, "title")
    rows = []
    for each in clips:
        images = np.rint((each.frames["rgb"] + 1) * 127.5).astype(np.uint8)
        found = [places(picture, np.kron(image, np.ones((5, 5, 1)))) for image in images]
        assert [len(place) for place in found] == [1] * 4
        tops, lefts = zip(*(place[0] for place in found), strict=True)
        assert len(set(tops)) == 1 and list(lefts) == sorted(lefts)
        rows.append(tops[0])
        longest = clip_sheet._full_colour(clips)
        flow = clip_sheet.as_images("flow", each.frames["flow"][:1], longest)[0]
        ((top, left),) = places(picture, np.kron(flow, np.ones((5, 5, 1))))
        assert tops[0] < top < tops[0] + 180 and left == lefts[0]
    assert rows == sorted(rows)


def test_the_hue_of_flow_is_its_direction_and_full_colour_is_as_captioned():
    still, right = np.zeros((1, 4, 4, 2)), np.zeros((1, 4, 4, 2))
    right[..., 0] = 3 / 20  # Networks get flow / 20.
    assert (clip_sheet.as_images("flow", still, 3.0) == 255).all()
    assert (clip_sheet.as_images("flow", right, 3.0) == [255, 0, 0]).all()
    moving = clip(streams=("flow",))._replace(frames={"flow": right})
    streams = {"flow": (64, 1)}
    assert (
        "flow 64 x 1 (full colour: 3 pixels)"
        in clip_sheet.captions(moving, ["yoga"], streams, clip_sheet._full_colour([moving]))[1]
    )


@pytest.mark.parametrize("frames,side", [(1, 32), (1, 224), (6, 224), (2, 112)])
def test_names_of_60_letters_are_not_cut_off(frames, side, monkeypatch):
    name = "passing American football and throwing Mexican discus golf!"
    lines, draw = [], text.draw

    def drawn(*arguments, **options):
        line = draw(*arguments, **options)
        lines.append(line.text)
        return line

    monkeypatch.setattr(text, "draw", drawn)
    title = f"own/videos, train: the first 1 training clips of {'a' * 60}, seed 0"
    picture = clip_sheet.draw([clip(frames, side)], [name], {"rgb": (64, 1)}, title)
    wanted = [f"{name} · mirrored · backwards", "RGB 64 x 1 · train/a folder/of a video.mp4", title]
    assert sorted(lines) == sorted(wanted)
    assert (picture[:, -8:] == 255).all() and (picture[-8:] == 255).all()


def test_a_sheet_is_replaced_by_the_next_one_but_no_other_file(folder, out, capsys):
    assert show(folder, "--clips", 1, "--out", out, config="rgb") == 0
    with Image.open(out) as before:
        low = before.height
    assert show(folder, "--clips", 3, "--out", out, config="rgb") == 0
    with Image.open(out) as after:
        assert after.height > 2 * low
    Image.new("RGB", (8, 8)).save(out)
    content = out.read_bytes()
    capsys.readouterr()
    assert show(folder, "--clips", 1, "--out", out, config="rgb") == 2
    assert out.read_bytes() == content and list(out.parent.iterdir()) == [out]
    assert capsys.readouterr().err == (
        f"python -m i3d_jax.datasets: --out: {out}: is there already, and is no sheet of clips\n"
    )


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config=CONFIG"], "--config: is for --clips"),
        (["--out", "a.png"], "--out: is for --clips"),
        (["--split", "train"], "--split: is for --clips"),
        (["--clips=0"], "'0' is not a positive whole number"),
        (["--clips=101"], "--clips: 101, wanted at most 100"),
        (["--clips=2", "--out=missing/a.png"], "missing: no such folder"),
        (["--clips=2", "--out=a.jpg"], "--out: a.jpg: wanted a name that ends in .png"),
        (["--clips=2", "--data-dir=nowhere"], "moving_shapes/videos is not prepared in nowhere"),
        (["--clips=2", "--config=nothing"], "--config: nothing: no such file, and no config of "),
        (
            ["--clips=2", "--config=transfer"],
            "moving_shapes/videos: is not what transfer trains on: config.dataset.name is ucf101/1",
        ),
        (["--clips=2", "--config=CONFIG", "--config.sed=1"], "config.sed: there is no such key"),
        (["--clips=2", "--config.seed=1"], "--config.seed=1: is for `show --clips --config`"),
        (["--clips=2", "--tops=1"], "unrecognized arguments: --tops=1"),
        (
            ["--clips=2", "--config=CONFIG", "--config.train_clips.crop=64"],
            "config.train_clips.crop: 64 pixels of frames whose short side has 56",
        ),
        (
            ["--clips=2", "--config=CONFIG", "--split=test"],
            "--split: 'test' is none of CONFIG; there are train, validation",
        ),
        (
            ["--clips=2", "--split=test"],
            "--split: moving_shapes/videos has no split 'test'; there are train, validation",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(folder / "config.py")
    given = [each.replace("CONFIG", config) for each in arguments]
    if not any(each.startswith("--data-dir") for each in given):
        given += ["--data-dir", str(folder / "data")]
    try:
        assert main(["show", VIDEOS, *given]) == 2
    except SystemExit as end:
        assert end.code == 2
    out, errors = capsys.readouterr()
    assert message.replace("CONFIG", config) in errors and errors.count("\n") == 1
    assert out == "" and list(pathlib.Path().iterdir()) == []
