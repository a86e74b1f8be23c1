r"""I3D on moving_shapes, inflated from Inception-v1 that the same command trains on still shapes first.

    python -m i3d_jax.main --config=configs/moving_shapes.py --workdir=runs/i3d

The paper's recipe in miniature (section 2.4): images first, inflation, videos. Two more runs by argument: the same 2-D
network on single frames of the videos, for comparison, and the images alone.

    python -m i3d_jax.main --config=configs/moving_shapes.py:frames --workdir=runs/frames \
        --config.init=runs/i3d/pretrain/weights.safetensors
    python -m i3d_jax.main --config=configs/moving_shapes.py:images --workdir=runs/images

The README has the results.
"""

from ml_collections import ConfigDict, config_dict

NETWORK = dict(width=0.25, dropout=0.0, norm_decay=0.95)


def get_config(run="i3d"):
    return ConfigDict({"i3d": i3d, "frames": frames, "images": images}[run]())


def i3d():
    return dict(
        seed=0,
        steps=400,
        batch_size=32,
        checkpoint_every=100,
        model=dict(name="i3d", **NETWORK),
        dataset=dict(name="moving_shapes/videos", data_dir=config_dict.placeholder(str)),
        clips=dict(frames=16, crop=48, flip=False),  # A mirrored "moving left" is no longer moving left.
        test_clips=dict(frames=32, crop=48, batch_size=32),
        optimizer=dict(lr=0.02, momentum=0.9, weight_decay=1e-4, warmup=20, milestones=((350, 0.1),)),
        pretrain=images(),
    )


def frames():
    single = dict(model=dict(name="inception", **NETWORK), clips=dict(frames=1, crop=48, flip=False))
    return i3d() | single | dict(pretrain=None, init=config_dict.placeholder(str))


def images():
    return dict(
        seed=0,
        steps=400,
        batch_size=32,
        checkpoint_every=100,
        model=dict(name="inception", **NETWORK),
        dataset=dict(name="moving_shapes/images", data_dir=config_dict.placeholder(str)),
        clips=dict(frames=1, crop=48, flip=True),
        test_clips=dict(frames=1, crop=48, batch_size=32),
        optimizer=dict(lr=0.02, momentum=0.9, weight_decay=1e-4, warmup=20, milestones=((320, 0.1),)),
    )
