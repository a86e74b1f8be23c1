import pathlib

import numpy as np
import pytest

from i3d_jax import data, video
from i3d_jax.datasets import clips, moving_shapes


@pytest.mark.parametrize("shape", moving_shapes.SHAPES)
def test_the_first_frame_does_not_depend_on_the_movement(shape):
    frames = [moving_shapes.render(shape, m, np.random.default_rng(3), frames=2) for m in moving_shapes.MOVEMENTS]
    for other in frames[1:]:
        np.testing.assert_array_equal(other[0], frames[0][0])
        assert (other[1] != frames[0][1]).any()


def centre(image, reference):
    """Centroid of the pixels that differ from a frame without the shape, as well as the median can tell it."""
    y, x = np.nonzero(np.abs(image.astype(int) - reference).sum(-1) > 60)
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("movement,direction", [(m, d[:2]) for m, d in moving_shapes.MOVEMENTS.items() if not d[2]])
def test_shapes_move_as_their_class_says_and_back_when_reversed(movement, direction):
    clip = moving_shapes.render("disc", movement, np.random.default_rng(1))
    reference = np.median(clip, 0)
    steps = np.diff([centre(frame, reference) for frame in clip], axis=0)
    steps = steps[np.abs(steps).max(1) < 4]  # Without the jumps from one side to the other.
    assert len(steps) > 20
    np.testing.assert_allclose(np.sign(np.rint(np.median(steps, 0))), direction)


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            moving_shapes, "CLIPS_PER_CLASS", {k: {"train": 2, "validation": 1} for k in ("videos", "images")}
        )
        return {name: data.prepared(f"moving_shapes/{name}", str(folder)) for name in ("videos", "images")}


def test_videos_are_prepared_as_records_of_h264(builders):
    builder = builders["videos"]
    assert builder.info.features["label"].names == moving_shapes.CLASSES["videos"]
    train, test = builder.records("train"), builder.records("validation")
    assert (len(train), len(test)) == (48, 24)
    assert sorted(record["label"] for record in test) == list(range(24))
    frames = video.decode(test[0]["video"])
    assert frames.shape == (test[0]["frames"], 56, 56, 3) == (32, 56, 56, 3)
    assert not {record["video"] for record in train} & {record["video"] for record in test}


def test_images_are_videos_of_one_frame_whose_class_is_the_shape(builders):
    builder = builders["images"]
    assert builder.info.features["label"].names == list(moving_shapes.SHAPES)
    assert video.decode(builder.records("train")[0]["video"]).shape == (1, 56, 56, 3)


def test_raw_videos_lie_in_kinetics_layout_with_its_csv(builders):
    data_dir = pathlib.Path(builders["videos"].data_path).parents[2]
    folder = data_dir / "downloads" / "moving_shapes" / "videos" / "1.0.0"
    found = clips.read_annotations(folder / "train.csv", folder)
    assert len(found) == 48 and all(clip.path.exists() for clip in found)
    assert found[0].path.relative_to(folder).as_posix() == "train/disc moving left/shapes00000_000000_000002.mp4"


def test_an_annotation_file_without_a_column_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("label,youtube_id\nrun,abc\n")
    with pytest.raises(ValueError, match="x.csv: no column time_start, time_end, split"):
        clips.read_annotations(tmp_path / "x.csv", tmp_path)
