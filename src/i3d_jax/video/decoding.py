"""Video files: decoding to frames at a given rate, resizing, cropping, looping.

Frames are uint8 [T, H, W, 3], RGB, or uint8 [T, H, W, 2], flow: u and v in pixels to the next frame, truncated to [-20, 20],
as 128 + 127 / 20 of them, so that no motion is exactly 128. A video is whatever FFmpeg opens, through PyAV: a path, or the
bytes of a file. Flow is stored as one grey video, u above v.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import av.error
import av.video.reformatter
import numpy as np
from av.video.reformatter import Interpolation

from i3d_jax import pixels
from i3d_jax.video import playback
from i3d_jax.video.playback import FPS, TAGS, DamageWarning, Shown, VideoError

__all__ = [
    "FPS",
    "TAGS",
    "DamageWarning",
    "VideoError",
    "decode",
    "frames_in",
    "grey",
    "plane",
    "resized",
    "shown",
    "yuv",
]

# Of all conversions. Without the other two flags swscale takes shortcuts that make colours darker by 1 or 2 of 255.
BILINEAR = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
MAX_ASPECT = (
    16  # Of frames that are resized: a strip as long as 1,000 times its width would take gigabytes.
)


def decode(
    video: str | os.PathLike | bytes,
    *,
    stream: str = "rgb",
    fps: float = FPS,
    short_side: int | None = None,
    crop: int | None = None,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    threads: int = 0,
) -> np.ndarray:
    """Decodes a video at a constant frame rate, as a player shows it.

    Frame i is the one on the screen at time i / fps, by the file's timestamps, so that sources of any or of varying rate keep
    their speed; the next one, if that begins within half an output frame and is nearer. Frames are turned and mirrored as the
    file's metadata says. Memory is bounded by what is returned.

    Args:
      video: path, or the bytes of a whole file.
      stream: "rgb", or "flow" for a file that `h264.encode` wrote flow to.
      fps: frames per second to return.
      short_side: pixels; the frames are resized to it (bilinear, antialiased, the aspect kept that a player shows). None gives the
        pixels as they are stored, square or not, as flow must be.
      crop: pixels; cuts a square of this side out of the middle of the frames. None: all of them.
      start: first frame to return, counted at `fps`; found by seeking in MP4, Matroska and AVI, by decoding what is before in others.
      frames: how many to return at most. None: all.
      stride: returns one frame in so many.
      threads: of the decoder; 0 lets it choose.

    Returns:
      uint8 [T, H, W, 3] or, of flow, [T, H, W, 2]; T >= 1.

    Raises:
      VideoError: missing, empty, not a video, no video stream, not decodable, or shorter than `start`.
      ValueError: flow is to be resized, or frames are smaller than `crop`.

    Warns:
      DamageWarning: some of it could not be decoded, and was left out.
    """
    if stream == "flow" and short_side is not None:
        raise ValueError(f"short_side is {short_side}, but flow cannot be resized")
    previous, image, size = None, np.empty(0), None
    scaler = av.video.reformatter.VideoReformatter()
    images: list[np.ndarray] = []
    for each in playback.play(
        video, fps=fps, start=start, frames=frames, stride=stride, threads=threads
    ):
        if size is None:  # A stream may change its size; all frames get the first one's.
            size = _size(video, each, short_side)
        if each.frame is not previous:
            with _resizing(video):
                image, previous = _pixels(each.frame, size, scaler, stream), each.frame
            if crop is not None:
                image = pixels.crop(image[None], crop)[0].copy()  # A view would keep all of it.
        images.append(image)
    return np.stack(images)


def shown(video: str | os.PathLike | bytes, **options: Any) -> Iterator[av.VideoFrame]:
    """Yields the frames, as they are stored, that a video shows at a constant frame rate. One that is shown for long comes again.

    Args:
      options: fps, start, frames, stride and threads of `decode`, and `strict`. A strict reading is for videos that are to be kept:
        damage that the decoder could hide, a file that ends more than half a second before it says, and one frame for more
        than a minute are errors too.

    Raises:
      VideoError: as `decode`; in a strict reading also after frames have been yielded.

    Warns:
      DamageWarning: as `decode`.
    """
    return (each.frame for each in playback.play(video, **options))


def yuv(video: str | os.PathLike, *, short_side: int, **options: Any) -> Iterator[list[np.ndarray]]:
    """Yields what records have of a video: the planes Y [H, W], U and V [H/2, W/2] of each frame, uint8, BT.601.

    Frames are scaled in YUV, if they are stored in BT.601's studio range, and turned upright; the long side's last odd pixel is cut
    off. A frame that is shown for long gives the same list again.

    Args:
      short_side: pixels; see `decode`.
      options: of `shown`.

    Raises:
      VideoError: see `shown`.
    """
    # One of each for all frames: making it costs more than using it.
    scalers = av.video.reformatter.VideoReformatter(), av.video.reformatter.VideoReformatter()
    previous, planes, size = None, [], None
    for each in playback.play(video, **options):
        if size is None:  # A stream may change its size; all frames get the first one's.
            size = _size(video, each, short_side)
        if each.frame is not previous:
            with _resizing(video):
                scaled = _bt601(each.frame, _stored(size, each.frame), *scalers)
            turned = [playback.upright(plane(scaled, number), each.frame) for number in range(3)]
            height, width = (side // 2 for side in turned[0].shape)
            planes = [
                turned[0][: 2 * height, : 2 * width],
                *(x[:height, :width] for x in turned[1:]),
            ]
            previous = each.frame
        yield planes


def grey(video: str | os.PathLike, **options: Any) -> Iterator[np.ndarray]:
    """Yields a video in grey, uint8 [H, W] from 0 to 255: the brightness of `yuv`, whose options these are."""
    levels = np.rint(np.clip((np.arange(256) - 16) * 255 / 219, 0, 255)).astype(np.uint8)
    for planes in yuv(video, **options):
        yield levels[planes[0]]


def frames_in(seconds: float) -> int:
    """The frames that a clip of so many seconds has, one at least."""
    return max(1, round(seconds * FPS))


def plane(frame: av.VideoFrame, number: int) -> np.ndarray:
    """One of a frame's planes of 8 bits, uint8 [H, W], not copied: it is valid as long as the frame is."""
    part = frame.planes[number]
    lines = np.frombuffer(cast(Any, part), np.uint8).reshape(part.height, part.line_size)
    return lines[:, : part.width]  # They are padded.


def resized(height: int, width: int | Fraction, short_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter is `short_side`, the aspect kept to the pixel."""
    scale = Fraction(short_side) / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _size(
    video: str | os.PathLike | bytes, shown: Shown, short_side: int | None
) -> tuple[int, int]:
    """(height, width) of the images that are made of a video's frames."""
    height, width = shown.frame.height, shown.frame.width
    if short_side is not None:
        width_shown = width * shown.pixel_aspect
        if max(height, width_shown) > MAX_ASPECT * min(height, width_shown):
            found = f"frames of {height}x{round(width_shown)} are more than {MAX_ASPECT} times as long as wide"
            raise VideoError(playback.name_of(video), f"cannot be resized: {found}")
        height, width = resized(height, width_shown, short_side)
    return (width, height) if playback.is_turned(shown.frame) else (height, width)


def _stored(size: tuple[int, int], frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame, as it is stored, that is to be of a size when it is upright."""
    height, width = size
    return (width, height) if playback.is_turned(frame) else size


@contextlib.contextmanager
def _resizing(video: str | os.PathLike | bytes) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise VideoError(playback.name_of(video), f"cannot be resized: {error.strerror}") from None


def _pixels(frame, size: tuple[int, int], scaler, stream: str) -> np.ndarray:
    height, width = _stored(size, frame)
    if stream == "flow":
        grey = scaler.reformat(frame, width, height, "gray").to_ndarray()
        return np.moveaxis(grey.reshape(2, -1, width), 0, -1)
    return playback.upright(
        scaler.reformat(frame, width, height, "rgb24", interpolation=BILINEAR).to_ndarray(), frame
    )


def _bt601(frame, size: tuple[int, int], scaler, to_rgb) -> av.VideoFrame:
    """A frame of another size in YUV 4:2:0 of BT.601's studio range."""
    height, width = size
    options: dict[str, Any] = {"interpolation": BILINEAR, "threads": 1}
    if frame.color_range == av.video.reformatter.ColorRange.JPEG and not frame.format.is_rgb:
        # swscale's own conversion of the range makes U and V larger by 0.3 of 255.
        frame = to_rgb.reformat(frame, width, height, "rgb24", **options)
    return scaler.reformat(
        frame, width, height, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", **options
    )
