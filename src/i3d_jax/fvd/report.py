"""What is said of a distance: the number, its error, its settings in one line, and warnings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from i3d_jax.fvd import frechet, intervals, kernel, resizing
from i3d_jax.fvd.conventions import CONVENTIONS, SAMPLINGS, Convention
from i3d_jax.fvd.measuring import Measured

FEW = 256  # Clips; what authors of FVD's implementations advise at least.
TINY = 112  # Pixels of a short side that is enlarged to twice as many or more.
# Settings that two sets must share; the others may differ between real and generated videos.
SHARED = (
    "fingerprint",
    "layer",
    "resize",
    "side",
    "norm_epsilon",
    "frames",
    "stride",
)


class Report(NamedTuple):
    """A distance, and all that belongs to it.

    Attributes:
      name: of the convention.
      terms: the Fréchet distance and its terms.
      interval: its error, or None if features were not kept.
      kernel: the kernel distance, or None.
      extrapolated: the distance of infinitely many clips, or None.
      line: the number, its standard error and every setting, to be pasted into a paper.
      warnings: what makes the number less than it seems.
      record: all of it, as JSON has it.
    """

    name: str
    terms: frechet.Terms
    interval: intervals.Interval | None
    kernel: kernel.KernelDistance | None
    extrapolated: float | None
    line: str
    warnings: tuple[str, ...]
    record: dict[str, Any]

    @property
    def text(self) -> str:
        """The line, and one each for the extrapolated and the kernel distance."""
        lines = [self.line]
        if self.extrapolated is not None:
            number = _number(self.extrapolated)
            lines.append(f"for infinitely many clips {number} ({self.name}; a line over 1 / N)")
        if self.kernel is not None:
            value, error, blocks = self.kernel
            spread = "" if error is None else f" ± {error:.2g}"
            part = "1 block" if blocks == 1 else f"{blocks} blocks"
            lines.append(f"KVD {value:.4g}{spread} ({self.name}; {part})")
        return "\n".join(lines)


def differences(real: Mapping[str, Any], generated: Mapping[str, Any]) -> list[str]:
    """The settings in which two sets differ that must share them, each as a phrase."""
    # Arrays do not go through a loader, and have no resolution.
    both = real.get("resolution") and generated.get("resolution")
    return [
        f"{name} {real.get(name)!r} and {generated.get(name)!r}"
        for name in (*SHARED, *(["resolution"] if both else []))
        if real.get(name) != generated.get(name)
    ]


def compare(
    name: str,
    convention: Convention,
    real: tuple[Mapping[str, Any], Measured],
    generated: tuple[Mapping[str, Any], Measured],
    replicates: int,
    infinite: bool,
    version: str,
) -> Report:
    """Computes the distance of two measured sets, and describes it.

    Args:
      name: of the convention.
      convention: the convention.
      real: the settings and the measured set.
      generated: as `real`.
      replicates: of the bootstrap; 0 leaves it out.
      infinite: whether to extrapolate to infinitely many clips.
      version: of this package.
    """
    ddof, sets = convention.ddof, (real[1], generated[1])
    given = [each.statistics if each.features is None else each.features for each in sets]
    found = frechet.terms(given[0], given[1], ddof)
    interval = distance = extrapolated = None
    if replicates and any(each.features is not None for each in sets):
        interval = intervals.bootstrap(
            given[0],
            given[1],
            ddof,
            real_videos=sets[0].videos,
            generated_videos=sets[1].videos,
            replicates=replicates,
        )
    if sets[0].features is not None and sets[1].features is not None:
        distance = kernel.kernel_distance(sets[0].features, sets[1].features)
        if infinite:
            extrapolated = intervals.extrapolate(sets[0].features, sets[1].features, ddof)
    elif infinite:
        raise ValueError("--extrapolate needs features, and a set has statistics only")
    counts = [each.statistics.number for each in sets]
    error = "" if interval is None else f" ± {_number(interval.standard_error)}"
    settings = settings_text(name, convention, real[0], generated[0])
    metric = "FVD" if name in CONVENTIONS else name.upper()
    line = (
        f"{metric} {_number(found.distance)}{error} ({settings}; "
        f"N {counts[0]} real, {counts[1]} generated; i3d_jax {version})"
    )
    said = warnings(*sets) + tuple(
        f"the sets differ: {each}" for each in differences(real[0], generated[0])
    )
    if convention.unknown:
        said += (f"not known: {convention.unknown}",)
    record: dict[str, Any] = {
        "fvd": found.distance,
        "convention": name,
        "means_term": found.means,
        "covariances_term": found.covariances,
        **({} if interval is None else interval._asdict()),
        **({} if extrapolated is None else {"extrapolated": extrapolated}),
        **({} if distance is None else {"kvd": distance.distance}),
        **({} if distance is None else {"kvd_standard_error": distance.standard_error}),
        "real": _side(*real),
        "generated": _side(*generated),
        "ddof": ddof,
        "settings": settings,
        "warnings": list(said),
        "version": version,
    }
    return Report(name, found, interval, distance, extrapolated, line, said, record)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.6g}"


def _side(settings: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    return {"clips": measured.statistics.number, **measured.about, "settings": dict(settings)}


def settings_text(
    name: str, convention: Convention, real: Mapping[str, Any], generated: Mapping[str, Any]
) -> str:
    """Every setting in words, after the convention's name."""
    resize = resizing.RESIZES[real["resize"]].replace("224", str(real["side"]))
    loaded = [_loaded(each) for each in (real, generated)]
    before = loaded[0] if loaded[0] == loaded[1] else f"{loaded[0]}(real), {loaded[1]}(generated) "
    stride = "" if real["stride"] == 1 else f", every {real['stride']}th"
    rate = "" if real["fps"] is None else f" at {real['fps']:g} frames per second"
    chosen = [_chosen(each) for each in (real, generated)]
    clips = chosen[0] if chosen[0] == chosen[1] else f"{chosen[0]} (real), {chosen[1]} (generated)"
    return (
        f"{name}: {real['weights']} {real['layer']}; {real['frames']} frames{stride}{rate}; "
        f"{clips}; {before}{resize}; "
        f"batch-norm epsilon {real['norm_epsilon']:g}; ddof {convention.ddof}"
    )


def _loaded(settings: Mapping[str, Any]) -> str:
    side = settings["resolution"]
    return f"{side}x{side} antialiased and cropped, then " if side else ""


def _chosen(settings: Mapping[str, Any]) -> str:
    seed = f", seed {settings['seed']}" if settings["clips"] == "random" else ""
    most = "" if settings["number"] is None else f", first {settings['number']}"
    return f"{SAMPLINGS[settings['clips']]}{seed}{most}"


def warnings(real: Measured, generated: Measured) -> tuple[str, ...]:
    """What makes the distance of two sets less than it seems, a sentence each."""
    found = []
    dimensions = real.statistics.mean.size
    counts = {"real": real.statistics.number, "generated": generated.statistics.number}
    for what, count in counts.items():
        if count < FEW:
            found.append(f"{count} {what} clips: {FEW} at least are advised, few bias the number")
        elif count < dimensions:
            found.append(
                f"{count} {what} clips: fewer than the {dimensions} dimensions, which biases "
                "the number"
            )
    if counts["real"] != counts["generated"]:
        numbers = f"{counts['real']} real and {counts['generated']} generated clips"
        found.append(f"{numbers}: the bias depends on both; compare models at equal numbers")
    for what, each in ("real", real), ("generated", generated):
        found += _own_warnings(what, each)
    lengths, rates = (_only(real, generated, each) for each in ("length", "fps"))
    if lengths:
        found.append(f"real and generated videos have other lengths in frames: {lengths}")
    if rates:
        found.append(f"real and generated videos have other frames per second: {rates}")
    found += _copies(real, generated)
    return tuple(found)


def _own_warnings(what: str, measured: Measured) -> list[str]:
    found, about, count = [], measured.about, measured.statistics.number
    if about["unusable"]:
        found.append(f"{about['unusable']} {what} videos cannot be used, and are left out")
    if about["static"]:
        found.append(f"{about['static']} of {count} {what} clips do not move: all frames are equal")
    if measured.digests is not None:
        copies = count - len(np.unique(measured.digests, axis=0))
        if copies:
            found.append(f"{copies} of {count} {what} clips are copies of others")
    sizes = {tuple(map(int, name.split("x"))): number for name, number in about["size"].items()}
    if len(sizes) > 1:
        ends = f"{_size(sizes, min)} to {_size(sizes, max)}"
        found.append(f"{what} videos have {len(sizes)} sizes, from {ends}")
    tiny = sum(number for size, number in sizes.items() if min(size) <= TINY)
    if tiny:
        found.append(
            f"{tiny} of {about['videos']} {what} videos have a short side of {TINY} pixels or "
            "less: what the network sees is mostly the resize"
        )
    return found


def _size(sizes: Mapping[tuple[int, ...], int], which: Any) -> str:
    height, width = which(sizes, key=lambda size: (size[0] * size[1], size))
    return f"{width}x{height}"


def _only(real: Measured, generated: Measured, what: str) -> str:
    """How the videos of two sets differ in a counter's keys; "" if they do not."""
    keys = [
        {float(key) for key in each.about[what] if key != "unknown"} for each in (real, generated)
    ]
    if not all(keys) or keys[0] == keys[1]:
        return ""
    texts = [
        f"{min(each):g}" if len(each) == 1 else f"{min(each):g} to {max(each):g}" for each in keys
    ]
    return f"{texts[0]} and {texts[1]}"


def _copies(real: Measured, generated: Measured) -> list[str]:
    if real.digests is None or generated.digests is None:
        return []
    known = {bytes(each) for each in real.digests}
    copies = sum(bytes(each) in known for each in generated.digests)
    if not copies:
        return []
    return [f"{copies} of {len(generated.digests)} generated clips are equal to real ones"]
