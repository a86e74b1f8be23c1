"""Runs the network over the clips of a set of videos, once for all conventions."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from i3d_jax import models
from i3d_jax.features import networks
from i3d_jax.fvd import clips, resizing, statistics
from i3d_jax.fvd.clips import Clip, Facts, Selection
from i3d_jax.fvd.conventions import CONVENTIONS, VARIANTS
from i3d_jax.fvd.videos import Arrays, VideoSet
from i3d_jax.video import VideoError

PART = 512  # Features that are kept until they go into the statistics.


class Input(NamedTuple):
    """How the network sees a clip.

    Attributes:
      resize: one of `resizing.RESIZES`.
      resolution: see `resizing.network_input`.
      norm_epsilon: of the network's batch norm.
    """

    resize: str
    resolution: int | None
    norm_epsilon: float


class Request(NamedTuple):
    """What is measured: which clips, and how the network sees them."""

    selection: Selection
    input: Input


class Measured(NamedTuple):
    """The features of a set of videos.

    Attributes:
      statistics: their number, mean and scatter.
      features: f32 [N, D], or None if only the statistics are kept.
      videos: int32 [N], the number of each feature's video, or None.
      digests: uint8 [N, 16], equal for equal clips, or None.
      about: counts, by name: "videos" that gave clips, "unusable" videos, "static" clips, and how
        many videos have a "size" ("256x340", height first), "length" in frames and "fps".
    """

    statistics: statistics.Statistics
    features: np.ndarray | None
    videos: np.ndarray | None
    digests: np.ndarray | None
    about: dict[str, Any]


class _Collected:
    """The features of a request, as they come."""

    def __init__(self, request: Request, keep: bool):
        self.selection, self._keep = request.selection, keep
        self.taken = 0  # Clips that went to the network.
        self.about: dict[str, Any] = {
            "videos": 0,
            "static": 0,
            "size": collections.Counter(),
            "length": collections.Counter(),
            "fps": collections.Counter(),
        }
        self._last_video = -1
        self._videos: list[int] = []
        self._digests: list[bytes] = []
        self._rows: list[np.ndarray] = []
        self._statistics: statistics.Statistics | None = None

    @property
    def is_full(self) -> bool:
        return self.selection.number is not None and self.taken >= self.selection.number

    def take(self, clip: Clip, facts: Facts, digest: bytes, is_static: bool) -> None:
        """Counts a clip whose features will come."""
        self.taken += 1
        self.about["static"] += is_static
        if clip.video != self._last_video:
            self._last_video = clip.video
            height, width = clip.frames.shape[1:3]
            self.about["videos"] += 1
            self.about["size"][f"{height}x{width}"] += 1
            self.about["length"][str(facts.frames)] += 1
            self.about["fps"]["unknown" if facts.fps is None else f"{facts.fps:g}"] += 1
        if self._keep:
            self._videos.append(clip.video)
            self._digests.append(digest)

    def add(self, row: np.ndarray) -> None:
        """Adds the features of the next clip."""
        self._rows.append(row)
        if not self._keep and len(self._rows) >= PART:
            self._merge()

    def _merge(self) -> None:
        found = statistics.of(np.stack(self._rows))
        before = self._statistics or statistics.empty(found.mean.size)
        self._statistics, self._rows = statistics.merge(before, found), []

    def finish(self, unusable: int) -> Measured | None:
        """All of it; None if there was no clip."""
        if not self.taken:
            return None
        about = {
            name: dict(each) if isinstance(each, dict) else each
            for name, each in self.about.items()
        }
        about["unusable"] = unusable
        if self._keep:
            rows = np.stack(self._rows)
            digests = np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, 16)
            videos = np.array(self._videos, np.int32)
            return Measured(statistics.of(rows), rows, videos, digests, about)
        if self._rows:
            self._merge()
        assert self._statistics is not None
        return Measured(self._statistics, None, None, None, about)


class Network:
    """A network that gives a layer's features of clips; compiled once for each epsilon.

    Args:
      source: the network, and its layer.
      batch_size: clips that a device takes at a time; on a CPU it is always 1.
    """

    def __init__(self, source: networks.Source, batch_size: int = 16):
        self.source = source
        self.side = source.info.crop
        self.devices = jax.local_devices()
        self.per_device = 1 if networks.one_by_one() else batch_size
        self._programs: dict[float, networks.Programs] = {}

    @property
    def batch_size(self) -> int:
        """Clips of a batch, on all devices together."""
        return self.per_device * len(self.devices)

    @property
    def least(self) -> int:
        """Frames of the shortest clip that the network takes."""
        return self.source.network.timing.least

    def resized(self, place: int, frames: np.ndarray, how: Input) -> jax.Array:
        """A clip as the network takes it, on the device of its place in the batch."""
        device = self.devices[place // self.per_device]
        return resizing.network_input(
            jax.device_put(frames, device),
            resize=how.resize,
            resolution=how.resolution,
            side=self.side,
        )

    def features(self, batch: Sequence[jax.Array], norm_epsilon: float) -> jax.Array:
        """The features f32 [B, D] of a batch of resized clips.

        Args:
          batch: of `resized`, one for each place from 0 on; missing ones are repeated.
          norm_epsilon: of the network's batch norm.
        """
        if norm_epsilon not in self._programs:
            network = self.source.network.clone(norm_epsilon=norm_epsilon)
            self._programs[norm_epsilon] = networks.Programs(
                [self.source._replace(network=network)]
            )
        programs = self._programs[norm_epsilon]
        parts = []
        for number, device in enumerate(self.devices):
            own = batch[number * self.per_device : (number + 1) * self.per_device]
            filled = [*own, *[batch[-1]] * (self.per_device - len(own))]
            parts.append(jax.numpy.stack([jax.device_put(each, device) for each in filled]))
        shape = self.batch_size, *parts[0].shape[1:]
        clips_on_devices = jax.make_array_from_single_device_arrays(shape, programs.sharding, parts)
        with models.small_rounding_errors():  # The number is compared with other programs'.
            (found,) = programs.window_means({"rgb": clips_on_devices})
        return found


class _Batches:
    """Fills batches of clips for one epsilon, and hands on the features as they come."""

    def __init__(self, network: Network, norm_epsilon: float):
        self._network, self._epsilon = network, norm_epsilon
        self._clips: list[jax.Array] = []
        self._targets: list[list[_Collected]] = []
        self._running: collections.deque = collections.deque()

    def add(self, frames: np.ndarray, how: Input, targets: list[_Collected]) -> None:
        """Adds a clip; its features go to all targets."""
        self._clips.append(self._network.resized(len(self._clips), frames, how))
        self._targets.append(targets)
        if len(self._clips) == self._network.batch_size:
            self._run()
        while len(self._running) > 1:
            self._collect()

    def finish(self) -> None:
        """Runs the last batch, and collects all that is left."""
        if self._clips:
            self._run()
        while self._running:
            self._collect()

    def _run(self) -> None:
        found = self._network.features(self._clips, self._epsilon)
        self._running.append((found, self._targets))
        self._clips, self._targets = [], []

    def _collect(self) -> None:
        found, targets = self._running.popleft()
        for row, each in zip(np.asarray(found), targets, strict=False):  # It may have been filled.
            for target in each:
                target.add(row)


def measure(
    videos: VideoSet,
    network: Network,
    requests: Sequence[Request],
    *,
    frames: int,
    stride: int = 1,
    keep: bool = True,
    numbers: Sequence[int] | None = None,
    on_error: Callable[[VideoError], None] = lambda error: None,
    advance: Callable[[int], None] = lambda number: None,
) -> list[Measured | None]:
    """Measures a set of videos for several requests, in one pass.

    Every video is decoded once. Clips that several requests take, in the same way, go through the
    network once.

    Args:
      videos: the videos.
      network: the network.
      requests: what is measured.
      frames: of a clip.
      stride: from one frame of a clip to the next.
      keep: whether features are kept; otherwise memory does not depend on the number of videos.
      numbers: of the videos that are measured; None is all.
      on_error: called with what is wrong with a video, which is left out; may raise.
      advance: called with the number of clips that went to the network; may raise.

    Returns:
      what was measured for each request; None if there was no clip.
    """
    collected = [_Collected(request, keep) for request in requests]
    batches = {
        epsilon: _Batches(network, epsilon) for epsilon in {r.input.norm_epsilon for r in requests}
    }
    chosen = range(len(videos.names)) if numbers is None else numbers

    def wanted() -> set[Selection]:
        return {each.selection for each in collected if not each.is_full}

    unusable, facts = 0, Facts(0, None)
    for item in clips.read_clips(videos, chosen, wanted, frames, stride):
        if isinstance(item, VideoError):
            unusable += 1
            on_error(item)
        elif isinstance(item, Facts):
            facts = item
        else:
            targets = _targets(item, requests, collected, network.side)
            digest, is_static = item.digest if keep else b"", item.is_static
            for how, each in targets.items():
                batches[how.norm_epsilon].add(item.frames, how, each)
                for target in each:
                    target.take(item, facts, digest, is_static)
            advance(len(targets))
    for each in batches.values():
        each.finish()
    return [each.finish(unusable) for each in collected]


def _targets(
    clip: Clip, requests: Sequence[Request], collected: Sequence[_Collected], side: int
) -> dict[Input, list[_Collected]]:
    """Who gets a clip's features, by the ways in which the network sees it."""
    height, width = clip.frames.shape[1:3]
    found: dict[Input, list[_Collected]] = {}
    for request, target in zip(requests, collected, strict=True):
        if request.selection in clip.selections and not target.is_full:
            how = request.input
            resize, resolution = resizing.same_resize(
                how.resize, how.resolution, height, width, side
            )
            how = Input(resize, resolution, how.norm_epsilon)
            found.setdefault(how, []).append(target)
    return found


def features(
    videos: np.ndarray,
    convention: str = "reference",
    *,
    weights: str = "rgb_scratch",
    layer: str | None = None,
) -> np.ndarray:
    """The features of clips in memory, each a whole video, for `fvd.distance`.

    The network stays in memory for later calls.

    Args:
      videos: uint8 [N, T, H, W, 3], or floats from 0 to 1; T >= 9.
      convention: one of CONVENTIONS or VARIANTS, which says how frames are resized.
      weights: published weights, or a file; FVD is on those of rgb_scratch.
      layer: of the network; None is the convention's.

    Returns:
      f32 [N, D]; FVD's logits are [N, 400].

    Raises:
      ValueError: videos of another type, shape or range, fewer than 9 frames, or no such
        convention.
      weights.WeightsError: the weights cannot be had.
    """
    known = CONVENTIONS | VARIANTS
    if convention not in known:
        raise ValueError(f"no convention is called {convention!r}; there are {', '.join(known)}")
    row = known[convention]
    network = load(weights, layer or row.layer)
    given = Arrays(np.asarray(videos))
    request = Request(Selection("first"), Input(row.resize, None, row.norm_epsilon))
    frames = videos.shape[1]
    check_frames(network, frames)

    def fail(error: VideoError) -> None:
        raise error

    (found,) = measure(given, network, [request], frames=frames, on_error=fail)
    assert found is not None and found.features is not None
    return found.features


@functools.lru_cache(maxsize=2)
def load(weights: str, layer: str, batch_size: int = 16) -> Network:
    """Loads a network; see `Network`.

    Raises:
      weights.WeightsError: the weights cannot be had, are not for RGB, or have no such layer.
    """
    (source,) = networks.load([weights], layer, "rgb")
    return Network(source, batch_size)


def check_frames(network: Network, frames: int) -> None:
    """Raises a ValueError if clips of so many frames are too short for the network."""
    if frames < network.least:
        model = network.source.info.model
        raise ValueError(f"clips of {frames} frames, but {model} needs {network.least} at least")
