"""The settings of well-known features: grids, widths, and names and shapes of files.

Rows, times and shapes are theirs; values are not (see docs/howto/features.md). The sources are
the projects' code and issues, as of 2026.
"""

from typing import Any, NamedTuple

from i3d_jax.features.grids import Windows


class Preset(NamedTuple):
    """Options of the command that a preset sets.

    Attributes:
      what: whose features these are.
      windows: the windows; None is the dense grid.
      stream: "rgb", "flow" or "both".
      fps: "own", or frames per second.
      crop: as in `reading.CROPS`.
      format: as in `outputs.FORMATS`.
      prefix: of file names.
      per_frame: as in `grids.PER_FRAME`; None keeps the grid's rows.
      keep_space: whether rows are not averaged over space.
    """

    what: str
    windows: Windows | None
    stream: str = "both"
    fps: str | float = "own"
    crop: str = "centre"
    format: str = "joint"
    prefix: str = ""
    per_frame: str | None = None
    keep_space: bool = False

    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {name: value for name, value in self._asdict().items() if name != "what"}


PRESETS = {
    "actionformer": Preset("ActionFormer on THUMOS14", Windows(16, 4, "drop")),
    "actionformer_anet": Preset(
        "ActionFormer on ActivityNet", Windows(16, 16, "drop"), fps=25.0, prefix="v_"
    ),
    # It waits for one more frame than a window has, also for RGB.
    "video_features": Preset("video_features", Windows(64, 64, "drop", 1), format="npy"),
    "bmt": Preset("MDVC and BMT", Windows(24, 24, "drop"), fps=25.0, format="npy"),
    "wtalc": Preset("W-TALC and SF-Net", Windows(16, 16, "drop"), fps=25.0),
    # Others drop the last window; RTFM repeats its last frame.
    "rtfm": Preset("RTFM", Windows(16, 16, "pad"), stream="rgb", crop="ten"),
    "pytorch_i3d": Preset("pytorch-i3d", None, stream="rgb", keep_space=True),
    "ms_tcn": Preset("MS-TCN", None, format="joint-transposed", per_frame="nearest"),
}
