"""The flow of whole videos, a few frames in memory at a time. Light too: whoever has frames need not decode."""

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
    """Yields the flow from each frame of a video to the next, f32 [H, W, 2] in pixels, as many as there are frames.

    The last frame, which has no next one, gets the flow of the one before; of a single frame it is 0. Batches are
    computed on all devices of this process, while frames are decoded and flow is used.

    Args:
      frames: grey, uint8 [H, W], one at least; see `video.grey`.
      settings: of TV-L1.
      batch_size: pairs at a time; None: 8 on a CPU, 64 elsewhere.
      threads: batches at a time; None: 2, on a CPU as many as there are cores.

    Raises:
      ValueError: there are no frames, or other ones.
    """
    on_cpu, devices = jax.default_backend() == "cpu", jax.local_device_count()
    size = -(-(batch_size or (8 if on_cpu else 64)) // devices) * devices
    frames = check_frame_sizes(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("flow: no frames")

    def batches() -> Iterator[list[np.ndarray]]:
        """`size` + 1 frames or, at the end, what is left; the last of one is the first of the next."""
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
        stack = np.stack(
            batch + batch[-1:] * (size - pairs)
        )  # Nothing moves in the pairs that are added.
        return np.asarray(compiled_program((size, *first.shape), settings)(stack[:-1], stack[1:]))[
            :pairs
        ]

    last = np.zeros((*first.shape, 2), np.float32)
    for last in itertools.chain.from_iterable(
        prefetch(flow, batches(), threads or (usable_cores() if on_cpu else 2))
    ):
        yield last
    yield last


def check_frame_sizes(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, if they are uint8 [H, W] and all of one size."""
    size = None
    for frame in frames:
        size = frame.shape if size is None else size
        if frame.dtype != np.uint8 or frame.ndim != 2 or frame.shape != size:
            wanted = f"{size}" if len(size) == 2 else "[H, W]"
            raise ValueError(f"flow: a frame of {frame.dtype} {frame.shape}, wanted uint8 {wanted}")
        yield frame


KEPT = 8  # Programs: one for a size of frames, of 40 MB.
_programs: dict[tuple, concurrent.futures.Future] = {}
_lock = threading.Lock()


def compiled_program(shape: tuple[int, ...], settings: TVL1) -> Callable:
    """The program for batches of pairs of one shape. Threads that want the same one wait for one of them to compile it."""
    key = shape, settings
    with _lock:
        program = _programs.pop(key, None)
        is_new = program is None
        _programs[key] = program = concurrent.futures.Future() if program is None else program
        for oldest in list(_programs)[:-KEPT]:
            del _programs[oldest]
    if is_new:
        try:
            program.set_result(_compile(shape, settings))
        except BaseException as error:
            with _lock:  # The next video of this size may have the memory that this one lacked.
                _programs.pop(key, None)
            program.set_exception(error)
            raise
    return program.result()


def _compile(shape: tuple[int, ...], settings: TVL1) -> Callable:
    """TV-L1 for batches of pairs of one shape, uint8, cut along their first axis over the devices."""
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
