"""How fast clips come from our records, on one core, against what else can read them.

    python experiments/benchmarks/input_pipeline.py VIDEO... [--json input_pipeline.json]
    python experiments/benchmarks/input_pipeline.py VIDEO... --growth 100 1000

Every reader gives the same: 64-frame windows at random starts, 224 x 224 at random, half of them mirrored, in batches on the
device. `bare` is the limit: a PyAV loop over the same bytes that seeks and decodes the windows, and does nothing with them.
decord, torchcodec and OpenCV (JPEG frames) take part if they are installed. Each measurement is a process of its own on
one core; rounds are interleaved, figures are medians. The last table says how many such cores feed one accelerator.

--growth prepares and reads data sets of two sizes or more, made of the videos again and again, and prints the peak memory.
"""

import importlib.util
import io
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
import time

import harness
import numpy as np

from i3d_jax import cli

FRAMES, CROP, BATCH, SIDE = 64, 224, 4, 256
RATES = (50, 200, 1000)  # Clips per second that an accelerator may want.


def clips_folder(
    videos: list[pathlib.Path], folder: pathlib.Path, number: int, seconds: int
) -> pathlib.Path:
    """Links the videos, again and again, as `number` clips of Kinetics; returns their CSV."""
    from i3d_jax.datasets import annotations

    (folder / "train").mkdir(parents=True)
    rows = []
    for index in range(number):
        source, identity = videos[index % len(videos)], f"clip{index:07d}"
        name = pathlib.Path(annotations.file_name(identity, 0, seconds)).with_suffix(source.suffix)
        os.link(source, folder / "train" / name)
        rows.append(
            dict(zip(annotations.COLUMNS, ("yoga", identity, 0, seconds, "train"), strict=True))
        )
    annotations.write_kinetics(folder / "train.csv", rows)
    return folder / "train.csv"


def prepare(videos: list[pathlib.Path], folder: pathlib.Path, number: int, seconds: int = 10):
    from i3d_jax import datasets
    from i3d_jax.datasets import clips

    lists = clips_folder(videos, folder / "videos", number, seconds)
    source = clips.Source(folder / "videos", (lists,))
    builder = datasets.builder("kinetics/400", str(folder / "data"), source=source)
    builder.prepare()
    return builder


# The readers: generators of batches, from a folder that `main` has filled.


class Many:
    """A few records as a data set of Kinetics' size: Grain takes 2 ms to shuffle an index of a tiny one."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return 240_000

    def __getitem__(self, index):
        return self.records[index % len(self.records)]


def ours(folder: pathlib.Path):
    import jax

    from i3d_jax import datasets
    from i3d_jax.datasets import pipeline

    records = Many(datasets.prepared("kinetics/400", str(folder / "data")).records("train"))
    batches = pipeline.train_batches(
        records, batch_size=BATCH, seed=0, crop=CROP, rgb=(FRAMES, 1), threads=1
    )
    for batch in batches:
        yield jax.block_until_ready(jax.device_put(batch))


def windows(folder: pathlib.Path):
    """(file, start) for ever, the same for all readers."""
    files, rng = sorted((folder / "files").glob("*.mp4")), random.Random(0)
    lengths = json.loads((folder / "lengths.json").read_text())
    while True:
        file = rng.choice(files)
        yield file, rng.randrange(max(1, lengths[file.name] - FRAMES + 1))


def bare(folder: pathlib.Path):
    import av

    contents = {file: file.read_bytes() for file in (folder / "files").glob("*.mp4")}
    for file, start in windows(folder):
        with av.open(io.BytesIO(contents[file])) as container:
            track = container.streams.video[0]
            track.thread_type, track.codec_context.thread_count = "SLICE", 1
            ticks = round(1 / (25 * track.time_base))
            container.seek(start * ticks, stream=track)
            count = 0
            for frame in container.decode(track):
                count += frame.pts >= start * ticks
                if count == FRAMES:
                    break
        yield 1


def batched(read, folder: pathlib.Path):
    """Crops, mirrors and batches what `read(file, start)` gives, uint8 [64, H, W, 3], and puts it on the device."""
    import jax

    rng, clips = np.random.default_rng(0), []
    for file, start in windows(folder):
        frames = read(file, start)
        top, left = (rng.integers(size - CROP + 1) for size in frames.shape[1:3])
        frames = frames[:, top : top + CROP, left : left + CROP]
        clips.append(frames[:, :, ::-1] if rng.random() < 0.5 else frames)
        if len(clips) == BATCH:
            yield jax.block_until_ready(jax.device_put(np.stack(clips)))
            clips = []


def decord(folder: pathlib.Path):
    import decord

    def read(file, start):
        reader = decord.VideoReader(str(file), num_threads=1)
        return reader.get_batch(range(start, start + FRAMES)).asnumpy()

    return batched(read, folder)


def torchcodec(folder: pathlib.Path):
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)

    def read(file, start):
        # Approximate seeking is exact at a constant rate, and does not scan the file.
        decoder = VideoDecoder(
            str(file), num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate"
        )
        return decoder.get_frames_in_range(start, start + FRAMES).data.numpy()

    return batched(read, folder)


def jpeg(folder: pathlib.Path):
    import cv2

    cv2.setNumThreads(1)

    def read(file, start):
        frames = np.load(file.with_suffix(".npz"))
        offsets, data = frames["offsets"], frames["data"]
        images = (data[offsets[i] : offsets[i + 1]] for i in range(start, start + FRAMES))
        return np.stack([cv2.imdecode(image, cv2.IMREAD_COLOR_RGB) for image in images])

    return batched(read, folder)


def write_jpegs(file: pathlib.Path) -> int:
    import cv2

    from i3d_jax import video

    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    images = [
        cv2.imencode(".jpg", image[..., ::-1], quality)[1].ravel() for image in video.decode(file)
    ]
    np.savez(
        file.with_suffix(".npz"),
        data=np.concatenate(images),
        offsets=np.cumsum([0, *map(len, images)]),
    )
    return sum(map(len, images))


READERS = {"bare": bare, "ours": ours, "decord": decord, "torchcodec": torchcodec, "jpeg": jpeg}
PACKAGES = {
    "decord": "decord",
    "torchcodec": "torchcodec",
    "jpeg": "cv2",
}  # What readers need beside ours.
PER_STEP = {"bare": 1}  # Clips per item; the others give batches.


def peak_memory() -> float:
    """Of this process, in MB; unlike getrusage's it does not count what its parent had."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(name: str, folder: pathlib.Path, seconds: float, sender) -> None:
    """Sends clips per second and peak memory in MB."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches = READERS[name](folder)
    for _ in range(3):
        next(batches)
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        next(batches)
        count += PER_STEP.get(name, BATCH)
    sender.send((count / spent, peak_memory()))
    os._exit(0)  # What reads ahead is not waited for.


def grow(kind: str, videos: list[pathlib.Path], folder: pathlib.Path, number: int, sender) -> None:
    """Sends the peak memory in MB of preparing, or of reading all of, a data set of so many clips."""
    from i3d_jax import datasets
    from i3d_jax.datasets import pipeline

    if kind == "prepare":
        prepare(videos, folder, number, seconds=1)
    else:
        records = datasets.prepared("kinetics/400", str(folder / "data")).records("train")
        batches = pipeline.train_batches(records, batch_size=BATCH, seed=0, crop=CROP, rgb=(16, 1))
        for _ in range(number // BATCH):
            next(batches)
    sender.send(peak_memory())
    os._exit(0)


def alone(target, *arguments):
    """What a function sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def compare(folder: pathlib.Path, videos: list[pathlib.Path], flags) -> dict:
    begin = time.perf_counter()
    records = prepare(videos, folder, flags.clips).records("train")
    cores = len(os.sched_getaffinity(0))
    result: dict = {
        "prepared_per_second": flags.clips / (time.perf_counter() - begin),
        "prepare_cores": cores,
    }
    (folder / "files").mkdir()
    lengths, sizes = {}, {"h264": [], "jpeg": []}
    found: dict[str, list] = {name: [] for name in READERS}
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: {name} does not take part", file=sys.stderr)
            del found[name]
    for record in records:
        file = folder / "files" / f"{record['id']}.mp4"
        file.write_bytes(record["video"])
        lengths[file.name] = int(record["frames"])
        sizes["h264"].append(len(record["video"]) / record["frames"])
        if "jpeg" in found:
            sizes["jpeg"].append(write_jpegs(file) / record["frames"])
    (folder / "lengths.json").write_text(json.dumps(lengths))
    result["kilobytes_per_frame"] = {
        name: statistics.mean(each) / 1e3 for name, each in sizes.items() if each
    }
    for _ in range(flags.rounds):
        for name in list(found):
            try:
                found[name].append(alone(measure, name, folder, flags.seconds))
            except (
                EOFError
            ):  # torchcodec without FFmpeg's libraries, for one; the process has said why.
                print(f"{name} does not take part", file=sys.stderr)
                del found[name]
    limit = [rate for rate, _ in found["bare"]]
    result["readers"] = {
        name: {
            "clips_per_second": statistics.median(rate for rate, _ in each),
            "spread": [min(rate for rate, _ in each), max(rate for rate, _ in each)],
            "of_the_limit": statistics.median(
                rate / most for (rate, _), most in zip(each, limit, strict=True)
            ),
            "peak_megabytes": max(memory for _, memory in each),
        }
        for name, each in found.items()
    }
    return result


def table(result: dict) -> str:
    lines = ["| reader | clips/s per core | of the limit | peak MB |", "|---|---|---|---|"]
    for name, each in result["readers"].items():
        low, high = each["spread"]
        rate = f"{each['clips_per_second']:.1f} ({low:.1f} to {high:.1f})"
        lines.append(
            f"| {name} | {rate} | {each['of_the_limit']:.0%} | {each['peak_megabytes']:.0f} |"
        )
    rate = result["readers"]["ours"]["clips_per_second"]
    lines += ["", "| clips/s that an accelerator takes | cores that feed it |", "|---|---|"]
    lines += [f"| {wanted} | {math.ceil(wanted / rate)} |" for wanted in RATES]
    sizes = ", ".join(
        f"{name} {each:.1f} kB" for name, each in result["kilobytes_per_frame"].items()
    )
    per_second, cores = result["prepared_per_second"], result["prepare_cores"]
    lines += ["", f"A frame takes {sizes}. Preparation: {per_second:.2f} clips/s on {cores} cores."]
    return "\n".join(lines)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("videos", nargs="+", type=pathlib.Path, help="of 4 seconds or more")
    parser.add_argument(
        "--clips", type=cli.positive, default=8, help="records to read (default: 8)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement (default: 5)")
    parser.add_argument(
        "--growth",
        type=cli.positive,
        nargs="+",
        metavar="CLIPS",
        help="numbers of clips of data sets",
    )
    flags = parser.parse_args()
    about = harness.about(
        "jax", "grain", "av", "decord", "torchcodec", "torch", "opencv-contrib-python-headless"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        videos = []
        for index, path in enumerate(flags.videos):
            videos.append(pathlib.Path(shutil.copy(path, folder / f"{index}{path.suffix}")))
        if flags.growth:
            result: dict = {kind: {} for kind in ("prepare", "read")}
            for number in flags.growth:
                for kind, peaks in result.items():
                    peaks[number] = alone(grow, kind, videos, folder / str(number), number)
            rows = {
                str(n): [f"{result[kind][n]:.0f}" for kind in ("prepare", "read")]
                for n in flags.growth
            }
            text = harness.table(rows, ["clips", "preparing, peak MB", "reading, peak MB"])
        else:
            result = compare(folder, videos, flags)
            text = table(result)
    harness.report(text, result, about, flags.json)


if __name__ == "__main__":
    main()
