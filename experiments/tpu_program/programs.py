"""The programs of a run, lowered for a mesh of devices that need not exist."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax import flow, models
from i3d_jax.datasets import pipeline
from i3d_jax.evaluation.programs import logits_of_whole
from i3d_jax.training import loop, optimizers
from i3d_jax.training.step import initial_state
from i3d_jax.video import planes

PROGRAMS = "forward", "train", "evaluate", "flow"
FLOW_SIZE = 256, 340  # Height and width of a Kinetics video's frames in the records.


def lower(
    program: str, config: dict[str, Any], mesh: Mesh, clips: int, num_classes: int
) -> jax.stages.Lowered:
    """A program, lowered for a mesh whose one axis holds the batch.

    Args:
      program: "forward" is the network on training clips, as at test, from floats to logits.
        "train" is the loop's step: packed clips, all micro-batches, optimizer, donated state.
        "evaluate" is the paper's test of whole videos. "flow" is TV-L1 on pairs of frames.
      config: arguments of `loop.train`, those with defaults included.
      mesh: of the devices.
      clips: per device; pairs of frames for "flow".
      num_classes: of the data set.
    """
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    batch_size = clips * mesh.size
    if program == "flow":
        return _flow(mesh, cut, batch_size)
    config = config | {"batch_size": batch_size}
    options = {name: config[name] for name in ("norm_group_size", "remat", "freeze_backbone")}
    network = models.build(num_classes=num_classes, **options | config["model"])
    train_streams = _streams(config["train_clips"])
    crop = config["train_clips"]["crop"]
    example = models.input_shapes(train_streams, crop)
    variables = jax.eval_shape(network.init, jax.random.key(0), example)
    if program == "train":
        _check_groups(config, clips)
        tx, _ = optimizers.sgd(
            batch_size=batch_size,
            only="Logits" if config["freeze_backbone"] else None,
            **config["optimizer"],
        )
        state = jax.eval_shape(
            lambda variables: initial_state(variables, tx, config["ema_decay"] is not None),
            variables,
        )
        batch = _packed(train_streams, crop, batch_size)
        batch["label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        step = loop.update_function(config, network, tx, mesh.size)
        key = jax.eval_shape(lambda: jax.random.key(0))
        arguments = _placed(whole, state), _placed(cut, batch), _placed(whole, key)
        return jax.jit(step, donate_argnums=0, out_shardings=whole).lower(*arguments)
    if program == "evaluate":
        clips_at_test = config["eval_clips"]
        streams = _streams(clips_at_test)
        frames = {stream: frames for stream, (frames, _) in streams.items()}
        ticks = network.timing.ticks(frames, frames)
        taken = {stream: (ticks * network.timing.frames(stream), 1) for stream in streams}
        batch = _packed(taken, clips_at_test["crop"], batch_size)
        function = functools.partial(logits_of_whole, network=network)
    else:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), example
        )
        function = network.apply
    arguments = _placed(whole, variables), _placed(cut, batch)
    return jax.jit(function, out_shardings=whole if program == "evaluate" else cut).lower(
        *arguments
    )


def step_of_clips(program: str, config: dict[str, Any]) -> int:
    """What the clips per chip are a multiple of, where one can choose.

    In training these are whole groups of batch norm. Tiles of arrays in a TPU's memory are eight
    clips high. The test has few clips of many frames.
    """
    if program == "train":
        return math.lcm(whole_groups(config), 1 if config["norm_group_size"] else 8)
    return 1 if program == "evaluate" else 8


def whole_groups(config: dict[str, Any]) -> int:
    """What the clips per chip must be a multiple of in training."""
    return config["grad_accum_steps"] * (config["norm_group_size"] or 1)


def _check_groups(config: dict[str, Any], clips: int) -> None:
    """Raises a ValueError unless a chip's part of every micro-batch is whole groups."""
    parts, group = config["grad_accum_steps"], config["norm_group_size"]
    whole = whole_groups(config)
    if clips % whole:
        raise ValueError(
            f"{clips} clips per chip: wanted a multiple of {whole}, whole groups of "
            f"batch norm (norm_group_size {group}) in {parts} micro-batches (grad_accum_steps)"
        )


def _flow(mesh: Mesh, cut: NamedSharding, pairs: int) -> jax.stages.Lowered:
    # Pairs stop by themselves: on its own, each device's loops end with its own pairs.
    function = jax.shard_map(
        flow.tv_l1,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    images = jax.ShapeDtypeStruct((pairs, *FLOW_SIZE), jnp.uint8, sharding=cut)
    return jax.jit(function).lower(images, images)


def _streams(clips: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return pipeline.streams(clips.get("rgb"), clips.get("flow"))


def _packed(streams: dict[str, tuple[int, int]], crop: int, batch: int) -> dict[str, Any]:
    """The shapes of packed clips, as `planes.unpack` takes them."""
    shapes = {
        stream: jax.ShapeDtypeStruct((batch, frames, *planes.packed_shape(stream, crop)), jnp.uint8)
        for stream, (frames, _) in streams.items()
    }
    return shapes | {
        "corner": jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        "mirrored": jax.ShapeDtypeStruct((batch,), jnp.bool_),
    }


def _placed(sharding: NamedSharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
