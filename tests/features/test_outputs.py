"""Files of features: what is in them, and how damage is found."""

import json
import resource
import signal

import numpy as np
import pytest

from i3d_jax.features import grids, outputs

SPANS = grids.Dense().spans(30)
ABOUT = {"settings": {"layer": "AvgPool"}, "video": {"name": "é\udcff.mp4", "frames": 30}}


def some(crops=()):
    rng = np.random.default_rng(0)
    streams = [
        (name, rng.normal(size=(3, *crops, 8)).astype(np.float32)) for name in ("rgb", "flow")
    ]
    return outputs.Features(streams, SPANS, 30, 25.0)


def test_npz_has_rows_and_their_times(tmp_path):
    found = some()
    outputs.write(tmp_path / "sub" / "a.b", "npz", found, ABOUT)
    with np.load(tmp_path / "sub" / "a.b.npz") as file:
        assert file.files == ["features", "start", "end", "centre", "frames", "about"]
        np.testing.assert_array_equal(file["features"][:, :8], found.streams[0][1])
        np.testing.assert_array_equal(file["features"][:, 8:], found.streams[1][1])
        assert file["features"].dtype == np.float32 and file["features"].shape == (3, 16)
        assert file["frames"].tolist() == [[0, 16], [8, 24], [16, 30]]
        assert file["start"].tolist() == [0, 0.32, 0.64]
        assert file["end"].tolist() == [0.64, 0.96, 1.2] and file["end"].dtype == np.float64
        assert file["centre"].tolist() == [0.32, 0.64, 0.92]
        assert json.loads(str(file["about"])) == ABOUT
    assert outputs.read_about(tmp_path / "sub" / "a.b", "npz") == ABOUT


def test_npy_has_the_names_and_times_of_video_features(tmp_path):
    found = some()
    outputs.write(tmp_path / "a", "npy", found, ABOUT)
    names = ["a_about.json", "a_flow.npy", "a_fps.npy", "a_rgb.npy", "a_timestamps_ms.npy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    np.testing.assert_array_equal(np.load(tmp_path / "a_flow.npy"), found.streams[1][1])
    assert np.load(tmp_path / "a_fps.npy") == 25 and np.load(tmp_path / "a_fps.npy").shape == ()
    # The time of the frame after the row.
    assert np.load(tmp_path / "a_timestamps_ms.npy").tolist() == [640, 960, 1200]
    assert outputs.read_about(tmp_path / "a", "npy") == ABOUT


def test_joint_is_one_array_and_may_be_transposed(tmp_path):
    found = some((10,))
    outputs.write(tmp_path / "a", "joint", found, ABOUT)
    outputs.write(tmp_path / "b", "joint-transposed", some(), ABOUT)
    assert np.load(tmp_path / "a.npy").shape == (3, 10, 16)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[..., 8:], found.streams[1][1])
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), some().features.T)


@pytest.mark.parametrize("form", outputs.FORMATS)
def test_the_same_features_are_the_same_bytes(form, tmp_path, monkeypatch):
    for name, now in ("one", 0.0), ("two", 1e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        outputs.write(tmp_path / name / "a", form, some(), ABOUT)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("form", outputs.FORMATS)
def test_any_damage_is_found(form, tmp_path):
    """A bit that flips, or an end that is missing; zip files have a few bytes without meaning."""
    outputs.write(tmp_path / "a", form, some(), ABOUT)
    rng = np.random.default_rng(0)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        found = []
        for place in rng.integers(0, len(whole), 60):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            about = outputs.read_about(tmp_path / "a", form)
            if path.suffix == ".npy":
                assert about is None
            found.append(about is None or about != ABOUT)
        if path.suffix == ".npz":
            assert np.mean(found) > 0.5
            path.write_bytes(whole[: whole.index(b"end.npy") - 200])
            assert outputs.read_about(tmp_path / "a", form) is None
        for length in 0, 1, len(whole) // 2, len(whole) - 2:
            path.write_bytes(whole[:length])
            assert outputs.read_about(tmp_path / "a", form) is None
        path.write_bytes(whole)
        assert outputs.read_about(tmp_path / "a", form) == ABOUT
        path.unlink()
        assert outputs.read_about(tmp_path / "a", form) is None
        path.write_bytes(whole)


def test_damaged_values_in_an_npz_are_found(tmp_path):
    outputs.write(tmp_path / "a", "npz", some(), ABOUT)
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    place = whole.index(some().features[0].tobytes())
    for offset in range(0, some().features.nbytes, 7):
        damaged = bytearray(whole)
        damaged[place + offset] ^= 4
        path.write_bytes(damaged)
        assert outputs.read_about(tmp_path / "a", "npz") is None


@pytest.mark.parametrize("form", outputs.FORMATS)
def test_without_space_an_error_names_the_file_and_nothing_is_left(form, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            outputs.write(tmp_path / "a", form, some(), ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(raised.value.filename).startswith(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []
