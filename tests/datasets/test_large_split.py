"""A split larger than 1000 MiB, above which TFDS's own writer needs TensorFlow."""

import importlib.util

import numpy as np
import pytest

from i3d_jax import datasets
from i3d_jax.datasets import annotations, clips, pipeline
from i3d_jax.video import h264, planes

NUMBER, PADDING = 18, 2**26


@pytest.mark.slow
def test_a_split_of_more_than_1000_mib_is_written_and_read_without_tensorflow(
    tmp_path, monkeypatch
):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed here")
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3)).astype(np.uint8)
    (tmp_path / "videos").mkdir()
    rows = []
    for number in range(NUMBER):
        path = tmp_path / "videos" / annotations.file_name(f"clip{number:05d}", 0, 1)
        path.write_bytes(h264.encode(frames))
        rows.append(
            dict(
                zip(annotations.COLUMNS, ("yoga", f"clip{number:05d}", 0, 1, "train"), strict=True)
            )
        )
    annotations.write_kinetics(tmp_path / "train.csv", rows)
    transcode = h264.transcode

    def padded(path, **options):
        """The transcoded video, with bytes after it that belong to no MP4 box."""
        found = transcode(path, **options)
        noise = np.random.default_rng([ord(c) for c in str(path)]).bytes(PADDING)
        return found._replace(data=found.data + (8 + PADDING).to_bytes(4, "big") + b"free" + noise)

    monkeypatch.setattr(h264, "transcode", padded)
    source = clips.Source(tmp_path / "videos", (tmp_path / "train.csv",))
    datasets.builder("kinetics/400", str(tmp_path / "data"), source=source).prepare()
    monkeypatch.setattr(h264, "transcode", transcode)

    builder = datasets.prepared("kinetics/400", str(tmp_path / "data"))
    assert builder.info.splits["train"].num_bytes > 1000 * 2**20
    records = builder.records("train")
    ids = set()
    for record in records:
        path = tmp_path / "videos" / annotations.file_name(record["id"].partition("_")[0], 0, 1)
        assert record["video"] == padded(str(path), short_side=256, seconds=1.0).data
        ids.add(record["id"])
    assert len(ids) == len(records) == NUMBER
    batch = next(pipeline.train_batches(records, batch_size=4, seed=0, crop=224, rgb=(8, 1)))
    assert planes.unpack(batch)["rgb"].shape == (4, 8, 224, 224, 3)
