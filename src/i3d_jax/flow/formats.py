"""Writers of flow, one per format.

Each is a function of a path, the flow in pixels frame by frame, and the motion in full colour.
"""

import fractions
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import av
import numpy as np

from i3d_jax import pixels, video
from i3d_jax.flow.colours import flow_to_rgb
from i3d_jax.video import h264

Flow = Iterable[np.ndarray]


def write_h264(path: pathlib.Path, flow: Flow, _: float) -> None:
    """Writes flow as records of data sets hold it."""
    path.write_bytes(h264.encode(map(pixels.flow_bytes, flow)))


def write_npz(path: pathlib.Path, flow: Flow, _: float) -> None:
    """Writes flow as an array, frame by frame: all frames may not fit into memory."""
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


def write_colours(path: pathlib.Path, flow: Flow, full_colour: float) -> None:
    """Writes flow as a video in colours."""
    h264.write(path, (flow_to_rgb(frame, full_colour) for frame in flow))


def write_pngs(path: pathlib.Path, flow: Flow, full_colour: float) -> None:
    """Writes flow as a folder of pictures in colours."""
    path.mkdir()
    encoder = av.CodecContext.create("png", "w")
    for index, frame in enumerate(flow):
        image = av.VideoFrame.from_ndarray(flow_to_rgb(frame, full_colour), format="rgb24")
        if not encoder.is_open:
            encoder.height, encoder.width, encoder.pix_fmt = image.height, image.width, "rgb24"
            encoder.time_base = fractions.Fraction(1, round(video.FPS))
        data = b"".join(bytes(packet) for packet in encoder.encode(image))
        (path / f"{index:05d}.png").write_bytes(data)


class Format(NamedTuple):
    """A format of flow.

    Attributes:
      suffix: what replaces the suffix of a video's name.
      write: the writer.
    """

    suffix: str
    write: Callable[[pathlib.Path, Flow, float], None]


FORMATS = {
    "h264": Format(".mp4", write_h264),
    "npz": Format(".npz", write_npz),
    "colours": Format(".colours.mp4", write_colours),
    "png": Format(".frames", write_pngs),
}
PICTURE_FORMATS = ("colours", "png")
