"""How flow is written: functions (path, flow in pixels frame by frame, the pixels that have full colour)."""

import fractions
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import av
import numpy as np

from i3d_jax import pixels, video
from i3d_jax.flow.colours import colours
from i3d_jax.video import h264

Flow = Iterable[np.ndarray]


def write_h264(path: pathlib.Path, flow: Flow, _: float) -> None:
    path.write_bytes(h264.encode(map(pixels.flow_bytes, flow)))


def write_npz(path: pathlib.Path, flow: Flow, _: float) -> None:
    """Frame by frame: there may be more of them than memory has room for."""
    raw = path.with_name(f"{path.name}.raw")
    try:
        count, shape = 0, (0, 0, 2)
        with raw.open("wb") as file:
            for frame in flow:
                count, shape = count + 1, frame.shape
                file.write(pixels.flow_unit(frame).tobytes())
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
        with (
            zipfile.ZipFile(path, "w") as archive,
            archive.open("flow.npy", "w", force_zip64=True) as member,
            raw.open("rb") as file,
        ):
            np.lib.format.write_array_header_1_0(member, header)
            while part := file.read(2**20):
                member.write(part)
    finally:
        raw.unlink(missing_ok=True)


def write_colours(path: pathlib.Path, flow: Flow, most: float) -> None:
    path.write_bytes(h264.encode(colours(frame, most) for frame in flow))


def write_pngs(path: pathlib.Path, flow: Flow, most: float) -> None:
    path.mkdir()
    encoder = av.CodecContext.create("png", "w")
    for index, frame in enumerate(flow):
        image = av.VideoFrame.from_ndarray(colours(frame, most), format="rgb24")
        if not encoder.is_open:
            encoder.height, encoder.width, encoder.pix_fmt = image.height, image.width, "rgb24"
            encoder.time_base = fractions.Fraction(1, round(video.FPS))
        data = b"".join(bytes(packet) for packet in encoder.encode(image))
        (path / f"{index:05d}.png").write_bytes(data)


class Format(NamedTuple):
    """What comes after a video's name, and the function that writes."""

    suffix: str
    write: Callable[[pathlib.Path, Flow, float], None]


FORMATS = {
    "h264": Format(".mp4", write_h264),
    "npz": Format(".npz", write_npz),
    "colours": Format(".colours.mp4", write_colours),
    "png": Format(".frames", write_pngs),
}
PICTURES = ("colours", "png")
