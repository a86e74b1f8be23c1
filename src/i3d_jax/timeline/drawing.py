"""What `predict --video` and `predict --picture` shall draw: checked before the work begins."""

import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from i3d_jax import flow, weights
from i3d_jax.models import Network
from i3d_jax.pictures import layout, png
from i3d_jax.timeline import annotated, contact_sheet
from i3d_jax.timeline.annotated import Explanation, Watched
from i3d_jax.timeline.heat import HeatMaps, VideoHeat, video_heat
from i3d_jax.timeline.rows import VideoRows
from i3d_jax.video import h264


class Explainer(NamedTuple):
    """The networks that heat maps are computed of.

    Attributes:
      maps: of each network.
      target: number of the class; None: the likeliest one of the video.
    """

    maps: Sequence[HeatMaps]
    target: int | None


class Drawing(NamedTuple):
    """What is drawn of a video.

    Attributes:
      video: the MP4 file to write, or None.
      picture: the PNG file to write, or None.
      explain: whether heat maps are drawn.
      class_name: what they explain; None: the likeliest class of the whole video.
      show_flow: whether flow is drawn even if no network takes it.
      top_k: most classes that are drawn.
    """

    video: pathlib.Path | None
    picture: pathlib.Path | None
    explain: bool = False
    class_name: str | None = None
    show_flow: bool = False
    top_k: int = 5

    def check_files(self, paths: Sequence[str]) -> None:
        """Checks the files to read and to write, before the work begins.

        Args:
          paths: the videos.

        Raises:
          ValueError: there is not exactly one video, or a file cannot be written there.
        """
        targets = {
            "--video": (self.video, ".mp4", "annotated video"),
            "--picture": (self.picture, ".png", "contact sheet"),
        }
        for flag, (path, suffix, kind) in targets.items():
            if path is None:
                continue
            if len(paths) != 1:
                raise ValueError(f"{flag}: {len(paths)} videos to draw, wanted one")
            if path.suffix.lower() != suffix:
                raise ValueError(f"{flag}: {path} has another extension than {suffix}")
            if not path.parent.is_dir():
                raise ValueError(
                    f"{flag}: {path} cannot be written: there is no folder {path.parent}"
                )
            if path.is_dir():
                raise ValueError(f"{flag}: {path} is a folder, wanted a file")
            if path.exists() and os.path.exists(paths[0]) and path.samefile(paths[0]):
                raise ValueError(f"{flag}: {path} is the video to read; name another file")
            if path.exists() and not _is_ours(path):
                raise ValueError(f"{flag}: {path} is there already, and is no {kind} of ours")

    def explainer(
        self, names: Sequence[str], networks: Sequence[tuple[Network, Any, weights.Info]]
    ) -> Explainer | None:
        """What computes the heat maps; None if it has none.

        Args:
          names: of the weights, for messages.
          networks: each with its variables and what is known of them.

        Raises:
          ValueError: there is no class of that name, two networks take the same stream, or one of
            them has no heat maps.
        """
        if not self.explain:
            return None
        infos = [info for _, _, info in networks]
        target = None
        if self.class_name is not None:
            target = class_index(self.class_name, infos[0].classes)
        taken: dict[str, str] = {}
        for name, info in zip(names, infos, strict=True):
            for stream in info.footprint:
                if stream in taken:
                    both = f"{taken[stream]} and {name}"
                    raise ValueError(f"--explain: {both} take {stream}, wanted one network of it")
                taken[stream] = name
        maps = []
        for name, (network, variables, info) in zip(names, networks, strict=True):
            try:
                maps.append(HeatMaps(network, variables, info))
            except ValueError as error:
                raise ValueError(f"--explain: {name}: {error}") from None
        return Explainer(maps, target)

    def draw(
        self,
        path: str,
        rows: VideoRows,
        infos: Sequence[weights.Info],
        explainer: Explainer | None,
        settings: flow.TVL1,
        advance: Callable[[int], Any] = lambda frames: None,
    ) -> None:
        """Draws a video.

        Args:
          path: of the video.
          rows: its predictions.
          infos: of the weights that they are of.
          explainer: from `explainer`.
          settings: of the flow.
          advance: called with numbers of frames that are done, for the heat maps and for the video.

        Raises:
          VideoError: the video cannot be read.
          OSError: a file cannot be written.
        """
        explanation = None
        if explainer is not None:
            target = explainer.target
            if target is None:
                target = int(annotated.likeliest(rows, 1)[0])
            found: dict[str, VideoHeat] = {}
            infos_of = {}
            for maps in explainer.maps:
                found |= video_heat(path, maps, target, settings, advance)
                infos_of |= dict.fromkeys(maps.info.footprint, maps.info)
            explanation = Explanation(target, found, infos_of)
        takes_flow = any("flow" in info.footprint for info in infos)
        watched = Watched(
            path,
            rows,
            infos[0].classes,
            annotated.likeliest(rows, min(self.top_k, len(layout.CLASSES))),
            infos[0].short_side,
            explanation,
            settings if takes_flow or self.show_flow else None,
        )
        if self.picture is not None:
            contact_sheet.write(self.picture, watched)
        if self.video is not None:
            annotated.write_video(self.video, watched, advance)


def _is_ours(path: pathlib.Path) -> bool:
    """Whether a file is one that a `Drawing` may replace."""
    if path.suffix.lower() == ".png":
        return png.is_of_kind(path, contact_sheet.SOFTWARE)
    return h264.comment_of(path) == annotated.COMMENT


def class_index(name: str, classes: Sequence[str]) -> int:
    """The number of a class.

    Raises:
      ValueError: no class has this name; the message has the most similar ones.
    """
    if name in classes:
        return list(classes).index(name)
    by_lower = {each.lower(): each for each in classes}
    near = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)]
    nearest = f"the nearest are {', '.join(map(repr, near))}" if near else "none is similar"
    raise ValueError(f"--explain-class: none of the {len(classes)} classes is {name!r}; {nearest}")
