"""Decodes videos to arrays at a constant frame rate: resized, cropped, RGB, grey or YUV.

A video is anything that FFmpeg opens (through PyAV): a path, or the bytes of a file.

RGB frames are uint8 [T, H, W, 3]. Flow is uint8 [T, H, W, 2]: u and v, the motion to the next
frame in pixels, are clipped to [-20, 20] and stored as 128 + 127 / 20 * value, so that no motion
is exactly 128. A flow file is one grey video with u above v.
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
from i3d_jax.video.playback import FPS, OPEN_OPTIONS, DamageWarning, DisplayedFrame, VideoError

__all__ = [
    "FPS",
    "OPEN_OPTIONS",
    "DamageWarning",
    "VideoError",
    "decode",
    "frame_count",
    "grey",
    "iter_frames",
    "plane",
    "resized_shape",
    "rgb_frames",
    "yuv",
]

# Used in every conversion. Without the last two flags swscale takes shortcuts that darken colours
# by 1 or 2 of 255.
BILINEAR = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Of frames that are resized. A strip 1,000 times as long as wide would need gigabytes.
MAX_ASPECT = 16


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

    Output frame i is the frame on the screen at time i / fps, by the file's timestamps. So a
    video of any frame rate, also a varying one, keeps its speed. If the next frame begins within
    half an output frame and is nearer, that one is taken. Frames are rotated and mirrored as the
    file's metadata says. Memory use is bounded by the size of the result.

    Args:
      video: a path, or the bytes of a whole file.
      stream: "rgb", or "flow" for a flow file that `h264.encode` wrote.
      fps: frames per second of the result.
      short_side: resizes frames so that their shorter side has so many pixels (bilinear,
        antialiased, with the aspect ratio that a player shows). None keeps the stored pixels,
        square or not; flow needs None.
      crop: side in pixels of a square that is cut out of the centre. None: whole frames.
      start: first frame to return, counted at `fps`. MP4, Matroska and AVI are seeked; other
        containers are decoded from the beginning.
      frames: maximum number of frames to return. None: all.
      stride: returns every `stride`-th frame.
      threads: threads of the decoder; 0 lets it choose.

    Returns:
      uint8 [T, H, W, 3], or [T, H, W, 2] for flow; T >= 1.

    Raises:
      VideoError: the file is missing, empty, not a video, has no video stream, cannot be decoded,
        or is shorter than `start`.
      ValueError: flow is to be resized, or frames are smaller than `crop`.

    Warns:
      DamageWarning: part of the video could not be decoded and was left out.
    """
    return np.stack(
        [
            *rgb_frames(
                video,
                stream=stream,
                fps=fps,
                short_side=short_side,
                crop=crop,
                start=start,
                frames=frames,
                stride=stride,
                threads=threads,
            )
        ]
    )


def rgb_frames(
    video: str | os.PathLike | bytes,
    *,
    stream: str = "rgb",
    short_side: int | None = None,
    crop: int | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Yields the frames of `decode` one by one, so that memory use does not grow with the video.

    A frame that stays on the screen gives the same array again.

    Args:
      video: see `decode`.
      stream: see `decode`.
      short_side: see `decode`.
      crop: see `decode`.
      options: those of `iter_frames`.

    Yields:
      uint8 [H, W, 3], or [H, W, 2] for flow.

    Raises:
      VideoError: as `iter_frames`.
      ValueError: as `decode`.

    Warns:
      DamageWarning: as `decode`.
    """
    if stream == "flow" and short_side is not None:
        raise ValueError(f"short_side is {short_side}, but flow cannot be resized")
    image_of = ImageMaker(video, short_side, crop, stream)
    for each in playback.play(video, **options):
        yield image_of(each)


class ImageMaker:
    """Makes images of the frames of a video, all of one size; see `rgb_frames`.

    Args:
      video: see `decode`.
      short_side: see `decode`.
      crop: see `decode`.
      stream: see `decode`.
    """

    def __init__(
        self,
        video: str | os.PathLike | bytes,
        short_side: int | None,
        crop: int | None,
        stream: str = "rgb",
    ):
        self._video, self._short_side, self._crop, self._stream = video, short_side, crop, stream
        self._scaler = av.video.reformatter.VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._previous, self._image = None, np.empty(0)

    def __call__(self, shown: DisplayedFrame) -> np.ndarray:
        """The image of the next frame; the same array again if the frame stays on the screen."""
        if self._size is None:  # A stream may change its size; all frames get the first one's.
            self._size = _output_size(self._video, shown, self._short_side)
        if shown.frame is not self._previous:
            with _resize_errors(self._video):
                image = _to_image(shown.frame, self._size, self._scaler, self._stream)
            if self._crop is not None:
                image = pixels.crop(image[None], self._crop)[0].copy()  # A view keeps all of it.
            self._previous, self._image = shown.frame, image
        return self._image


def iter_frames(video: str | os.PathLike | bytes, **options: Any) -> Iterator[av.VideoFrame]:
    """Yields the stored frames that a video shows at a constant frame rate.

    A frame that stays on the screen is yielded again.

    Args:
      video: a path, or the bytes of a whole file.
      options: `fps`, `start`, `frames`, `stride` and `threads` of `decode`, and `strict`. A strict
        reading is for videos that go into a data set. These are then errors too: damage that the
        decoder could hide, a file that ends more than half a second before its stated end, and a
        frame that is shown for more than a minute.

    Raises:
      VideoError: as `decode`; in a strict reading also after frames have been yielded.

    Warns:
      DamageWarning: as `decode`.
    """
    return (each.frame for each in playback.play(video, **options))


def yuv(video: str | os.PathLike, *, short_side: int, **options: Any) -> Iterator[list[np.ndarray]]:
    """Yields each frame as records hold it: planes Y [H, W], U and V [H/2, W/2], uint8, BT.601.

    Frames that are stored in BT.601's studio range are scaled in YUV. Frames are turned upright,
    and an odd last row or column is cut off. A frame that stays on the screen gives the same list
    again.

    Args:
      video: a path.
      short_side: pixels; see `decode`.
      options: those of `iter_frames`.

    Raises:
      VideoError: as `iter_frames`.
    """
    # One of each for all frames: making it costs more than using it.
    scalers = av.video.reformatter.VideoReformatter(), av.video.reformatter.VideoReformatter()
    previous, planes, size = None, [], None
    for each in playback.play(video, **options):
        if size is None:  # A stream may change its size; all frames get the first one's.
            size = _output_size(video, each, short_side)
        if each.frame is not previous:
            with _resize_errors(video):
                scaled = _to_bt601(each.frame, _stored_size(size, each.frame), *scalers)
            turned = [playback.upright(plane(scaled, number), each.frame) for number in range(3)]
            height, width = (side // 2 for side in turned[0].shape)
            planes = [
                turned[0][: 2 * height, : 2 * width],
                *(x[:height, :width] for x in turned[1:]),
            ]
            previous = each.frame
        yield planes


def grey(video: str | os.PathLike, **options: Any) -> Iterator[np.ndarray]:
    """Yields a video's frames in grey, uint8 [H, W] from 0 to 255.

    Args:
      video: a path.
      options: those of `yuv`, whose Y plane this is.
    """
    levels = np.rint(np.clip((np.arange(256) - 16) * 255 / 219, 0, 255)).astype(np.uint8)
    for planes in yuv(video, **options):
        yield levels[planes[0]]


def frame_count(seconds: float) -> int:
    """The number of frames of a clip of so many seconds; at least 1."""
    return max(1, round(seconds * FPS))


def plane(frame: av.VideoFrame, number: int) -> np.ndarray:
    """An 8-bit plane of a frame, uint8 [H, W]. It is a view, valid as long as the frame is."""
    part = frame.planes[number]
    lines = np.frombuffer(cast(Any, part), np.uint8).reshape(part.height, part.line_size)
    return lines[:, : part.width]  # FFmpeg pads lines.


def resized_shape(height: int, width: int | Fraction, short_side: int) -> tuple[int, int]:
    """(height, width), scaled so that the shorter one is `short_side`; the other is rounded."""
    scale = Fraction(short_side) / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _output_size(
    video: str | os.PathLike | bytes, first: DisplayedFrame, short_side: int | None
) -> tuple[int, int]:
    """(height, width) of the upright images that a video's frames become."""
    height, width = first.frame.height, first.frame.width
    if short_side is not None:
        display_width = width * first.pixel_aspect
        if max(height, display_width) > MAX_ASPECT * min(height, display_width):
            raise VideoError(
                playback.name_of(video),
                f"cannot be resized: frames of {height}x{round(display_width)} are more than "
                f"{MAX_ASPECT} times as long as wide",
            )
        height, width = resized_shape(height, display_width, short_side)
    return (width, height) if playback.is_turned(first.frame) else (height, width)


def _stored_size(size: tuple[int, int], frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of the stored frame whose upright image has a given size."""
    height, width = size
    return (width, height) if playback.is_turned(frame) else size


@contextlib.contextmanager
def _resize_errors(video: str | os.PathLike | bytes) -> Iterator[None]:
    """Turns swscale's errors into VideoErrors that name the video."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise VideoError(playback.name_of(video), f"cannot be resized: {error.strerror}") from None


def _to_image(frame, size: tuple[int, int], scaler, stream: str) -> np.ndarray:
    height, width = _stored_size(size, frame)
    if stream == "flow":
        grey = scaler.reformat(frame, width, height, "gray").to_ndarray()
        return np.moveaxis(grey.reshape(2, -1, width), 0, -1)
    return playback.upright(
        scaler.reformat(frame, width, height, "rgb24", interpolation=BILINEAR).to_ndarray(), frame
    )


def _to_bt601(frame, size: tuple[int, int], scaler, to_rgb) -> av.VideoFrame:
    """Resizes a frame and converts it to YUV 4:2:0 in BT.601's studio range."""
    height, width = size
    options: dict[str, Any] = {"interpolation": BILINEAR, "threads": 1}
    if frame.color_range == av.video.reformatter.ColorRange.JPEG and not frame.format.is_rgb:
        # swscale's own range conversion enlarges U and V by 0.3 of 255.
        frame = to_rgb.reformat(frame, width, height, "rgb24", **options)
    return scaler.reformat(
        frame, width, height, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", **options
    )
