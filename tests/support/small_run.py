"""A config of a run of seconds, for tests of the command line: C3D, which is compiled soonest, on a few moving shapes."""

import pathlib
import socket

CONFIG = """
from i3d_jax.datasets import moving_shapes

moving_shapes.CLIPS_PER_CLASS = {kind: {"train": 2, "validation": 1} for kind in ("videos", "images")}


def get_config():
    from ml_collections import ConfigDict

    return ConfigDict(
        dict(
            steps=24,
            batch_size=8,
            norm_group_size=2,
            model=dict(name="c3d", width=0.1, dropout=0.5, norm_decay=0.9),
            dataset=dict(name="moving_shapes/videos", data_dir="DATA"),
            train_clips=dict(rgb=(16, 1), crop=32, flip=True),
            eval_clips=dict(rgb=(16, 1), crop=32, batch_size=8),
            optimizer=dict(lr=1e-4),
            log_every=1,
            checkpoint_every=4,
            validate_every=12,
        )
    )
"""


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes it into a folder, where its data will be too."""
    path = folder / "config.py"
    path.write_text(CONFIG.replace("DATA", str(folder / "data")))
    return path


def free_port() -> int:
    """One on which the processes of a run can meet."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
