"""Forward passes and training steps: ours, XLA's plain form, and PyTorch's, in turns in one run.

    python experiments/benchmarks/model.py forward
    python experiments/benchmarks/model.py train --frames 16 --batch 2
    python experiments/benchmarks/model.py forward --model all
    python experiments/benchmarks/model.py train --batch 16 --forms "ours, bfloat16" "PyTorch, bfloat16, channels last, compiled"

PyTorch takes part where it is installed (extra `benchmark`): the networks of `torch_zoo.py`, contiguous and channels-last, float32 and,
where the hardware has it, under bfloat16 autocast; on an accelerator also as torch.compile makes them. --forms names others to take part.
Prints a Markdown table: seconds (median and spread over the rounds), times as fast as PyTorch's best float32, multiply-adds per second
as a share of a large matrix product's in the same run, temporary memory, and how long tracing and compiling take, the first time and
with the program in JAX's cache.

With `--model all` one row for each network of the zoo on its training clip of the paper: ours (float32, or the first of --forms) and
PyTorch's best form.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from i3d_jax import cli, models
from i3d_jax.models import convolution
from i3d_jax.models.__main__ import multiply_adds
from i3d_jax.training import optimizers
from i3d_jax.training.step import initial_state, train_step
from i3d_jax.video import planes

TRAINING = 3  # Forward passes that a step's arithmetic is.
BATCHES = {
    "inception": 16,
    "convnet_lstm": 2,
    "c3d": 4,
    "two_stream": 8,
    "fused_two_stream": 2,
}  # Of the others 1.
COMPILING = "compiling; from the cache"


@dataclasses.dataclass
class Task:
    """What is measured: a network, its clips, and what is done with them."""

    model: str
    batch: int
    frames: dict[str, int]
    size: int
    train: bool = False
    classes: int = 400

    def streams(self) -> dict[str, np.ndarray]:
        """Noise, f32 [B, T, H, W, C] in [-1, 1]."""
        rng = np.random.default_rng(0)
        return {
            stream: 2
            * rng.random(
                (self.batch, frames, self.size, self.size, models.CHANNELS[stream]), np.float32
            )
            - 1
            for stream, frames in self.frames.items()
        }

    def packed(self) -> dict[str, np.ndarray]:
        """Noise as training's clips are."""
        rng = np.random.default_rng(0)
        return {
            stream: rng.integers(
                0, 255, (self.batch, frames, *planes.packed_shape(stream, self.size)), np.uint8
            )
            for stream, frames in self.frames.items()
        } | {
            "corner": np.zeros((self.batch, 2), np.int32),
            "mirrored": np.zeros(self.batch, bool),
            "label": np.arange(self.batch, dtype=np.int32),
        }

    def build(self, **options: Any) -> models.Network:
        return models.build(self.model, num_classes=self.classes, **options)

    @property
    def variables(self) -> Any:
        """The same for all variants."""
        # Convolutions take any size, and a small one is initialised sooner.
        return _variables(self.model, self.classes, self.size if self.model == "c3d" else 32)

    def work(self) -> float:
        """Multiply-adds of the plain form."""
        clips = {stream: (frames, 1) for stream, frames in self.frames.items()}
        example = models.input_shapes(clips, self.size, self.batch)
        return multiply_adds(self.build().apply, self.variables, example) * (
            TRAINING if self.train else 1
        )

    def __str__(self) -> str:
        clips = " + ".join(f"{frames} {stream}" for stream, frames in self.frames.items())
        return f"{self.batch} x {clips}, {self.size}x{self.size}"


@functools.cache
def _variables(model: str, classes: int, size: int) -> Any:
    example = models.input_shapes(models.MODELS[model].train, size)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    return jax.jit(models.build(model, num_classes=classes).init)(jax.random.key(0), zeros)


PLAIN = "plain XLA, float32"  # Layers computed, and gone back through, as XLA and JAX do it by themselves.
OURS = {
    "ours, float32": {},
    "ours, bfloat16": {"dtype": "bfloat16"},
    "ours, float32, blocks computed again": {"remat": True},
    PLAIN: {},
}
THEIRS = {
    "PyTorch, float32": {},
    "PyTorch, float32, channels last": {"last": True},
    "PyTorch, float32, channels last, compiled": {"last": True, "compiled": True},
    "PyTorch, bfloat16, channels last": {"last": True, "half": True},
    "PyTorch, bfloat16, channels last, compiled": {"last": True, "half": True, "compiled": True},
}


def of_ours(task: Task, name: str, about: dict) -> Callable:
    """One of OURS, as a function that returns when it is done; what compiling it took, and what it takes, goes into `about`."""
    options = models.compiler_options() if name != PLAIN else None
    network = task.build(**OURS[name])
    with models.forms_of("plain") if name == PLAIN else contextlib.nullcontext():
        if not task.train:
            streams = models.as_network_input(task.streams())
            # A function of its own: what was traced of another is not taken again.
            arguments = task.variables, jax.device_put(streams)
            apply = compiled(
                lambda variables, video: network.apply(variables, video), arguments, about, options
            )
            return functools.partial(done, apply, *arguments)
        tx, _ = optimizers.sgd(lr=1e-6)
        state, key, clips = (
            initial_state(task.variables, tx),
            jax.random.key(1),
            jax.device_put(task.packed()),
        )
        step = functools.partial(train_step, model=network, tx=tx)
        # Its buffers are donated, and the variables are for all.
        state = jax.tree.map(jnp.copy, state)
        return _Steps(
            compiled(step, (state, clips, key), about, options, donate_argnums=0), state, clips, key
        )


def compiled(
    function: Callable, arguments: tuple, about: dict, options: dict | None = None, **jit: Any
) -> Callable:
    """A function compiled for arguments, as a process has it that is not the first: from the cache.

    Into `about` goes what tracing and compiling took, the first time and then, and the temporary memory.
    """
    settings = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [jax.config.values[name] for name in settings]
    with tempfile.TemporaryDirectory() as folder:
        for name, value in zip(settings, (folder, 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for start in ("compile", "warm_start"):
            jax.clear_caches()
            began = time.perf_counter()
            made = jax.jit(function, compiler_options=options, **jit).lower(*arguments).compile()
            about[start] = time.perf_counter() - began
    for name, value in zip(settings, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    memory = made.memory_analysis()
    about["megabytes"] = memory.temp_size_in_bytes / 1e6 if memory is not None else math.nan
    return made


class _Steps:
    """Takes a step at every call."""

    def __init__(self, update: Callable, state: Any, clips: Any, key: jax.Array):
        self.update, self.state, self.clips, self.key = update, state, clips, key

    def __call__(self) -> None:
        self.state, scalars = self.update(self.state, self.clips, self.key)
        jax.block_until_ready((self.state, scalars))


def done(function: Callable, *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def torch_is_here() -> bool:
    return importlib.util.find_spec("torch") is not None


def their_forms() -> list[str]:
    """Those of THEIRS that take part unasked; on a CPU, torch.compile takes minutes and gains nothing."""
    if not torch_is_here():
        return []
    import torch_zoo

    return [
        name
        for name, form in THEIRS.items()
        if (torch_zoo.has_bfloat16() or not form.get("half"))
        and (torch_zoo.DEVICE != "cpu" or not form.get("compiled"))
    ]


def of_torch(task: Task, name: str) -> Callable:
    """One of THEIRS, as a function that returns when it is done."""
    import torch
    import torch_zoo

    last, half, compiled = (THEIRS[name].get(what, False) for what in ("last", "half", "compiled"))
    network = torch_zoo.build(task.model, task.classes, task.variables, task.size)
    network = network.to(torch_zoo.DEVICE).train(task.train)
    formats = {5: torch.channels_last_3d, 4: torch.channels_last}
    if last:
        for parameter in network.parameters():
            if parameter.ndim in formats:
                parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    clips = [
        torch.from_numpy(frames).permute(0, 4, 1, 2, 3).to(torch_zoo.DEVICE)
        for frames in task.streams().values()
    ]
    layout = torch.channels_last_3d if last else torch.contiguous_format
    clips = [clip.contiguous(memory_format=layout) for clip in clips]
    label = torch.arange(task.batch, device=torch_zoo.DEVICE)
    autocast = functools.partial(torch.autocast, torch_zoo.DEVICE, torch.bfloat16, enabled=half)
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9, weight_decay=1e-7)
    network = torch.compile(network) if compiled else network

    def forward():
        with torch.no_grad(), autocast():
            logits = network(*clips)
        return logits.float().cpu().numpy()  # Which waits for it.

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            logits = network(*clips)
            labels = label if logits.ndim == 2 else label[:, None].expand(-1, logits.shape[2])
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        torch_zoo.finish()

    return step if task.train else forward


@functools.cache
def products() -> tuple[int, int]:
    """Of how large square matrices how many products are the measure: so many that starting them takes no share of their time."""
    return (4096, 1) if jax.default_backend() == "cpu" else (8192, 10)


def multiply_adds_of_products() -> int:
    side, number = products()
    return number * side**3


def peak(dtype: Any) -> Callable:
    """Large matrix products, one of another, of noise: of ones or zeros some devices take less time."""
    side, number = products()
    # Which neither grow nor vanish.
    a = math.sqrt(3 / side) * jax.random.uniform(
        jax.random.key(0), (side, side), jnp.float32, -1, 1
    )
    a = a.astype(dtype)

    def multiplied(a):
        return functools.reduce(
            lambda product, _: convolution.conv(product, a, ()), range(number), a
        )

    return functools.partial(
        done, jax.jit(multiplied, compiler_options=models.compiler_options()), a
    )


def peer(seconds: dict[str, list[float]]) -> str:
    """What all are compared with: PyTorch's best form, in float32 if it is there, or the first of ours."""
    theirs = [name for name in seconds if name in THEIRS]
    first = next(iter(seconds))
    theirs = [name for name in theirs if "float32" in name] or theirs or [first]
    ratios = harness.summary({name: seconds[name] for name in [first, *theirs]}, first)
    return max(theirs, key=lambda name: ratios[name]["times_as_fast"])


def one(task: Task, forms: list[str], rounds: int) -> tuple[str, dict]:
    """All forms of one network."""
    found: dict[str, dict] = {name: {} for name in forms}
    variants = {
        name: of_ours(task, name, found[name]) if name in OURS else of_torch(task, name)
        for name in forms
    }
    wanted = PLAIN if PLAIN in forms else forms[0]
    if not task.train:
        logits = {name: np.asarray(variants[name]()) for name in forms}
        for name, each in found.items():
            each["difference"] = difference(logits[name], logits[wanted])
    variants |= {
        "matrix products, float32": peak(jnp.float32),
        "matrix products, bfloat16": peak(jnp.bfloat16),
    }
    seconds = harness.interleaved(variants, rounds)
    than, work = peer(seconds), task.work()
    result = harness.summary(seconds, than)
    rows = {}
    for name, about in found.items():
        each = result[name] | about
        half = "bfloat16" if "bfloat16" in name else "float32"
        most = multiply_adds_of_products() / result[f"matrix products, {half}"]["seconds"]
        rows[name] = [
            harness.spread(each),
            f"{each['times_as_fast']:.2f}x",
            f"{work / each['seconds'] / most:.0%}",
            f"{each['megabytes']:.0f} MB" if "megabytes" in each else "",
            compile_time(each),
            *([f"{each['difference']:.1e}"] if "difference" in each else []),
        ]
    heads = [
        "",
        "seconds",
        f"as fast as {than}",
        "of a matrix product's speed",
        "temporary memory",
        COMPILING,
    ]
    heads += [] if task.train else [f"difference to {wanted}'s, of the greatest logit"]
    variants = {name: result[name] | found.get(name, {}) for name in result}
    return f"{task}\n\n{harness.table(rows, heads)}", {"task": str(task), "variants": variants}


def zoo(
    train: bool, clips: Callable[[str], Task], forms: list[str], rounds: int
) -> tuple[str, dict]:
    """The first form of ours and PyTorch's best, of every network."""
    rows, result = {}, {}
    theirs = [name for name in forms if name in THEIRS]
    mine, *_ = [name for name in forms if name in OURS]
    for model in models.MODELS:
        task, about = clips(model), {}
        variants = {mine: of_ours(task, mine, about)} | {
            name: of_torch(task, name) for name in theirs
        }
        if not train and theirs:
            about["difference"] = difference(variants[theirs[0]](), np.asarray(variants[mine]()))
        seconds = harness.interleaved(variants, rounds)
        than = peer(seconds)
        result[model] = each = harness.summary(seconds, than) | {
            "task": str(task),
            "about": about,
            "best": than,
        }
        rows[model] = [
            str(task),
            harness.spread(each[mine]),
            harness.spread(each[than]) if theirs else "not run",
            f"{each[mine]['times_as_fast']:.2f}x" if theirs else "",
            f"{about['megabytes']:.0f} MB",
            compile_time(about),
            *([f"{about['difference']:.1e}"] if "difference" in about else []),
        ]
        print(f"{model}: {' | '.join(rows[model])}", flush=True)
    heads = ["", "clips", "seconds", "PyTorch's", "as fast", "temporary memory", COMPILING]
    return harness.table(
        rows, heads if train else [*heads, "difference of logits, of the greatest"]
    ), result


def compile_time(about: dict) -> str:
    return f"{about['compile']:.1f}, {about['warm_start']:.1f} s" if "compile" in about else ""


def difference(logits: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(logits - wanted).max() / np.abs(wanted).max())


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("forward", "train"))
    parser.add_argument(
        "--model", default="i3d", choices=(*models.MODELS, "all"), help="default: i3d"
    )
    parser.add_argument("--batch", type=cli.positive, help="clips (default: 1, of small ones more)")
    parser.add_argument(
        "--frames", type=cli.positive, help="of a network of one stream (default: the paper's)"
    )
    parser.add_argument("--size", type=cli.positive, help="pixels (default: the paper's)")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=(*OURS, *THEIRS),
        metavar="FORM",
        help=f"of {'; '.join((*OURS, *THEIRS))}",
    )
    flags = parser.parse_args()

    def task(name: str) -> Task:
        entry = models.MODELS[name]
        frames = {stream: flags.frames or most for stream, (most, _) in entry.train.items()}
        batch = flags.batch or BATCHES.get(name, 1)
        return Task(name, batch, frames, flags.size or entry.crop, flags.what == "train")

    if flags.frames and (flags.model == "all" or len(models.MODELS[flags.model].train) > 1):
        parser.error("--frames is for a network of one stream")
    if not torch_is_here():
        if any(name in THEIRS for name in flags.forms or ()):
            parser.error("--forms: PyTorch is not installed")
        print("PyTorch is not installed and does not take part")
    # Nothing is computed again where there is no backward pass.
    forms = [
        name for name, options in OURS.items() if flags.what == "train" or not options.get("remat")
    ]
    forms += their_forms()
    if flags.model == "all":
        forms = flags.forms or [name for name in forms if "float32" in name]
        if not any(name in OURS for name in forms):
            parser.error("--forms: one of ours takes part with --model all")
        text, result = zoo(flags.what == "train", task, forms, flags.rounds)
    else:
        text, result = one(task(flags.model), flags.forms or forms, flags.rounds)
    about = harness.about("jax", "jaxlib", "flax", "torch") | {
        "device": jax.devices()[0].device_kind
    }
    harness.report(
        f"{flags.what}, {flags.model}\n\n{text}", {"what": flags.what} | result, about, flags.json
    )


if __name__ == "__main__":
    main()
