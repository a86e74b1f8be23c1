"""The flow of whole videos, a few frames in memory at a time; needs no video decoder."""

import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from i3d_jax.flow.tvl1 import OPENCV, TVL1, tv_l1
from i3d_jax.prefetch import prefetch, usable_cores


def flow_of_frames(
    frames: Iterable[np.ndarray],
    settings: TVL1 = OPENCV,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the flow from each frame of a video to the next, f32 [H, W, 2] in pixels.

    There are as many as frames: the last frame gets the flow of the one before it. The flow of a
    single frame is 0. Batches run on all devices of this process, while frames are decoded and
    flow is used.

    Args:
      frames: grey, uint8 [H, W], at least one (see `video.grey`).
      settings: parameters of TV-L1.
      batch_size: pairs per batch; None is 8 on CPUs and 64 elsewhere.
      threads: batches at a time; None is the number of cores on CPUs and 2 elsewhere.

    Raises:
      ValueError: there are no frames, or they are of another kind.
    """
    on_cpu, devices = jax.default_backend() == "cpu", jax.local_device_count()
    size = -(-(batch_size or (8 if on_cpu else 64)) // devices) * devices
    frames = check_frame_sizes(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("flow: no frames")

    def batches() -> Iterator[list[np.ndarray]]:
        """Batches of `size` + 1 frames, fewer at the end; each starts with the last one's end."""
        batch = [first]
        for frame in frames:
            batch.append(frame)
            if len(batch) > size:
                yield batch
                batch = [frame]
        if len(batch) > 1:
            yield batch

    def flow(batch: list[np.ndarray]) -> np.ndarray:
        pairs = len(batch) - 1
        # The last batch is filled up with pairs of equal frames.
        stack = np.stack(batch + batch[-1:] * (size - pairs))
        program = compiled_program((size, *first.shape), settings)
        return np.asarray(program(stack[:-1], stack[1:]))[:pairs]

    last = np.zeros((*first.shape, 2), np.float32)
    for last in itertools.chain.from_iterable(
        prefetch(flow, batches(), threads or (usable_cores() if on_cpu else 2))
    ):
        yield last
    yield last


def check_frame_sizes(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the frames; raises a ValueError unless all are uint8 [H, W] of one size."""
    size = None
    for frame in frames:
        size = frame.shape if size is None else size
        if frame.dtype != np.uint8 or frame.ndim != 2 or frame.shape != size:
            wanted = f"{size}" if len(size) == 2 else "[H, W]"
            raise ValueError(f"flow: a frame of {frame.dtype} {frame.shape}, wanted uint8 {wanted}")
        yield frame


MAX_PROGRAMS = 8  # One program per size of frames, of 40 MB each.
_programs: dict[tuple, concurrent.futures.Future] = {}
_lock = threading.Lock()


def compiled_program(shape: tuple[int, ...], settings: TVL1) -> Callable:
    """Returns the program for batches of one shape; if several threads want it, one compiles it."""
    key = shape, settings
    with _lock:
        program = _programs.pop(key, None)
        is_new = program is None
        _programs[key] = program = concurrent.futures.Future() if program is None else program
        for oldest in list(_programs)[:-MAX_PROGRAMS]:
            del _programs[oldest]
    if is_new:
        try:
            program.set_result(_compile(shape, settings))
        except BaseException as error:
            with _lock:  # A later video of this size may find the memory that was lacking.
                _programs.pop(key, None)
            program.set_exception(error)
            raise
    return program.result()


def _compile(shape: tuple[int, ...], settings: TVL1) -> Callable:
    """Compiles TV-L1 for batches of uint8 pairs, split along the first axis over the devices."""
    cut = PartitionSpec("data")
    function = jax.shard_map(
        functools.partial(tv_l1, settings=settings),
        mesh=Mesh(np.array(jax.local_devices()), ("data",)),
        in_specs=cut,
        out_specs=cut,
        check_vma=False,
    )
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    return jax.jit(function).lower(images, images).compile()
