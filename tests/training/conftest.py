"""A small data set and two small runs, which all tests of training share."""

import pytest

from i3d_jax import datasets
from i3d_jax.datasets import moving_shapes
from i3d_jax.training import loop


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The folder of a prepared data set: a few moving shapes."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    kinds = "videos", "images"
    counts = {kind: {"train": 2, "validation": 1} for kind in kinds}
    # Only preparing reads the counts, so other tests of the session keep the usual ones.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_shapes, "CLIPS_PER_CLASS", counts)
        for kind in kinds:
            datasets.prepared(f"moving_shapes/{kind}", folder)
    return folder


@pytest.fixture(scope="session")
def config(data_dir):
    """The config of a run of seconds: Inception-v1 on single frames."""
    return dict(
        steps=6,
        batch_size=8,
        model=dict(name="inception", width=0.1, dropout=0.5, norm_decay=0.9),
        dataset=dict(name="moving_shapes/videos", data_dir=data_dir),
        train_clips=dict(rgb=(1, 1), crop=32, flip=True),
        eval_clips=dict(rgb=(2, 1), crop=32, batch_size=10),
        optimizer=dict(lr=0.05, milestones=((4, 0.1),)),
        norm_group_size=4,
        log_every=1,
        checkpoint_every=2,
    )


@pytest.fixture(scope="session")
def finished_run(config, tmp_path_factory):
    """The folder of a run of `config`, and its result."""
    folder = tmp_path_factory.mktemp("finished_run")
    return folder, loop.train(str(folder), **config)


@pytest.fixture(scope="session")
def c3d_config(config):
    """`config` with C3D, which is traced and compiled in a quarter of the time."""
    changes = dict(
        model=dict(name="c3d"), train_clips=dict(rgb=(16, 1)), eval_clips=dict(rgb=(16, 1))
    )
    return config | {name: config[name] | change for name, change in changes.items()}


@pytest.fixture(scope="session")
def finished_c3d_run(c3d_config, tmp_path_factory):
    """The folder of a run of `c3d_config`, and its result."""
    folder = tmp_path_factory.mktemp("finished_c3d_run")
    return folder, loop.train(str(folder), **c3d_config)
