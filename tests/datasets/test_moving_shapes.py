import os
import pathlib
import re

import numpy as np
import pytest

from i3d_jax import datasets, pixels, video
from i3d_jax.datasets import annotations, moving_shapes, video_files

MOVEMENTS = moving_shapes.MOVEMENTS
MOVING = [movement for movement, (_, _, turn) in MOVEMENTS.items() if not turn]


def render(shape, movement, seed=0, **options):
    return moving_shapes.render(shape, movement, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("shape", moving_shapes.SHAPES)
def test_the_first_frame_does_not_depend_on_the_movement(shape):
    frames = [render(shape, movement, seed=3, frames=2)[0] for movement in MOVEMENTS]
    for other in frames[1:]:
        np.testing.assert_array_equal(other[0], frames[0][0])
        assert (other[1] != frames[0][1]).any()


def centre(image, reference):
    """Centroid of the pixels that differ from a frame without the shape."""
    y, x = np.nonzero(np.abs(image.astype(int) - reference).sum(-1) > 60)
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("movement", MOVING)
def test_shapes_move_as_their_class_says_and_their_flow_as_they_do(movement):
    direction = np.array(MOVEMENTS[movement][:2])
    clip, flow = render("disc", movement, seed=1)
    reference = render("disc", movement, seed=1, frames=200)[0].min(0)  # The shape is brighter.
    steps = np.diff([centre(frame, reference) for frame in clip], axis=0)
    steps = steps[np.abs(steps).max(1) < 4]  # Leaves out jumps from one side to the other.
    assert len(steps) > 20
    np.testing.assert_allclose(np.sign(np.rint(np.median(steps, 0))), direction)
    # 0.014 to 0.028 of 56 pixels a frame, the same everywhere in the shape and at all times. There
    # is no motion across.
    found = np.unique(flow[(flow != 0).any(-1)], axis=0)
    assert (
        len(found) == 1 and 0.78 < found[0] @ direction < 1.57 and found[0] @ direction[::-1] == 0
    )
    np.testing.assert_allclose(steps.mean(0), found[0], atol=0.05)


def brought_back(frames, flow):
    """Warps each next frame back by the flow, bilinearly: f64 [T - 1, H, W, 3]."""
    time, y, x = np.indices(flow[:-1].shape[:3])
    height, width = frames.shape[1:3]
    x = np.clip(x + flow[:-1, ..., 0], 0, width - 1.001)
    y = np.clip(y + flow[:-1, ..., 1], 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    right, down = (x - left)[..., None], (y - top)[..., None]

    def at(row, column):
        return frames[time + 1, row, column].astype(float)

    above = (1 - right) * at(top, left) + right * at(top, left + 1)
    below = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * above + down * below


def errors(frames, flow, assumed):
    """Per frame, the mean error in brightness inside the shape, warped back by the assumed flow."""
    inside = (flow[:-1] != 0).any(-1)
    off = np.abs(brought_back(frames, assumed) - frames[:-1]).mean(-1)
    return np.where(inside, off, 0).sum((1, 2)) / inside.sum((1, 2))


@pytest.mark.parametrize("movement", MOVEMENTS)
@pytest.mark.parametrize("shape", moving_shapes.SHAPES)
def test_flow_says_where_every_pixel_of_the_shape_goes(shape, movement):
    for seed in range(2):
        frames, flow = render(shape, movement, seed)
        assert flow.shape == (*frames.shape[:3], 2)
        right, opposite, still = (errors(frames, flow, sign * flow) for sign in (1, -1, 0))
        jumps = right > 50  # From one side to the other; the flow has no jumps.
        assert jumps.sum() <= (2 if movement in MOVING else 0)
        assert right[~jumps].max() < 5
        assert (opposite > 3 * right)[~jumps].all() and (still > 1.5 * right)[~jumps].all()


@pytest.mark.parametrize("movement", MOVEMENTS)
@pytest.mark.parametrize("shape", moving_shapes.SHAPES)
def test_nothing_moves_where_flow_is_zero(shape, movement):
    frames, flow = render(shape, movement)
    inside = (flow != 0).any(-1)
    assert 0.05 < inside.mean() < 0.25
    # The outline covers part of the pixels next to the shape, and of the two pixels next to a
    # triangle's corners.
    around = np.pad(inside, ((0, 0), (2, 2), (2, 2)))
    around = np.lib.stride_tricks.sliding_window_view(around, (5, 5), (1, 2)).any((3, 4))
    free = ~around[..., None]
    highest = np.where(free, frames, 0).max(0)
    lowest = np.where(free, frames, 255).min(0)
    seen = free.any(0)[..., 0]
    assert seen.mean() > 0.7
    np.testing.assert_array_equal(highest[seen], lowest[seen])


@pytest.mark.parametrize("shape", moving_shapes.SHAPES)
def test_flow_of_a_movement_is_minus_that_of_its_reverse(shape):
    left, right, up, down, clockwise, back = (
        render(shape, movement, frames=1)[1] for movement in MOVEMENTS
    )
    np.testing.assert_array_equal(left, -right)
    np.testing.assert_array_equal(up, -down)
    assert left[..., 0].min() < -0.7 and up[..., 1].min() < -0.7
    # In both directions of rotation a point comes nearer to the centre by 1 - cos of the angle.
    assert abs(clockwise + back).max() < 0.2 and abs(clockwise).max() > 0.7
    # In an image y points down, so clockwise rotation moves the right side down.
    y, x = np.indices(clockwise.shape[1:3])
    inside = (clockwise[0] != 0).any(-1)
    slope = np.polyfit(x[inside], clockwise[0][inside][:, 1], 1)[0]
    assert 0.06 < slope < 0.15
    slope = np.polyfit(y[inside], clockwise[0][inside][:, 0], 1)[0]
    assert -0.15 < slope < -0.06


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            moving_shapes,
            "CLIPS_PER_CLASS",
            {k: {"train": 2, "validation": 1} for k in ("videos", "images")},
        )
        return {
            name: datasets.prepared(f"moving_shapes/{name}", str(folder))
            for name in ("videos", "images")
        }


def test_videos_are_prepared_as_records_of_h264(builders):
    builder = builders["videos"]
    assert builder.info.features["label"].names == moving_shapes.CLASSES["videos"]
    train, test = builder.records("train"), builder.records("validation")
    assert (len(train), len(test)) == (48, 24)
    assert sorted(record["label"] for record in test) == list(range(24))
    frames = video.decode(test[0]["video"])
    assert frames.shape == (test[0]["frames"], 56, 56, 3) == (32, 56, 56, 3)
    for stream in "video", "flow":
        assert not {record[stream] for record in train} & {record[stream] for record in test}


def test_the_flow_of_a_record_is_that_of_its_video(builders):
    assert builders["videos"].streams == ("rgb", "flow")
    for record in builders["videos"].records("validation"):
        frames, flow = video.decode(record["video"]), video.decode(record["flow"], stream="flow")
        assert flow.shape == (record["frames"], 56, 56, 2) == (*frames.shape[:3], 2)
        frames, flow = frames[:12], pixels.MAX_FLOW * pixels.to_unit(flow[:12])
        flow[abs(flow).max(-1) < 0.4] = 0  # Compression noise outside the shape.
        right, opposite, still = (
            np.median(errors(frames, flow, sign * flow)) for sign in (1, -1, 0)
        )
        assert right < 8 and opposite > 2 * right and still > 1.2 * right


def test_images_are_videos_of_one_frame_whose_class_is_the_shape(builders):
    builder = builders["images"]
    assert builder.info.features["label"].names == list(moving_shapes.SHAPES)
    assert video.decode(builder.records("train")[0]["video"]).shape == (1, 56, 56, 3)


def test_images_have_no_flow(builders):
    assert builders["images"].streams == ("rgb",)
    assert "flow" not in builders["images"].records("train")[0]


def test_raw_videos_lie_in_kinetics_layout_with_its_csv_and_their_flow_beside_them(builders):
    builder = builders["videos"]
    folder = (
        builder.final.parents[2] / "downloads" / "moving_shapes" / "videos" / str(builder.version)
    )
    rows = annotations.kinetics([folder / "train.csv"], builder.class_names)
    found = video_files.clips(rows, folder / "videos", folder / "flow")
    assert len(found) == 48 and all(
        os.path.exists(*clip.paths) and os.path.exists(*clip.flows) for clip in found
    )
    place = "train/disc moving left/train00000_000000_000002.mp4"
    assert found[0][4:] == ((str(folder / "videos" / place),), (str(folder / "flow" / place),), ())


def test_the_videos_that_the_quickstart_predicts_are_where_it_says(builders):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
    (place,) = re.findall(r'"runs/data/(downloads/.*)/"\*', page)
    assert len(list((builders["videos"].final.parents[2] / place).iterdir())) == 1


def test_all_that_was_annotated_is_there(builders):
    for name, per_class in ("videos", 24), ("images", 4):
        found = builders[name].statistics
        assert {
            split: (each["annotated"], each["used"], each["rejected"])
            for split, each in found.items()
        } == {
            "train": (2 * per_class, 2 * per_class, {}),
            "validation": (per_class, per_class, {}),
        }
        assert set(found["train"]["classes"]) == set(moving_shapes.CLASSES[name])
        assert not (builders[name].final.parent / f"{builders[name].version}.parts").exists()
