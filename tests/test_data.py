import itertools

import numpy as np
import pytest

from i3d_jax import data, video


@pytest.fixture(scope="module")
def source():
    """Eleven records of numbered videos; every third is shorter than a clip."""
    records = []
    for label in range(11):
        count = 6 if label % 3 == 0 else 24
        frames = np.zeros((count, 40, 48, 3), np.uint8)
        frames[...] = (np.arange(count) * 8 + 20)[:, None, None, None]
        frames[:, :, :24] += 10  # The left half is brighter.
        records.append({"video": video.encode(frames), "label": label, "frames": count, "id": str(label)})
    return records


def take(source, count, **options):
    options = {"batch_size": 4, "seed": 0, "frames": 8, "crop": 32, **options}
    return list(itertools.islice(data.train_batches(source, **options), count))


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_clips_have_their_shapes_and_types(source):
    (batch,) = take(source, 1)
    assert batch["video"].shape == (4, 8, 32, 32, 3) and batch["video"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32


def test_a_resumed_run_gets_the_batches_it_would_have_got(source):
    assert_equal(take(source, 3, start=5), take(source, 8)[5:])


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_nothing(source, threads):
    assert_equal(take(source, 6, threads=threads), take(source, 6, threads=2))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_clips_that_one_process_gets(source, processes):
    one = take(source, 6)
    parts = [take(source, 6, process=p, processes=processes) for p in range(processes)]
    for step in range(6):
        together = {name: np.concatenate([part[step][name] for part in parts]) for name in one[step]}
        assert_equal([together], [one[step]])


def test_every_clip_comes_once_an_epoch_in_an_order_of_its_own(source):
    labels = np.concatenate([batch["label"] for batch in take(source, 22, batch_size=1)])
    assert sorted(labels[:11]) == sorted(labels[11:]) == list(range(11))
    assert labels[:11].tolist() != labels[11:].tolist()
    assert take(source, 3, seed=1)[0]["label"].tolist() != take(source, 3)[0]["label"].tolist()


def test_start_crop_and_flip_are_random_and_the_same_over_a_clip(source):
    clips = [clip for batch in take(source[1:2], 16) for clip in batch["video"]]
    levels = {int(clip[0].mean()) for clip in clips}
    assert len(levels) > 8  # Starts differ, among 17.
    brighter_left = [bool(clip[0, :, :4].mean() > clip[0, :, -4:].mean()) for clip in clips]
    assert 16 < sum(brighter_left) < 48
    for clip, left in zip(clips, brighter_left, strict=True):
        assert all((frame[:, :4].mean() > frame[:, -4:].mean()) == left for frame in clip)
    unflipped = [clip for batch in take(source[1:2], 4, flip=False) for clip in batch["video"]]
    assert all(clip[0, :, :4].mean() > clip[0, :, -4:].mean() for clip in unflipped)


def test_short_videos_are_looped(source):
    (batch,) = take(source[:1], 1, batch_size=1)
    means = batch["video"][0].mean((1, 2, 3))
    np.testing.assert_allclose(means[6:8], means[:2], atol=1)
    assert means[5] - means[0] == pytest.approx(40, abs=3)


def test_test_batches_hold_every_record_once_and_padding_of_weight_zero(source):
    batches = list(data.test_batches(source, batch_size=4, frames=8, crop=32))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 4]
    assert np.concatenate([batch["label"] for batch in batches])[:11].tolist() == list(range(11))
    assert np.concatenate([batch["weight"] for batch in batches]).tolist() == [1] * 11 + [0]
    frames = video.decode(source[1]["video"], frames=8)
    np.testing.assert_array_equal(batches[0]["video"][1], frames[:, 4:36, 8:40])


def test_unequal_shares_and_unknown_data_sets_are_named(source):
    with pytest.raises(ValueError, match="batch of 4 clips cannot be cut into 3"):
        take(source, 1, processes=3)
    with pytest.raises(ValueError, match="no data set is called 'kinetix/400'; there are moving_shapes/videos, "):
        data.builder("kinetix/400")
