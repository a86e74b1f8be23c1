r"""I3D from Kinetics to UCF-101 and HMDB-51: table 4 of the paper. Not run: it takes the data sets, and a few GPUs.

    python -m i3d_jax.main --config=configs/transfer.py:full,ucf101/1 --workdir=runs/ucf101 \
        --config.init_from=rgb_imagenet --config.dataset.data_dir=data

The argument is HOW,DATASET or HOW,DATASET,flow. HOW is fixed (Kinetics' features, and a new last layer with the dropout before
it), full (all is trained on) or original (no Kinetics: --config.init_from=inception_v1.ckpt, or none). DATASET is ucf101/1 to /3,
hmdb51/1 to /3, or own/videos: your own, tested on their split test, or as --config.test_split=validation says. Two-Stream I3D is
the runs of both streams, fused by `python -m i3d_jax.evaluate --fuse`. Expected top-1 on the first splits, both streams, with ImageNet: ucf101 97.7, 98.0 and 93.4 %;
hmdb51 79.7, 81.2 and 66.4 %.

The paper gives up to 5,000 steps on 16 GPUs. The batch (16 times the release's 6) and the rates are ours.
"""

from ml_collections import ConfigDict, config_dict

RATES = {"fixed": 0.1, "full": 0.01, "original": 0.03}


def get_config(run="full,ucf101/1"):
    how, _, data = run.partition(",")
    dataset, _, stream = data.partition(",")
    stream = stream or "rgb"
    if how not in RATES or not dataset or stream not in ("rgb", "flow"):
        raise ValueError(f"{run!r}, wanted HOW,DATASET or HOW,DATASET,flow, HOW one of {', '.join(RATES)}")
    size = dict(crop=224, short_side=config_dict.placeholder(int))
    return ConfigDict(
        dict(
            seed=0,
            steps=5000,
            batch_size=96,
            norm_group_size=6,
            grad_accum_steps=1,
            remat=False,
            freeze_backbone=how == "fixed",
            ema_decay=config_dict.placeholder(float),
            max_skipped_steps=10,
            log_every=10,
            checkpoint_every=500,
            max_to_keep=2,
            validate_every=config_dict.placeholder(int),
            train_split="train",
            test_split="test",
            validation_split=config_dict.placeholder(str),
            best_metric="top1",
            profile=(),
            model=dict(name="i3d", dropout=0.5, norm_decay=0.99, dtype="float32"),
            dataset=dict(name=dataset, data_dir=config_dict.placeholder(str)),
            train_clips=dict(flip=True, reverse=False, workers=8, threads=4, **size, **{stream: (64, 1)}),
            eval_clips=dict(batch_size=16, threads=16, **size, **{stream: (250, 1)}),
            optimizer=dict(
                lr=RATES[how],
                lr_batch_size=96,
                momentum=0.9,
                weight_decay=1e-7,
                warmup=0,
                milestones=((3000, 0.1), (4500, 0.01)),
            ),
            init_from=config_dict.placeholder(str),
        )
    )
