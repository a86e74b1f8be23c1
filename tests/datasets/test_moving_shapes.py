import os
import pathlib
import re

import numpy as np
import pytest

from i3d_jax import datasets, pixels, video
from i3d_jax.datasets import annotations, moving_shapes, other_shapes, video_files

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


# Mean of three colours at nine places of the first and the 17th frame, as version 2.0.0 was first.
EARLIER = {
    ("cross", "turning clockwise", 7, True, True): (
        [[84.3, 104.3, 91.7], [80.0, 173.7, 66.0], [110.0, 114.7, 94.7]],
        [[84.3, 104.3, 91.7], [80.0, 170.0, 66.0], [110.0, 114.7, 94.7]],
    ),
    ("disc", "moving left", 0, False, False): (
        [[66.3, 73.3, 58.3], [66.3, 47.7, 88.3], [93.3, 62.3, 208.3]],
        [[66.3, 73.3, 58.3], [66.3, 47.7, 88.3], [159.7, 62.3, 79.7]],
    ),
}


@pytest.mark.parametrize("video", EARLIER, ids=lambda video: video[0])
def test_videos_and_images_are_those_of_the_first_2_0_0(video):
    shape, movement, *seed = video
    frames, _ = moving_shapes.render(shape, movement, np.random.default_rng(seed))
    found = frames[::16, 10::18, 10::18].mean(-1)
    np.testing.assert_allclose(found, EARLIER[video], atol=1.1)  # A value rounded otherwise.


@pytest.mark.parametrize("config", ["videos", "images", "videos_tvl1"])
def test_names_and_seeds_of_videos_and_images_are_those_of_the_first_2_0_0(config):
    moving = config != "images"
    last = moving_shapes.samples(config, "train", 2)[-1]
    number, label = (47, "cross turning anticlockwise") if moving else (7, "cross")
    assert last == (f"train{number:05d}", label, [number, True, moving])
    first = moving_shapes.samples(config, "validation", 2)[0]
    assert first.id == "validation00000" and first.seed == [0, False, moving]


def test_each_transfer_split_trains_on_another_third_and_tests_on_the_rest():
    trained, per_class = [], moving_shapes.CLIPS_PER_CLASS["transfer_1"]
    for config in moving_shapes.TRANSFER:
        train, test = (
            moving_shapes.samples(config, split, per_class[split]) for split in ("train", "test")
        )
        assert (len(train), len(test)) == (480, 960)
        seeds = [{(sample.label, *sample.seed) for sample in part} for part in (train, test)]
        assert not seeds[0] & seeds[1] and len(seeds[0] | seeds[1]) == 1440
        for part, count in ((train, 20), (test, 40)):
            labels = [sample.label for sample in part]
            assert {labels.count(label) for label in labels} == {count}
        trained.append(seeds[0])
    assert len(set.union(*trained)) == 1440


OTHER = list(other_shapes.MOVEMENTS)


@pytest.mark.parametrize("shape", other_shapes.SHAPES)
def test_the_first_frame_of_other_shapes_does_not_depend_on_the_movement(shape):
    videos = [
        other_shapes.render(shape, movement, np.random.default_rng(3), 2, 56)[0]
        for movement in OTHER
    ]
    for other in videos[1:]:
        np.testing.assert_array_equal(other[0], videos[0][0])
        assert (other[1] != videos[0][1]).any()


@pytest.mark.parametrize("movement", OTHER)
@pytest.mark.parametrize("shape", other_shapes.SHAPES)
def test_flow_of_other_shapes_says_where_their_pixels_go(shape, movement):
    for seed in range(2):
        frames, flow = other_shapes.render(shape, movement, np.random.default_rng(seed), 32, 56)
        assert flow.shape == (*frames.shape[:3], 2) and (flow[-1] != 0).any()
        right, opposite, still = (
            np.median(errors(frames, flow, sign * flow)) for sign in (1, -1, 0)
        )
        assert right < 10 and opposite > 1.2 * right and still > right


def test_movements_of_other_shapes_are_pairs_of_opposites_and_shapes_and_movements_are_others():
    assert not set(other_shapes.SHAPES) & set(moving_shapes.SHAPES)
    assert not set(OTHER) & set(MOVEMENTS)
    for one, other in zip(OTHER[::2], OTHER[1::2], strict=True):
        pair = np.array([other_shapes.MOVEMENTS[one], other_shapes.MOVEMENTS[other]])
        np.testing.assert_array_equal(pair[0], -pair[1])


@pytest.mark.slow
def test_videos_with_tv_l1_flow_are_those_with_the_renderers(tmp_path, monkeypatch):
    configs = "videos", "videos_tvl1"
    for name in configs:
        classes = ["cross moving left", "disc moving up"]
        monkeypatch.setitem(moving_shapes.CLASSES, name, classes)
        monkeypatch.setitem(moving_shapes.CLIPS_PER_CLASS, name, {"validation": 1})
    exact, computed = (
        datasets.prepared(f"moving_shapes/{name}", str(tmp_path)) for name in configs
    )
    assert exact.flow_recipe is None and computed.flow_recipe["preset"] == "fast"
    for one, other in zip(exact.records("validation"), computed.records("validation"), strict=True):
        assert one["video"] == other["video"] and one["label"] == other["label"]
        flows = [
            pixels.MAX_FLOW * pixels.to_unit(video.decode(record["flow"], stream="flow"))
            for record in (one, other)
        ]
        moving = abs(flows[0]).max(-1) > 0.6
        # In the movement's direction, but by no means equal.
        along = (flows[0] * flows[1]).sum(-1)[moving] / (flows[0] ** 2).sum(-1)[moving]
        assert 0.2 < np.median(along) < 1.2
        assert abs(flows[0] - flows[1])[moving].mean() > 0.05
