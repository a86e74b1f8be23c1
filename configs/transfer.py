r"""I3D from Kinetics to UCF-101, HMDB-51 or your own videos: table 4 of the paper.

    python -m i3d_jax.main --config=transfer:full,ucf101/1 --workdir=runs/ucf101 \
        --config.init_from=rgb_imagenet --config.dataset.data_dir=data

The argument is HOW,DATASET or HOW,DATASET,flow.

HOW is one of the paper's three:
    fixed     a linear probe: a new last layer, with dropout before it, on Kinetics' features
    full      everything is trained, from Kinetics' weights
    original  no Kinetics: --config.init_from=inception_v1.ckpt, or none

DATASET is ucf101/1 to ucf101/3, hmdb51/1 to hmdb51/3, or own/videos. Your own videos are tested on
their split "test"; --config.test_split=validation takes another.

For Two-Stream I3D train both streams, and fuse them by `python -m i3d_jax.evaluate --fuse`. The
paper's top-1 on the first splits, both streams, with ImageNet: UCF-101 97.7 (fixed), 98.0 (full),
93.4 % (original); HMDB-51 79.7, 81.2, 66.4 %. The paper takes up to 5,000 steps on 16 GPUs. The
batch (16 times the release's 6) and the learning rates are ours. Not run.
"""

from ml_collections import ConfigDict

LEARNING_RATES = {"fixed": 0.1, "full": 0.01, "original": 0.03}


def get_config(run="full,ucf101/1"):
    how, _, data = run.partition(",")
    dataset, _, stream = data.partition(",")
    stream = stream or "rgb"
    if how not in LEARNING_RATES or not dataset or stream not in ("rgb", "flow"):
        there = ", ".join(LEARNING_RATES)
        raise ValueError(f"{run!r}, wanted HOW,DATASET or HOW,DATASET,flow, HOW one of {there}")
    return ConfigDict(
        dict(
            steps=5000,
            batch_size=96,
            norm_group_size=6,
            freeze_backbone=how == "fixed",
            checkpoint_every=500,
            test_split="test",
            model=dict(name="i3d", norm_decay=0.99),
            dataset=dict(name=dataset),
            train_clips=dict(crop=224, flip=True, workers=8, threads=4, **{stream: (64, 1)}),
            eval_clips=dict(crop=224, batch_size=16, threads=16, **{stream: (250, 1)}),
            optimizer=dict(
                lr=LEARNING_RATES[how], lr_batch_size=96, milestones=((3000, 0.1), (4500, 0.01))
            ),
        )
    )
