r"""The zoo on moving_shapes, each network inflated or copied from Inception-v1 trained on still shapes first.

    python -m i3d_jax.main --config=configs/moving_shapes.py --workdir=runs/i3d

The paper's recipe in miniature (section 2): images first, then videos. Without an argument: I3D, which trains the images'
network in its folder first. The other runs by argument, all from those weights:

    python -m i3d_jax.main --config=configs/moving_shapes.py:RUN --workdir=runs/RUN \
        --config.init_from=runs/i3d/pretrain/weights.safetensors

RUN is one of i3d_flow, two_stream, fused_two_stream, convnet_lstm, c3d (which starts from nothing: leave --config.init_from out),
frames (the 2-D network on single frames, for comparison), images (those alone; no --config.init_from either). Two-Stream I3D is
i3d and i3d_flow fused:

    python -m i3d_jax.evaluate --fuse results/i3d results/i3d_flow --out results/two_stream_i3d

The README has the results.
"""

from ml_collections import ConfigDict, config_dict

NETWORK = dict(width=0.25, dropout=0.0, norm_decay=0.95, dtype="float32")


def get_config(run="i3d"):
    if run not in RUNS:
        raise ValueError(f"no run is called {run!r}; there are {', '.join(RUNS)}")
    return ConfigDict(RUNS[run]())


def videos(model, streams, test_streams, steps=400, **changes):
    """A run on the videos; `streams` are of a training clip, `test_streams` the most of a video that has 32 frames."""
    # A mirrored "moving left" is no longer moving left.
    return common("moving_shapes/videos", model, steps, streams, test_streams, flip=False) | changes


def common(dataset, model, steps, streams, test_streams, flip):
    size = dict(crop=48, short_side=config_dict.placeholder(int))
    return dict(
        seed=0,
        steps=steps,
        batch_size=32,
        norm_group_size=config_dict.placeholder(int),
        grad_accum_steps=1,
        remat=False,
        freeze_backbone=False,
        ema_decay=config_dict.placeholder(float),
        max_skipped_steps=10,
        log_every=10,
        checkpoint_every=100,
        max_to_keep=2,
        validate_every=config_dict.placeholder(int),
        train_split="train",
        test_split="validation",
        validation_split=config_dict.placeholder(str),
        best_metric="top1",
        profile=(),
        model=dict(name=model, **NETWORK),
        dataset=dict(name=dataset, data_dir=config_dict.placeholder(str)),
        train_clips=dict(flip=flip, reverse=False, workers=0, threads=2, **size, **streams),
        eval_clips=dict(batch_size=32, threads=2, **size, **test_streams),
        optimizer=optimizer(steps),
        init_from=config_dict.placeholder(str),
    )


def optimizer(steps, lr=0.02):
    return dict(
        lr=lr,
        lr_batch_size=config_dict.placeholder(int),
        momentum=0.9,
        weight_decay=1e-4,
        warmup=20,
        milestones=((steps * 7 // 8, 0.1),),
    )


def i3d():
    return videos("i3d", dict(rgb=(16, 1)), dict(rgb=(32, 1)), pretrain=images())


def i3d_flow():
    return videos("i3d", dict(flow=(16, 1)), dict(flow=(32, 1)))


def two_stream():
    return videos("two_stream", dict(rgb=(1, 10), flow=(10, 1)), dict(rgb=(3, 10), flow=(30, 1)))


def fused_two_stream():
    return videos("fused_two_stream", dict(rgb=(3, 10), flow=(30, 1)), dict(rgb=(3, 10), flow=(30, 1)))


def convnet_lstm():
    # Where a shape is hardly shows in averaged features, and moves little from frame to frame: it takes far frames and time.
    run = videos("convnet_lstm", dict(rgb=(8, 4)), dict(rgb=(8, 4)), steps=2000)
    return run | dict(model=run["model"] | dict(norm_steps=8, norm_scale=1.0), optimizer=optimizer(2000, lr=0.05))


def c3d():
    return videos("c3d", dict(rgb=(16, 1)), dict(rgb=(32, 1)), init_from=None)


def frames():
    return videos("inception", dict(rgb=(1, 1)), dict(rgb=(32, 1)))


def images():
    run = common("moving_shapes/images", "inception", 400, dict(rgb=(1, 1)), dict(rgb=(1, 1)), flip=True)
    return run | dict(optimizer=optimizer(400) | dict(milestones=((320, 0.1),)))


RUNS = {run.__name__: run for run in (i3d, i3d_flow, two_stream, fused_two_stream, convnet_lstm, c3d, frames, images)}
