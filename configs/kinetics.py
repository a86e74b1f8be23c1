r"""The paper's networks and I3D-ResNet-50 on Kinetics-400. It takes a cluster. Not run.

    python -m i3d_jax.datasets prepare kinetics/400 --videos DIR \
        --annotations train.csv validate.csv --data-dir data
    python -m i3d_jax.main --config=kinetics:RUN --workdir=runs/RUN \
        --config.dataset.data_dir=data --config.init_from=inception_v1.ckpt

RUN is i3d_rgb or i3d_flow (the release's runs, which gave the published weights), or one of the
paper's section 2.5: two_stream, fused_two_stream, convnet_lstm, c3d. Leave --config.init_from out
for c3d, and to start any other from scratch. Networks that take flow need it prepared (--flow). The
paper's top-1 (table 2, with ImageNet): 71.1, 63.4, 65.6, 67.2, 63.3, 56.1 %.

RUN i3d_r50 is SlowFast's I3D_8x8_R50_IN1K: it starts from torchvision's ResNet-50,
--config.init_from=resnet50-0676ba61.pth, and has 118 epochs of 240,000 clips. The top-1 that is
published for the same network from scratch is 73.3 % (30 crops).

On 64 devices, a TPU pod's for one, these are the release's 64 replicas. On 8 GPUs the same run
takes --config.grad_accum_steps=8, on one GPU 64. experiments/launch has scripts for machines of all
kinds. --config.model.dtype=bfloat16 computes in bfloat16. With another --config.batch_size the
learning rate scales with it: it is for lr_batch_size clips.

Clips, crops and steps of the older networks are the paper's. Their batch size, dropout, weight
decay and batch norm are the release's, since the paper does not give them. The paper lowers their
learning rate when the validation loss saturates; here the steps are those of the release's RGB run,
scaled to 110,000. RUN,plateau does as the paper: it lowers the rate when the loss of a tenth of the
validation clips has not improved for 3,000 steps.
"""

from typing import Any

from ml_collections import ConfigDict


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


def kinetics(
    model, streams, test_streams, steps, milestones, crop=224, replicas=64, short_side=None
):
    size = dict(crop=crop) if short_side is None else dict(crop=crop, short_side=short_side)
    return dict(
        steps=steps,
        batch_size=6 * replicas,
        norm_group_size=6,  # Clips per replica of the release, which had statistics of its own.
        max_to_keep=3,
        validation_split="validation[:10%]",
        model=dict(name=model),
        dataset=dict(name="kinetics/400"),
        # For a host of 32 cores.
        train_clips=dict(flip=True, workers=8, threads=4, **size, **streams),
        eval_clips=dict(batch_size=64, threads=16, **size, **test_streams),
        optimizer=dict(lr=0.1, lr_batch_size=6 * replicas, milestones=milestones),
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
    return older(
        "fused_two_stream", dict(rgb=(5, 10), flow=(50, 1)), dict(rgb=(25, 10), flow=(250, 1))
    )


def convnet_lstm():
    return older("convnet_lstm", dict(rgb=(25, 5)), dict(rgb=(50, 5)))


def c3d():
    # Crops of 112 from a short side of 128, as in C3D; the paper gives the crop.
    return older(
        "c3d", dict(rgb=(16, 1)), dict(rgb=(240, 1)), crop=112, short_side=128, replicas=64
    )


def i3d_r50():
    batch = 64  # On 8 GPUs, each with statistics of its own.
    epoch = 240_000 // batch
    milestones = ((44 * epoch, 0.1), (88 * epoch, 0.01))
    run = kinetics("i3d_r50", dict(rgb=(8, 8)), dict(rgb=(32, 8)), 118 * epoch, milestones)
    optimizer = dict(lr=0.01, lr_batch_size=batch, weight_decay=1e-4, milestones=milestones)
    return run | dict(batch_size=batch, norm_group_size=8, optimizer=optimizer)


RUNS = {
    run.__name__: run
    for run in (i3d_rgb, i3d_flow, two_stream, fused_two_stream, convnet_lstm, c3d, i3d_r50)
}
