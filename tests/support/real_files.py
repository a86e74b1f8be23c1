"""Makes a folder of small real videos with Kinetics' annotations: good and bad ones of every sort.

The content of a video encodes the time and which way is up, so that a record can be checked without
the source. The upper left quarter is red. The rest is grey and brightens by 100 a second, and a bar
moves over it.
"""

import fractions
import itertools
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import av.video.reformatter
import numpy as np

from i3d_jax.datasets import annotations

LABELS = (
    "flipping pancake",
    "abseiling",
    "massaging person's head",
    "yoga",
    "playing cricket",
    "passing American football (in game)",
)
# Like YouTube's ids, and worse ones. A number is appended to each.
IDS = (
    "-a b;$(rm)",
    "日本語",
    "a'b\"c",
    "--help",
    "%d",
    "concat:a|b",
    "12:30 ",
    "a,b",
    "*?[x]",
    "#1&x=",
    "back\\slash",
    "new\nline",
    "e\u0301",
    "🥞",
    "~",
    "x" * 200,
    "_-",
    "`ls`",
    "-0_",
    "a.b.mp4",
    "train",
    "$HOME",
    "!!",
    "v\t",
)


class Good(NamedTuple):
    """A video that can be used, and the expected properties of its record.

    Attributes:
      path: the file.
      label: its class.
      split: its split.
      seconds: annotated duration.
      lasts: the part of it that the video has, in seconds.
      aspect: width over height, upright.
      apart: longest time from one frame to the next, in seconds.
      colour: whether it has colours.
    """

    path: pathlib.Path
    label: str
    split: str
    seconds: float
    lasts: float
    aspect: float
    apart: float
    colour: bool


class Made(NamedTuple):
    """The result of `make`.

    Attributes:
      videos: folder of the videos.
      annotations: CSVs for train and validation.
      good: good videos by id.
      bad: for the id of each bad video, the possible beginnings of the reason against it.
    """

    videos: pathlib.Path
    annotations: tuple[pathlib.Path, pathlib.Path]
    good: dict[str, Good]
    bad: dict[str, tuple[str, ...]]


def make(folder: pathlib.Path, seed: int = 0, count: int = 240) -> Made:
    """Writes clips, of which a fifth are bad or missing. The seed determines every byte.

    Args:
      folder: where to write.
      seed: source of the content.
      count: number of clips.
    """
    rows: dict[str, list[dict]] = {"train": [], "validate": []}
    made = Made(folder / "videos", (folder / "train.csv", folder / "validate.csv"), {}, {})
    sorts, bad_sorts, names = (
        itertools.cycle(SORTS),
        itertools.cycle(BAD_SORTS),
        itertools.cycle(IDS),
    )
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        identity, label = f"{next(names)}{number:03d}", LABELS[number % len(LABELS)]
        split, written = ("validate", "validation") if number % 4 == 3 else ("train", "train")
        layout = (f"{split}/{label}/", f"{label.replace(' ', '_')}/", "")[number // 6 % 3]
        (made.videos / layout).mkdir(parents=True, exist_ok=True)
        start = number % 90
        if number % 5 == 4:
            seconds, write_bad = 10, next(bad_sorts)
            name = annotations.file_name(identity, start, start + seconds)
            found = write_bad(rng, made.videos / layout / name)
            made.bad[name.removesuffix(".mp4")] = found
        else:
            sort = next(sorts)
            seconds = sort.seconds
            stem = annotations.file_name(identity, start, start + seconds).removesuffix(".mp4")
            path = made.videos / layout / (stem + sort.extension)
            sort.write(path, rng)
            lasts = min(sort.times[-1] + sort.last, seconds)
            apart, aspect = float(max(np.diff(sort.times), default=0)), sort.width / sort.height
            made.good[stem] = Good(
                path, label, written, seconds, lasts, aspect, apart, sort.pix_fmt != "gray"
            )
        if split == "validate":
            label = label.replace(" ", "_")
        values = (label, identity, start, start + seconds, split)
        rows[split].append(dict(zip(annotations.COLUMNS, values, strict=True)))
    for path, split_rows in zip(made.annotations, rows.values(), strict=True):
        annotations.write_kinetics(path, split_rows)
    return made


class Sort(NamedTuple):
    """One sort of video.

    Attributes:
      height: pixels, upright.
      width: pixels, upright.
      times: when each frame is shown, in seconds.
      last: seconds for which the last frame is shown.
      rate: frames per second.
      extension: of the file.
      container: FFmpeg's name of the format.
      codec: FFmpeg's name of the encoder.
      pix_fmt: pixel format of the stored frames.
      sound: seconds of sound; 0: no audio stream.
      turned: clockwise quarter turns that the metadata state.
      seconds: annotated duration.
      options: of the muxer.
    """

    height: int
    width: int
    times: Sequence[float]
    last: float
    rate: fractions.Fraction
    extension: str = ".mp4"
    container: str = "mp4"
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    sound: float = 0.0
    turned: int = 0
    seconds: int = 1
    options: tuple[tuple[str, str], ...] = ()

    def write(self, path: pathlib.Path, rng: np.random.Generator) -> None:
        """Writes a video of this sort."""
        images = [
            np.rot90(image, self.turned)
            for image in frames(self.height, self.width, self.times, rng)
        ]
        options = {"fflags": "+bitexact"} | dict(self.options)
        with av.open(f"file:{path}", "w", format=self.container, options=options) as target:
            stream = target.add_stream(self.codec, rate=self.rate)
            stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], self.pix_fmt
            base = fractions.Fraction(1, 1000) if self.varies else 1 / self.rate
            stream.codec_context.time_base, stream.codec_context.thread_count = base, 1
            if self.pix_fmt in ("gray", "yuvj420p"):
                # 0 to 255, not 16 to 235.
                stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG
            if self.codec == "libx264":
                # See `h264`: without it the bytes would differ from run to run.
                stream.options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
                if self.varies:  # With B-frames, MP4 cannot state the last frame's duration.
                    stream.options |= {"bf": "0"}
            elif self.codec == "libvpx-vp9":
                stream.options = {"cpu-used": "8", "deadline": "realtime"}
            sound = (
                target.add_stream("libopus" if self.container == "webm" else "aac", rate=48000)
                if self.sound
                else None
            )
            for image, time in zip(images, self.times, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = round(time / base), base
                target.mux(stream.encode(frame))
            target.mux(stream.encode())
            if sound is not None:
                for frame in tone(self.sound):
                    target.mux(sound.encode(frame))
                target.mux(sound.encode())
        if self.turned:
            data = bytearray(path.read_bytes())
            # The display matrix in the track header has cosine and sine of the angle, as phones
            # write it.
            cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][self.turned]
            where = data.index(b"tkhd") + 44
            matrix = [each << 16 for each in (cosine, sine, 0, -sine, cosine)]
            data[where : where + 36] = struct.pack(">9i", *matrix, 0, 0, 0, 1 << 30)
            path.write_bytes(data)

    @property
    def varies(self) -> bool:
        """Whether the frame rate varies."""
        return len(set(np.diff(self.times).round(4))) > 1


def steady(count: int, rate: float | str, height: int = 48, width: int = 64, **options) -> Sort:
    """A sort with a constant frame rate."""
    each = fractions.Fraction(rate)
    return Sort(
        height, width, [float(i / each) for i in range(count)], float(1 / each), each, **options
    )


def varying(times: Sequence[int], **options) -> Sort:
    """A sort with frames at given times, in milliseconds; the last one is shown for 40."""
    return Sort(48, 64, [time / 1000 for time in times], 0.04, fractions.Fraction(25), **options)


MATROSKA = dict(extension=".mkv", container="matroska")
WEBM = dict(extension=".webm", container="webm", codec="libvpx-vp9")
SORTS = (
    steady(4, 10),
    steady(8, 24, 48, 86),
    steady(9, 25, 64, 48),
    steady(9, "30000/1001", 54, 96, sound=0.35),
    steady(10, 30, 96, 54, extension=".MP4"),
    steady(14, 50, **MATROSKA),
    steady(15, 60, sound=0.3, **MATROSKA),
    steady(8, 25, 49, 65, pix_fmt="yuv444p"),
    steady(8, 30, 64, 49, pix_fmt="yuv444p", **MATROSKA),
    steady(8, 25, 48, 70, turned=1),
    steady(9, 30, 48, 70, turned=2, sound=0.5),
    steady(6, 24, 70, 48, turned=3, options=(("movflags", "faststart"),)),
    steady(8, 25, 47, 63, turned=1, pix_fmt="yuv444p"),
    steady(1, 25),
    steady(1, 30, 65, 49, pix_fmt="yuv444p", **MATROSKA),
    varying((0, 40, 80, 280, 320, 330, 340, 350, 470, 510), **MATROSKA),
    varying((0, 100, 120, 140, 150, 160, 300, 333, 366, 400)),
    steady(48, 30, 36, 48),  # Longer than annotated.
    steady(36, 25, 36, 50, sound=2.0, **MATROSKA),
    steady(6, 25, seconds=10),  # Shorter than annotated.
    steady(8, 25, extension=".avi", container="avi"),
    steady(8, 25, extension=".avi", container="avi", codec="mpeg4"),
    steady(8, 30, 48, 65, **WEBM),
    steady(8, 25, 48, 64, sound=0.4, **WEBM),
    # Another container than the extension says.
    steady(8, 25, extension=".mp4", container="matroska"),
    steady(8, 30, extension=".avi", sound=0.4),
    steady(8, 24, extension=".mkv", container="avi"),
    steady(8, 25, extension=".bin"),
    steady(8, 25, extension=""),
    steady(8, 25, 48, 72, pix_fmt="yuv420p10le"),
    steady(8, 25, 48, 72, pix_fmt="gray", extension=".mov", container="mov"),
    steady(8, 25, 48, 72, pix_fmt="yuvj420p"),
    steady(8, 25, extension=".ts", container="mpegts", sound=0.5),
    steady(8, 25, sound=1.5),  # Sound that outlasts the video.
    steady(3, 2, 24, 32),
)


def frames(
    height: int, width: int, times: Sequence[float], rng: np.random.Generator
) -> list[np.ndarray]:
    """The frames of a video with the content that the module's docstring describes."""
    grain = rng.integers(-6, 7, (height, width, 1))
    where = rng.integers(width)
    images = []
    for time in times:
        image = np.full((height, width, 3), brightness(time)) + grain
        image[:, (where + int(width * time)) % width] += 30
        image[: height // 2, : width // 2] = (220, 20, 20)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def brightness(time: float) -> float:
    return 40 + 100 * min(time, 1.6)


def tone(seconds: float) -> list[av.AudioFrame]:
    samples = np.sin(np.arange(round(48000 * seconds)) / 20).astype(np.float32)
    frames = []
    for start in range(0, len(samples), 960):
        frame = av.AudioFrame.from_ndarray(
            samples[None, start : start + 960], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, fractions.Fraction(1, 48000)
        frames.append(frame)
    return frames


def some_videos(folder: pathlib.Path, *places: str) -> None:
    """Writes videos of 4 frames, 5, 6, ... as MPEG-4 in AVI, as UCF-101 and HMDB-51 have them."""
    for number, place in enumerate(places):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        sort = steady(4 + number, 25, 48, 64, container="avi", codec="mpeg4")
        sort.write(path, np.random.default_rng(number))


def write_list(folder: pathlib.Path, *lines: str) -> pathlib.Path:
    """Writes lines of annotations below a header; returns the CSV's path."""
    path = folder / "list.csv"
    path.write_text("\n".join([",".join(annotations.COLUMNS), *lines]) + "\n")
    return path


UNDAMAGED = steady(40, 25)
CUT = ("is damaged", "is truncated")


def lost_end(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED.write(path, rng)
    cut(path)
    return ("cannot be decoded",)


def cut_streamable(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED._replace(options=(("movflags", "faststart"),)).write(path, rng)
    cut(path)
    return CUT


def cut_matroska(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED._replace(container="matroska").write(path.with_suffix(".mkv"), rng)
    cut(path.with_suffix(".mkv"))
    return CUT


def cut_avi(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED._replace(container="avi", codec="mpeg4", sound=1.6).write(
        path.with_suffix(".avi"), rng
    )
    cut(path.with_suffix(".avi"))
    return CUT


def cut(path: pathlib.Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(0.6 * len(data))])


def rotten(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED.write(path, rng)
    rot(path, rng)
    return "is damaged", "cannot be decoded"


def rotten_matroska(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    UNDAMAGED._replace(container="matroska", sound=1.6).write(path.with_suffix(".mkv"), rng)
    rot(path.with_suffix(".mkv"), rng)
    return "is damaged", "cannot be decoded"


def rot(path: pathlib.Path, rng: np.random.Generator, times: int = 8) -> None:
    """Overwrites 32 bytes in the middle of some frames.

    H.264's decoder does not notice the damage in one of five such frames, so several are damaged.
    """
    with av.open(f"file:{path}") as container:
        places = [
            (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 64
        ]
    data = bytearray(path.read_bytes())
    for number in rng.choice(np.arange(1, len(places)), times, replace=False):
        start, size = places[number]
        middle = start + size // 2 - 16
        data[middle : middle + 32] = rng.bytes(32)
    path.write_bytes(data)


def empty(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.touch()
    return ("is empty",)


def zeros(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.write_bytes(bytes(20_000))
    return ("cannot be decoded",)


def text(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.write_text("<html>This video is not available any more.</html>\n" * 20)
    return ("cannot be decoded",)


def sound_only(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    with av.open(f"file:{path}", "w", format="mp4") as target:
        sound = target.add_stream("aac", rate=48000)
        for frame in tone(0.5):
            target.mux(sound.encode(frame))
        target.mux(sound.encode())
    return ("has no video stream",)


def a_folder(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.mkdir()
    return ("is missing",)


def dead_link(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.symlink_to("nowhere.mp4")
    return ("is missing",)


def only_its_picture(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    path.with_suffix(".jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return ("is missing",)


def missing(rng: np.random.Generator, path: pathlib.Path) -> tuple[str, ...]:
    return ("is missing",)


BAD_SORTS: tuple[Callable[[np.random.Generator, pathlib.Path], tuple[str, ...]], ...] = (
    lost_end,
    cut_streamable,
    cut_matroska,
    cut_avi,
    rotten,
    rotten_matroska,
    empty,
    zeros,
    text,
    sound_only,
    a_folder,
    dead_link,
    only_its_picture,
    missing,
)
