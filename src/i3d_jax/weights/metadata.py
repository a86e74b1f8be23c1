"""The description of weights, and the network and tensors that fit it."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax

from i3d_jax import labels, models
from i3d_jax.inflate import named_leaves
from i3d_jax.models.network import CHANNELS
from i3d_jax.weights.published import WeightsError

MAX_SIDE = 4096  # Pixels.
MAX_FRAMES = 10**9  # Stands for all frames of a video.
MAX_NUMBER = 10**9
NOT_OPTIONS = "num_classes", "parent", "name"  # Attributes that a description cannot set.
# Names of options in files of earlier versions.
RENAMED_OPTIONS = {"fixed": "freeze_backbone"}
# Options of earlier versions that concern training only.
REMOVED_OPTIONS = ("norm_groups",)
SCALAR_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Info:
    """What one needs to know to use some weights.

    Attributes:
      model: name in `models.MODELS`.
      classes: names of the logits, in order.
      options: the network's attributes except `num_classes`.
      footprint: what the network takes of a video: stream ("rgb", "flow") -> (most frames, step
        between them at `fps`).
      fps: frames per second of the training videos.
      short_side: the training videos' short side in pixels, before cropping.
      crop: the training videos' crop in pixels.
      source: where the weights come from.

    Raises:
      WeightsError: a field has a wrong type or range. `network` checks whether the model takes it.
    """

    model: str
    classes: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    footprint: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=lambda: {"rgb": (250, 1)}
    )
    fps: float = 25.0
    short_side: int = 256
    crop: int = 224
    source: str = ""

    def __post_init__(self):
        _check("model", self.model, isinstance(self.model, str), "a name")
        named = isinstance(self.classes, tuple | list) and all(
            isinstance(name, str) and name for name in self.classes
        )
        _check("classes", self.classes, named and len(self.classes) > 0, "names, at least one")
        _check("options", self.options, isinstance(self.options, Mapping), "values by name")
        for option, value in self.options.items():
            scalar = isinstance(value, str | bool) or _is_number(value, -MAX_NUMBER, MAX_NUMBER)
            _check(
                f"options: {option}",
                value,
                scalar,
                f"text, true, false, or a number up to {MAX_NUMBER:,}",
            )
        _check(
            "footprint",
            self.footprint,
            isinstance(self.footprint, Mapping) and self.footprint,
            "by stream",
        )
        for stream, pair in self.footprint.items():
            _check("footprint", stream, stream in CHANNELS, " or ".join(CHANNELS))
            pairs = (
                isinstance(pair, tuple | list)
                and len(pair) == 2
                and all(_is_positive_integer(n, MAX_FRAMES) for n in pair)
            )
            _check(
                f"footprint: {stream}",
                pair,
                pairs,
                "(frames, step between them), two positive whole numbers",
            )
        _check("fps", self.fps, _is_number(self.fps, 0.1, 1000), "a number from 0.1 to 1000")
        _check(
            "short_side",
            self.short_side,
            _is_positive_integer(self.short_side, MAX_SIDE),
            f"1 to {MAX_SIDE} pixels",
        )
        _check(
            "crop",
            self.crop,
            _is_positive_integer(self.crop, self.short_side),
            f"1 to short_side, {self.short_side}, pixels",
        )
        _check("source", self.source, isinstance(self.source, str), "text")
        # JSON gives lists, and our file sorts its keys; RGB comes first here.
        object.__setattr__(self, "classes", tuple(self.classes))
        footprint = {
            stream: (frames, stride)
            for stream, (frames, stride) in sorted(self.footprint.items())[::-1]
        }
        object.__setattr__(self, "footprint", footprint)

    @property
    def stream(self) -> str:
        """The streams: "rgb", "flow" or "rgb+flow"."""
        return "+".join(self.footprint)


def _check(field: str, value: Any, fits: Any, wanted: str) -> None:
    if not fits:
        raise WeightsError(f"{field}: {_shorten(value)}, wanted {wanted}")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_positive_integer(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _is_number(value: Any, low: float, high: float) -> bool:
    # False for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def class_names(model: str, number: int) -> tuple[str, ...]:
    """Names of the classes for weights from outside, which come without."""
    if model == "i3d" and number in (400, 600):
        return labels.names(f"kinetics_{number}")
    if model == "inception" and number == 1001:  # TF-Slim's classes.
        return "background", *(f"ImageNet class {i}" for i in range(1, number))
    return tuple(f"class {i}" for i in range(number))


def to_json(info: Info) -> str:
    return json.dumps(dataclasses.asdict(info), sort_keys=True)


def from_json(text: str) -> Info:
    """Reads a description from JSON.

    Raises:
      WeightsError: the text is not the JSON of a description.
    """
    fields = parse_json_object(text, "its description")
    known = {field.name: field for field in dataclasses.fields(Info)}
    for name in fields:
        if name not in known:
            raise WeightsError(
                f"its description has {_shorten(name)}, which this version does not know"
            )
    for name in "model", "classes":
        if name not in fields:
            raise WeightsError(f"its description has no {name}")
    options = fields.get("options")
    if isinstance(options, dict):
        fields["options"] = {
            RENAMED_OPTIONS.get(option, option): value
            for option, value in options.items()
            if option not in REMOVED_OPTIONS
        }
    return Info(**fields)


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """Reads a JSON object from outside.

    Args:
      text: the JSON.
      what: its name for messages.

    Raises:
      WeightsError: the text is no JSON object, or nested too deep.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        found = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise WeightsError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise WeightsError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{what} is {_shorten(found)}, wanted an object")
    return found


def network(info: Info) -> models.Network:
    """Builds the network that is described.

    Raises:
      WeightsError: no such model, or one that does not take these options, streams or frames.
    """
    if info.model not in models.MODELS:
        raise WeightsError(
            f"no model is called {_shorten(info.model)}; there are {', '.join(models.MODELS)}"
        )
    entry = models.MODELS[info.model]
    attributes = {
        field.name: field.default
        for field in dataclasses.fields(entry.network)
        if field.name not in {*NOT_OPTIONS, *entry.attributes}
    }
    for option, value in info.options.items():
        if option not in attributes:
            raise WeightsError(f"options: {info.model} has no option {_shorten(option)}")
        kind = type(attributes[option])
        if kind not in SCALAR_TYPES:  # A type of numbers, which a description has by its name.
            kind = str
        fits = isinstance(value, int | float if kind is float else kind) and (
            kind is bool
        ) == isinstance(value, bool)
        _check(f"options: {option}", value, fits, SCALAR_TYPES[kind])
    streams, wanted = set(info.footprint), set(entry.test)
    if streams != wanted if len(wanted) > 1 else len(streams) > 1:
        raise WeightsError(
            f"footprint: {info.stream}, but {info.model} takes {'+'.join(entry.test)}"
        )
    try:
        made = models.build(info.model, num_classes=len(info.classes), **info.options)
        timing = made.timing
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise WeightsError(f"options: {error}") from None
    for stream, (frames, _) in info.footprint.items():
        if frames < (least := timing.least * timing.frames(stream)):
            raise WeightsError(
                f"footprint: {stream}: {frames} frames, but {info.model} takes at least {least}"
            )
    return made


def variable_shapes(info: Info) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's variables, by path.

    Raises:
      WeightsError: as `network`, or the network cannot be initialised.
    """
    return _cached_shapes(
        info.model,
        json.dumps(dict(info.options)),
        len(info.classes),
        tuple(info.footprint),
        info.crop,
    )


# Cached, since tracing a network takes a second or two.
@functools.lru_cache
def _cached_shapes(
    model: str, options: str, classes: int, streams: tuple[str, ...], crop: int
) -> dict[str, tuple[int, ...]]:
    made = models.build(model, num_classes=classes, **json.loads(options))
    shortest = {stream: (made.timing.least * made.timing.frames(stream), 1) for stream in streams}
    try:
        variables = jax.eval_shape(
            made.init, jax.random.key(0), models.input_shapes(shortest, crop)
        )
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise WeightsError(f"no {model} can be made of its description: {error}") from None
    return {leaf: tuple(value.shape) for leaf, value in named_leaves(variables).items()}
