"""The paper's test: networks on whole videos, with averaged logits (paper, section 2 and table 1).

A network is applied convolutionally to a video's first 10 seconds, or to what its weights'
description says. Table 1 has test footprints of 250, 240 and 50 frames, and of 25 RGB frames with
250 of flow. Frames are cropped at the centre. The predictions over time are averaged as logits;
ConvNet+LSTM uses the last one. Shorter videos are used as they are, up to whole windows or
snippets. For I3D they are looped to a multiple of 16 frames, so that XLA compiles few input shapes.
"""

import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from i3d_jax import cli, datasets, distributed, files, weights
from i3d_jax.datasets import pipeline
from i3d_jax.evaluation import metrics, results
from i3d_jax.evaluation.programs import Programs
from i3d_jax.models import Network

ALL_FRAMES = 10**9  # More frames than a video has.


def predictions(
    network: Network, variables: Any, source: Iterable[dict], sharding: Any = None, **pieces: Any
) -> Iterator[list[dict]]:
    """Classifies whole videos, a batch at a time.

    Args:
      network: the network.
      variables: its variables.
      source: records (`ClipBuilder.records`).
      sharding: of a batch over the devices of all processes; None is one device of one process.
      **pieces: other arguments of `pipeline.eval_chunks`. Videos longer than `chunk` are streamed.

    Yields:
      a list with one dictionary per video: its record without the bytes, "logits", f32 [K] by
      name ("" is the network's own), and "ticks", how many of them were used.
    """
    process = dict(process=jax.process_index(), processes=jax.process_count())
    programs = Programs(network, sharding)
    state, total, steps = None, {}, 0
    for piece in pipeline.eval_chunks(source, timing=network.timing, **process, **pieces):
        streams = piece.streams
        if sharding is not None:
            streams = distributed.shard_batch(streams, sharding)
        ticks, count = _ticks(network, piece.streams), network.timing.steps(piece.ticks)
        if piece.start == 0:
            total, steps = {}, 0
            state = (
                None if ticks == piece.ticks else programs.start(variables, streams, piece.ticks)
            )
        last = piece.start + ticks >= piece.ticks
        while True:
            if state is None:
                found, first = programs.whole(variables, streams), 0
            else:
                state, found, first = programs.step(variables, streams, state)
            rows = {name: np.asarray(each) for name, each in found.items()}
            rows = {
                name: each[:, max(0, -first) : max(0, count - first)] for name, each in rows.items()
            }
            for name, each in rows.items():
                if network.timing.last_only and each.shape[1]:
                    total[name] = each[:, -1].astype(np.float64)
                elif not network.timing.last_only:
                    total[name] = total.get(name, 0.0) + each.sum(1, dtype=np.float64)
            steps += rows[""].shape[1]
            # Predictions are late: the last ones come after the last frames.
            if not last or steps == count:
                break
        if last:
            number = 1 if network.timing.last_only else count
            yield [
                record
                | {
                    "ticks": piece.ticks,
                    "logits": {
                        name: (each[row] / number).astype(np.float32)
                        for name, each in total.items()
                    },
                }
                for row, record in enumerate(piece.records)
            ]


def _ticks(network: Network, streams: dict) -> int:
    """How many ticks packed clips have."""
    stream = next(stream for stream in results.STREAMS if stream in streams)
    return streams[stream].shape[1] // network.timing.frames(stream)


def evaluate(
    network: Network,
    variables: Any,
    source: Iterable[dict],
    sharding: Any = None,
    after_batch: Callable[[], None] = lambda: None,
    **pieces: Any,
) -> dict:
    """Returns the scores of a network on whole videos (see `metrics.scores`).

    Args:
      network: the network.
      variables: its variables.
      source: as in `predictions`.
      sharding: as in `predictions`.
      after_batch: called after every batch; may raise.
      **pieces: other arguments of `pipeline.eval_chunks`.
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
    """Evaluates weights on a split of a data set and writes the results to a folder.

    If the folder has a part of the results already, only the rest is computed.

    Args:
      folder: for the results.
      name: published weights, or a file (see `weights.load`).
      dataset: as in `datasets.prepared`.
      data_dir: as in `datasets.prepared`.
      split: of the data set.
      batch_size: videos at a time; rounded up to a multiple of the devices.
      frames: frames of a video to use, at 25 per second; None is what the weights' description
        says, and 0 is all.
      chunk: frames of a video in memory at a time, at 25 per second, rounded up to what the
        network takes; None is all. Longer videos are streamed (`streaming`), with the same results
        up to rounding.
      limit: number of clips to take from the split; None is all.
      threads: threads that decode.

    Returns:
      the contents of scores.json.

    Raises:
      results.EvaluationError: weights, data set and arguments do not fit together, or `folder`
        has the results of another evaluation.
      weights.WeightsError: see `weights.load`.
      video.VideoError: a video cannot be decoded.
    """
    network, variables, info = weights.network(name)
    builder = _find_data_set(datasets.available, dataset, data_dir)
    check_compatible(info, name, builder, dataset, split)
    streams = footprint(info.footprint, frames)
    chunk_ticks = _check_lengths(network, info.model, streams, frames, chunk)
    # After the checks, since it may take long.
    builder = _find_data_set(datasets.prepared, dataset, data_dir)
    settings = {
        "weights": weights.fingerprint(variables),
        "dataset": f"{dataset}/{builder.version}",
        "split": split,
        "footprint": {stream: list(pair) for stream, pair in streams.items()},
        "limit": limit,
    }
    assert set(settings) == set(results.SETTINGS)
    with results.locked_folder(folder):
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
            chunk=chunk_ticks,
            done=done,
            threads=threads,
        )
        path = folder / "predictions.jsonl"
        _append_predictions(path, batches, info.classes, done, number)
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
                f"{path}: {result['clips']} clips, wanted {number}: "
                f"does {dataset} have two clips of one id?"
            )
        return result


def _find_data_set(
    find: Callable[[str, str | None], datasets.ClipBuilder], dataset: str, data_dir: str | None
) -> datasets.ClipBuilder:
    """Calls a function that finds a data set; its ValueErrors become EvaluationErrors."""
    try:
        return find(dataset, data_dir)
    except ValueError as error:
        raise results.EvaluationError(str(error)) from None


def _check_lengths(
    network: Network,
    model: str,
    streams: dict[str, tuple[int, int]],
    frames: int | None,
    chunk: int | None,
) -> int | None:
    """Checks that videos are long enough.

    Args:
      network: the network.
      model: its name, for the message.
      streams: the frames to use of each stream, and the step between them.
      frames: the command's --frames.
      chunk: the command's --chunk.

    Returns:
      `chunk` in ticks, rounded up to whole steps of the network.

    Raises:
      results.EvaluationError: videos are too short.
    """
    timing = network.timing
    stream, (_, stride) = next(iter(streams.items()))
    per_tick = stride * timing.frames(stream)
    if min(most // timing.frames(each) for each, (most, _) in streams.items()) < timing.least:
        raise results.EvaluationError(
            f"--frames: {frames} are too few for {model}, "
            f"which takes at least {timing.least * per_tick}"
        )
    return None if chunk is None else -(-chunk // (per_tick * timing.step)) * timing.step


def _append_predictions(
    path: pathlib.Path,
    batches: Iterable[list[dict]],
    classes: Sequence[str],
    done: Collection[str],
    number: int,
) -> None:
    """Writes predictions as they come, with a progress bar.

    Args:
      path: file to append to.
      batches: of `predictions`.
      classes: names of the classes.
      done: ids of the clips that the file has already.
      number: of all clips, for the progress bar.

    Raises:
      results.EvaluationError: a batch cannot be computed.
    """
    with (
        files.naming_errors(path),
        path.open("a") as file,
        tqdm.tqdm(total=number, initial=len(done), unit="clip", disable=None) as bar,
    ):
        try:
            for batch in batches:
                lines = [
                    json.dumps(results.prediction_line(each, classes)) + "\n"
                    for each in batch
                    if each["id"] not in done
                ]
                file.write("".join(lines))
                file.flush()
                bar.update(len(lines))
        except ValueError as error:
            raise results.EvaluationError(str(error)) from None


def check_compatible(
    info: weights.Info, name: str, builder: datasets.ClipBuilder, dataset: str, split: str
) -> None:
    """Raises an EvaluationError unless weights can be evaluated on a split of a data set.

    Args:
      info: the weights' description.
      name: the weights' name, for the message.
      builder: the data set.
      dataset: the data set's name, for the message.
      split: the split.
    """
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
    """Returns the frames to use of each stream, and the step between them.

    Args:
      streams: the weights' footprint.
      frames: frames at full rate to use instead; None is the footprint's, and 0 is all.
    """
    if frames is None:
        return {stream: (number, stride) for stream, (number, stride) in streams.items()}
    if frames < 0:
        raise results.EvaluationError(f"--frames: {frames}, wanted a positive number, or 0 for all")
    return {
        stream: (-(-(frames or ALL_FRAMES) // stride), stride)
        for stream, (_, stride) in streams.items()
    }
