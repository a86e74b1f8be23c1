"""Files of features with what they were made from: written once, and known again."""

import sys
from importlib import metadata
from typing import Any

from i3d_jax import flow, weights
from i3d_jax.features import outputs
from i3d_jax.features.jobs import Job
from i3d_jax.features.outputs import Features
from i3d_jax.features.task import Extraction

VERSION = 1  # Of the method; increased when results change by more than rounding.


def settings_of(what: Extraction, layer: str, flow_preset: str, form: str) -> dict[str, Any]:
    """The settings that features depend on; values that JSON has.

    Args:
      what: is computed.
      layer: whose activations the features are.
      flow_preset: of the optical flow, if a network takes it.
      form: one of `outputs.FORMATS`.
    """
    how, grid = what.how, what.windows or what.sources[0].grid
    return {
        "version": VERSION,
        "weights": [
            {
                "stream": each.stream,
                "model": each.info.model,
                "fingerprint": weights.fingerprint(each.variables),
            }
            for each in what.sources
        ],
        "layer": layer,
        "averaged_over_space": not what.keep_space,
        "grid": {"kind": "windows" if what.windows else "dense", **grid._asdict()},
        "per_frame": what.per_frame,
        "fps": "own" if how.fps is None else how.fps,
        "short_side": how.short_side,
        "crop": {"kind": how.crop, "size": None if how.crop == "whole" else how.size},
        "flow": flow.recipe(flow_preset) if "flow" in how.streams else None,
        "format": form,
    }


class Outputs:
    """The files of features in a folder.

    Attributes:
      form: one of FORMATS.
      settings: of all files.
      made_by: names of the weights, and versions; they are not compared.
    """

    def __init__(self, form: str, settings: dict[str, Any], names: list[str]):
        self.form, self.settings = form, settings
        versions = {name: metadata.version(name) for name in ("jax", "av", "numpy")}
        package = getattr(sys.modules["i3d_jax"], "__version__", "unknown")
        self.made_by = {"weights": names, "versions": {"i3d_jax": package, **versions}}

    def is_done(self, job: Job) -> bool:
        """Whether the features of a video are there, and whole.

        Raises:
          ValueError: the target has the features of another video.
        """
        if not job.source.exists():
            return False
        about = outputs.read_about(job.target, self.form)
        if about is None or about.get("settings") != self.settings:
            return False
        found = {name: about.get("video", {}).get(name) for name in ("name", "bytes")}
        if found != self._identity(job):
            raise ValueError(
                f"{job.target}: has the features of another {found['name']}, of {found['bytes']} "
                "bytes; use another --out"
            )
        return True

    def write(self, job: Job, found: Features) -> None:
        """Writes the features of a video."""
        seen = self._identity(job) | {"frames": found.length, "fps": found.fps}
        about = {"settings": self.settings, "video": seen, "made_by": self.made_by}
        outputs.write(job.target, self.form, found, about)

    def _identity(self, job: Job) -> dict[str, Any]:
        """What tells a video from others of its name."""
        return {"name": job.source.name, "bytes": job.source.stat().st_size}
