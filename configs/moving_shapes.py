r"""The zoo on moving_shapes: small videos that are rendered on your machine.

    python -m i3d_jax.main --config=moving_shapes --workdir=runs/i3d

Without an argument it is the paper's recipe in miniature (section 2): it trains Inception-v1 on
still images of shapes, inflates it into I3D, and trains that on videos. The other runs start from
the same image weights:

    python -m i3d_jax.main --config=moving_shapes:RUN --workdir=runs/RUN \
        --config.init_from=runs/i3d/pretrain/weights.safetensors

RUN is one of i3d_flow, two_stream, fused_two_stream, convnet_lstm, frames (the image network on
single frames, for comparison), c3d, images and resnet; leave --config.init_from out for the last
three. resnet trains a ResNet-14 on still images, inflates it, and trains that on videos.
Two-Stream I3D is i3d and i3d_flow, fused:

    python -m i3d_jax.evaluate --fuse results/i3d results/i3d_flow --out results/two_stream_i3d
"""

from ml_collections import ConfigDict

NETWORK = dict(width=0.25, dropout=0.0, norm_decay=0.95)


def get_config(run="i3d"):
    if run not in RUNS:
        raise ValueError(f"no run is called {run!r}; there are {', '.join(RUNS)}")
    return ConfigDict(RUNS[run]())


def videos(model, streams, test_streams, steps=400, **changes):
    """A run on the videos, which have 32 frames.

    Args:
      model: the network's name.
      streams: frames of a training clip, and the step between them.
      test_streams: the same of a test video, at most.
      steps: of the run.
      changes: other keys of the config.
    """
    # A mirrored "moving left" is no longer moving left.
    return common("moving_shapes/videos", model, steps, streams, test_streams, flip=False) | changes


def common(dataset, model, steps, streams, test_streams, flip):
    return dict(
        steps=steps,
        batch_size=32,
        checkpoint_every=100,
        model=dict(name=model, **NETWORK),
        dataset=dict(name=dataset),
        train_clips=dict(crop=48, flip=flip, **streams),
        eval_clips=dict(crop=48, batch_size=32, **test_streams),
        optimizer=optimizer(steps),
    )


def optimizer(steps, lr=0.02):
    return dict(lr=lr, weight_decay=1e-4, warmup=20, milestones=((steps * 7 // 8, 0.1),))


def i3d():
    return videos("i3d", dict(rgb=(16, 1)), dict(rgb=(32, 1)), pretrain=images())


def i3d_flow():
    return videos("i3d", dict(flow=(16, 1)), dict(flow=(32, 1)))


def two_stream():
    return videos("two_stream", dict(rgb=(1, 10), flow=(10, 1)), dict(rgb=(3, 10), flow=(30, 1)))


def fused_two_stream():
    return videos(
        "fused_two_stream", dict(rgb=(3, 10), flow=(30, 1)), dict(rgb=(3, 10), flow=(30, 1))
    )


def convnet_lstm():
    # Averaged features hardly show where a shape is, and it moves little between frames: the LSTM
    # needs frames that are far apart, and more steps.
    run = videos("convnet_lstm", dict(rgb=(8, 4)), dict(rgb=(8, 4)), steps=2000)
    return run | dict(
        model=run["model"] | dict(norm_steps=8, norm_scale=1.0), optimizer=optimizer(2000, lr=0.05)
    )


def c3d():
    return videos("c3d", dict(rgb=(16, 1)), dict(rgb=(32, 1)))


def resnet():
    run = with_options(videos("i3d_r50", dict(rgb=(16, 1)), dict(rgb=(32, 1))), depth=14)
    return run | dict(pretrain=with_options(images("resnet50"), depth=14))


def with_options(run, **options):
    return run | dict(model=run["model"] | options)


def frames():
    return videos("inception", dict(rgb=(1, 1)), dict(rgb=(32, 1)))


def images(model="inception"):
    run = common("moving_shapes/images", model, 400, dict(rgb=(1, 1)), dict(rgb=(1, 1)), flip=True)
    return run | dict(optimizer=optimizer(400) | dict(milestones=((320, 0.1),)))


RUNS = {
    run.__name__: run
    for run in (
        i3d,
        i3d_flow,
        two_stream,
        fused_two_stream,
        convnet_lstm,
        c3d,
        frames,
        images,
        resnet,
    )
}
