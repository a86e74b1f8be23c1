r"""The paper's networks on Kinetics-400. Not run: it takes a cluster.

    python -m i3d_jax.datasets prepare kinetics/400 --videos DIR --annotations train.csv validate.csv --out data
    python -m i3d_jax.main --config=configs/kinetics.py:RUN --workdir=runs/RUN --config.dataset.data_dir=data \
        --config.init_from=inception_v1.ckpt

On 64 devices, a TPU pod's for one, these are the release's 64 replicas. The same run on 8 GPUs takes --config.grad_accum_steps=8,
on one GPU 64; experiments/launch has the commands for machines of all kinds. --config.model.dtype=bfloat16 computes in
that. With fewer clips per step, --config.batch_size=96 for one, the rate is scaled: lr is of lr_batch_size clips.

The networks that see flow need it prepared too: --flow computes it.

RUN is one of i3d_rgb, i3d_flow (the release's runs, which gave the published weights), two_stream, fused_two_stream,
convnet_lstm, c3d (the paper's section 2.5; leave --config.init_from out for c3d, and to start any other from scratch). The
expected top-1 are table 2's: 71.1, 63.4, 65.6, 67.2, 63.3, 56.1 % with ImageNet first.

What is whose: clips, crops and steps of the older networks are the paper's; batch size, dropout, weight decay and
batch norm those of the release, for all, since the paper does not give them. The paper lowers the older networks' rate when the
validation loss saturates; the steps here are the release's RGB run's, scaled to 110,000. RUN,plateau lowers it when the loss
of a tenth of the validation clips has not improved for 3,000 steps.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config(run="i3d_rgb"):
    name, _, schedule = run.partition(",")
    if name not in RUNS:
        raise ValueError(f"no run is called {name!r}; there are {', '.join(RUNS)}")
    config: dict[str, Any] = RUNS[name]()
    if schedule == "plateau":
        config["optimizer"]["milestones"] = ()
        config |= dict(validate_every=1000, plateau=dict(factor=0.1, patience=3, threshold=0.001))
    elif schedule:
        raise ValueError(f"no schedule is called {schedule!r}; there is plateau")
    return ConfigDict(config)


def kinetics(model, streams, test_streams, steps, milestones, crop=224, replicas=64, short_side=None):
    short_side = config_dict.placeholder(int) if short_side is None else short_side  # As prepared.
    return dict(
        seed=0,
        steps=steps,
        batch_size=6 * replicas,
        norm_group_size=6,  # Clips per replica of the release; statistics are a replica's own.
        grad_accum_steps=1,  # Parts of a batch, one after another.
        remat=False,
        freeze_backbone=False,
        ema_decay=config_dict.placeholder(float),
        max_skipped_steps=10,
        log_every=10,
        checkpoint_every=1000,
        max_to_keep=3,
        validate_every=config_dict.placeholder(int),
        train_split="train",
        test_split="validation",
        validation_split="validation[:10%]",
        best_metric="top1",
        profile=(),
        model=dict(name=model, dropout=0.5, norm_decay=0.999, dtype="float32"),
        dataset=dict(name="kinetics/400", data_dir=config_dict.placeholder(str)),
        # For a host of 32 cores.
        train_clips=dict(crop=crop, flip=True, reverse=False, short_side=short_side, workers=8, threads=4, **streams),
        eval_clips=dict(crop=crop, batch_size=64, short_side=short_side, threads=16, **test_streams),
        optimizer=dict(
            lr=0.1, lr_batch_size=6 * replicas, momentum=0.9, weight_decay=1e-7, warmup=0, milestones=milestones
        ),
        init_from=config_dict.placeholder(str),
    )


def i3d_rgb():
    schedule = ((97_000, 0.1), (108_000, 0.01))
    return kinetics("i3d", dict(rgb=(64, 1)), dict(rgb=(250, 1)), 115_000, schedule)


def i3d_flow():
    # The release's restarted at the first rate after 115,000 steps.
    schedule = ((97_000, 0.1), (104_500, 0.01), (115_000, 1.0), (140_000, 0.1), (150_000, 0.01))
    return kinetics("i3d", dict(flow=(64, 1)), dict(flow=(250, 1)), 155_000, schedule)


def older(model, streams, test_streams, **options):
    schedule = ((93_000, 0.1), (103_000, 0.01))
    return kinetics(model, streams, test_streams, 110_000, schedule, **{"replicas": 32} | options)


def two_stream():
    return older("two_stream", dict(rgb=(1, 10), flow=(10, 1)), dict(rgb=(25, 10), flow=(250, 1)))


def fused_two_stream():
    return older("fused_two_stream", dict(rgb=(5, 10), flow=(50, 1)), dict(rgb=(25, 10), flow=(250, 1)))


def convnet_lstm():
    return older("convnet_lstm", dict(rgb=(25, 5)), dict(rgb=(50, 5)))


def c3d():
    # Crops of 112 from a short side of 128, as in C3D; the paper gives the crop.
    return older("c3d", dict(rgb=(16, 1)), dict(rgb=(240, 1)), crop=112, short_side=128, replicas=64)


RUNS = {run.__name__: run for run in (i3d_rgb, i3d_flow, two_stream, fused_two_stream, convnet_lstm, c3d)}
