"""The paper's test: a network on whole videos, its predictions averaged as logits (paper, section 2 and table 1).

A network is convolutional over a video's first 10 seconds, or what its weights' description says (table 1's test
footprints: 250 frames, 240, 50, or 25 RGB frames with 250 of flow), centre-cropped; its predictions are averaged as
logits, of ConvNet+LSTM the last is taken. Shorter videos are taken whole, up to whole windows or snippets; I3D's are
looped up to a multiple of 16 frames, so that few lengths are compiled.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from i3d_jax import cli, datasets, distributed, files, models, weights
from i3d_jax.datasets import pipeline
from i3d_jax.evaluation import metrics, results
from i3d_jax.models import Network
from i3d_jax.video import planes

ALL_FRAMES = 10**9  # Frames; more than a video has.


def logits_per_step(
    variables: Any, streams: dict, carry: Any = None, *, network: Network
) -> tuple[dict, Any]:
    """The logits per step in time, f32 [B, S, K], of a network ("") and of its streams, and what it carries.

    `streams` are packed clips (see `planes.unpack`).
    """
    past = {} if carry is None else {"carry": carry}
    _, ends = network.apply(
        variables, models.as_network_input(planes.unpack(streams)), endpoints=True, **past
    )
    steps = {
        stream: ends[f"{stream}/Logits"] for stream in results.STREAMS if f"{stream}/Logits" in ends
    }
    return {"": ends["Logits"], **steps}, ends.get("carry")


def predictions(
    network: Network, variables: Any, source: Iterable[dict], sharding: Any = None, **pieces: Any
) -> Iterator[list[dict]]:
    """Classifies whole videos, a batch at a time.

    Args:
      source: records (`ClipBuilder.records`).
      sharding: of a batch over the devices of all processes; None: one device of one process.
      pieces: other arguments of `pipeline.eval_chunks`.

    Yields:
      per video, its record without the bytes and, by name, its logits f32 [K] ("" is the network's own) as "logits", and how many
      ticks of it were used as "ticks".
    """
    # Each process needs all logits.
    whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    apply = jax.jit(
        logits_per_step,
        static_argnames="network",
        out_shardings=(whole, None),
        compiler_options=models.compiler_options(),
    )
    timing, process = (
        network.timing,
        dict(process=jax.process_index(), processes=jax.process_count()),
    )
    programs: dict[tuple, jax.stages.Compiled] = {}
    total, steps, carry = {}, 0, None
    for piece in pipeline.eval_chunks(source, timing=timing, **process, **pieces):
        window, streams = piece.window, piece.streams
        if sharding is not None:
            streams = distributed.shard_batch(streams, sharding)
        given = tuple(
            (x.shape, getattr(x, "sharding", None)) for x in jax.tree.leaves((streams, carry))
        )
        if given not in programs:
            programs[given] = distributed.compile_on_all_processes(
                apply, variables, streams, carry, network=network
            )
        found, carry = programs[given](variables, streams, carry)
        kept = {
            name: np.asarray(each)[:, window.first : window.last] for name, each in found.items()
        }
        if timing.carries:
            total, steps = {name: each[:, -1] for name, each in kept.items()}, 1
        else:
            total = {
                name: total.get(name, 0.0) + each.sum(1, dtype=np.float64)
                for name, each in kept.items()
            }
            steps += window.last - window.first
        if window.stop == piece.ticks:
            logits = {name: (each / steps).astype(np.float32) for name, each in total.items()}
            yield [
                record
                | {
                    "ticks": piece.ticks,
                    "logits": {name: each[row] for name, each in logits.items()},
                }
                for row, record in enumerate(piece.records)
            ]
            total, steps, carry = {}, 0, None


def evaluate(
    network: Network,
    variables: Any,
    source: Iterable[dict],
    sharding: Any = None,
    after_batch: Callable[[], None] = lambda: None,
    **pieces: Any,
) -> dict:
    """The scores of a network on whole videos; arguments as `predictions`', result as `metrics.scores`'.

    Args:
      after_batch: called after every batch; what it raises is raised.
    """
    found = []
    for batch in predictions(network, variables, source, sharding, **pieces):
        found += batch
        after_batch()
    logits = np.stack([each["logits"][""] for each in found])
    return metrics.scores(logits, np.array([each["label"] for each in found]))


def evaluate_weights(
    folder: pathlib.Path,
    name: str,
    *,
    dataset: str,
    data_dir: str | None = None,
    split: str = "validation",
    batch_size: int = 8,
    frames: int | None = None,
    chunk: int | None = None,
    limit: int | None = None,
    threads: int = 2,
) -> dict:
    """Evaluates weights on a split of a data set, or goes on with it, and writes the results to `folder`.

    Args:
      name: of published weights, or a file (`weights.load`).
      dataset, data_dir: arguments of `datasets.builder`.
      batch_size: videos at a time.
      frames: of a video that are used, at 25 per second; None: what the weights' description says, 0: all.
      chunk: frames at a time, at 25 per second; None: all that are used. The results are the same.
      limit: how many clips of the split to take; None: all.
      threads: that decode.

    Returns:
      what is in scores.json.

    Raises:
      results.EvaluationError: it does not fit together, or `folder` has the results of something else.
      weights.WeightsError, video.VideoError: as those modules say.
    """
    network, variables, info = weights.network(name)
    try:
        builder = datasets.available(dataset, data_dir)
    except ValueError as error:
        raise results.EvaluationError(str(error)) from None
    check_compatible(info, name, builder, dataset, split)
    timing, streams = network.timing, footprint(info.footprint, frames)
    stream, (_, stride) = next(iter(streams.items()))
    per_tick = stride * timing.frames(stream)
    if chunk is not None and chunk < timing.least_window * per_tick:
        least = timing.least_window * per_tick
        raise results.EvaluationError(
            f"--chunk: {chunk} frames are too few for exact predictions, at least {least} are needed"
        )
    ticks = None if chunk is None else chunk // per_tick
    if min(most // timing.frames(each) for each, (most, _) in streams.items()) < timing.least:
        least = timing.least * per_tick
        raise results.EvaluationError(
            f"--frames: {frames} are too few for {info.model}, which takes {least} at least"
        )
    try:
        builder = datasets.prepared(dataset, data_dir)  # After the checks: it may take long.
    except ValueError as error:
        raise results.EvaluationError(str(error)) from None
    settings = {
        "weights": weights.fingerprint(variables),
        "dataset": f"{dataset}/{builder.version}",
        "split": split,
        "footprint": {stream: list(pair) for stream, pair in streams.items()},
        "limit": limit,
    }
    assert set(settings) == set(results.SETTINGS)
    with results.locked(folder):
        results.write_settings(folder, settings)
        records = builder.records(split)
        number = min(len(records), limit or len(records))
        done = results.read_predictions(folder, info.classes)
        devices = jax.device_count()
        batch_size = -(-batch_size // devices) * devices
        replicated, sharded = distributed.data_parallel_shardings()
        batches = predictions(
            network,
            jax.device_put(variables, replicated),
            (records[index] for index in range(number)),
            sharded,
            **streams,
            crop=info.crop,
            short_side=info.short_side if info.short_side != builder.SHORT_SIDE else None,
            batch_size=batch_size,
            chunk=ticks,
            done=done,
            threads=threads,
        )
        path = folder / "predictions.jsonl"
        with (
            files.naming_errors(path),
            path.open("a") as file,
            tqdm.tqdm(total=number, initial=len(done), unit="clip", disable=None) as bar,
        ):
            try:
                for batch in batches:
                    new = [each for each in batch if each["id"] not in done]
                    file.write(
                        "".join(
                            json.dumps(results.prediction_line(each, info.classes)) + "\n"
                            for each in new
                        )
                    )
                    file.flush()
                    bar.update(len(new))
            except ValueError as error:
                raise results.EvaluationError(str(error)) from None
        about = settings | {
            "weights_file": name,
            "source": info.source,
            "batch_size": batch_size,
            "chunk": chunk,
        }
        about |= {name: builder.statistics[split][name] for name in results.COVERAGE}
        result = results.write_results(folder, info.classes, about)
        if result["clips"] != number:
            raise results.EvaluationError(
                f"{path}: {result['clips']} clips, wanted {number}: are there two of one id in {dataset}?"
            )
        return result


def check_compatible(
    info: weights.Info, name: str, builder: datasets.ClipBuilder, dataset: str, split: str
) -> None:
    """Makes sure that weights called `name` can be evaluated on a split of a data set."""
    if builder.class_names != info.classes:
        found, wanted = len(builder.class_names), len(info.classes)
        names = [cli.escape_unprintable(names[0]) for names in (builder.class_names, info.classes)]
        raise results.EvaluationError(
            f"{dataset} has {found} classes ({names[0]}, ...), {name} was trained on {wanted} "
            f"({names[1]}, ...): they must be the same, in the same order"
        )
    lacking = [stream for stream in info.footprint if stream not in builder.streams]
    if lacking:
        raise results.EvaluationError(f"{dataset} has no {lacking[0]}, which {name} needs")
    if split not in builder.splits():
        raise results.EvaluationError(
            f"{dataset} has no split {split!r}; there are {', '.join(builder.splits())}"
        )


def footprint(streams: Any, frames: int | None) -> dict[str, tuple[int, int]]:
    """The frames and steps of `streams` or, if `frames` is given, as many as there are in so many (0: all)."""
    if frames is None:
        return {stream: (number, stride) for stream, (number, stride) in streams.items()}
    if frames < 0:
        raise results.EvaluationError(
            f"--frames: {frames} is not a positive number, and not 0 for all"
        )
    return {
        stream: (-(-(frames or ALL_FRAMES) // stride), stride)
        for stream, (_, stride) in streams.items()
    }
