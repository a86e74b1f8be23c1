"""Times forward passes and training steps: ours, XLA's plain form and PyTorch's, in turns.

    python experiments/benchmarks/model.py forward
    python experiments/benchmarks/model.py train --frames 16 --batch 2
    python experiments/benchmarks/model.py forward --model all
    python experiments/benchmarks/model.py train --batch 16 \\
        --forms "ours, bfloat16" "PyTorch, bfloat16, channels last, compiled"

PyTorch takes part if it is installed (extra `benchmark`), with the networks of `torch_zoo.py`:
contiguous and channels-last, in float32 and, if the hardware has it, under bfloat16 autocast; on an
accelerator also with torch.compile. --forms selects other variants.

Prints a Markdown table with seconds (median and spread over the rounds); the speed relative to
PyTorch's best float32 form; multiply-adds per second as a share of those of a large matrix product
in the same run; temporary memory; and the time of tracing and compiling, the first time and with
the program in JAX's cache.

With `--model all` the table has one row per network, on its training clip of the paper: ours
(float32, or the first of --forms) and PyTorch's best form.
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

TRAINING = 3  # A training step has the multiply-adds of so many forward passes.
# Default batch sizes; those of other networks are 1.
BATCHES = {
    "inception": 16,
    "convnet_lstm": 2,
    "c3d": 4,
    "two_stream": 8,
    "fused_two_stream": 2,
    "resnet50": 16,
    "i3d_r50": 2,
}
COMPILING = "compiling; from the cache"


@dataclasses.dataclass
class Task:
    """A forward pass or a training step of a network.

    Attributes:
      model: name of the network.
      batch: clips.
      frames: of a clip, by stream.
      size: pixels.
      train: whether it is a training step.
      classes: number of classes.
    """

    model: str
    batch: int
    frames: dict[str, int]
    size: int
    train: bool = False
    classes: int = 400

    def streams(self) -> dict[str, np.ndarray]:
        """Clips of noise by stream, f32 [B, T, H, W, C] in [-1, 1]."""
        rng, clips = np.random.default_rng(0), {}
        for stream, frames in self.frames.items():
            shape = self.batch, frames, self.size, self.size, models.CHANNELS[stream]
            clips[stream] = 2 * rng.random(shape, np.float32) - 1
        return clips

    def packed(self) -> dict[str, np.ndarray]:
        """A batch of noise in the form of `pipeline.train_batches`."""
        rng, batch = np.random.default_rng(0), {}
        for stream, frames in self.frames.items():
            shape = self.batch, frames, *planes.packed_shape(stream, self.size)
            batch[stream] = rng.integers(0, 255, shape, np.uint8)
        return batch | {
            "corner": np.zeros((self.batch, 2), np.int32),
            "mirrored": np.zeros(self.batch, bool),
            "label": np.arange(self.batch, dtype=np.int32),
        }

    def build(self, **options: Any) -> models.Network:
        """Builds the network; takes options of `models.build`."""
        return models.build(self.model, num_classes=self.classes, **options)

    @property
    def variables(self) -> Any:
        """The variables, which all variants share."""
        # Variables of convolutions do not depend on the size, and small clips take less time.
        return _variables(self.model, self.classes, self.size if self.model == "c3d" else 32)

    def work(self) -> float:
        """The number of multiply-adds of the plain form."""
        clips = {stream: (frames, 1) for stream, frames in self.frames.items()}
        example = models.input_shapes(clips, self.size, self.batch)
        forward = multiply_adds(self.build().apply, self.variables, example)
        return forward * (TRAINING if self.train else 1)

    def __str__(self) -> str:
        clips = " + ".join(f"{frames} {stream}" for stream, frames in self.frames.items())
        return f"{self.batch} x {clips}, {self.size}x{self.size}"


@functools.cache
def _variables(model: str, classes: int, size: int) -> Any:
    example = models.input_shapes(models.MODELS[model].train, size)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    return jax.jit(models.build(model, num_classes=classes).init)(jax.random.key(0), zeros)


PLAIN = "plain XLA, float32"  # Layers and gradients as XLA and JAX compute them by themselves.
OURS = {
    "ours, float32": {},
    "ours, bfloat16": {"dtype": "bfloat16"},
    "ours, float32, rematerialized": {"remat": True},
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
    """A variant of this package.

    Args:
      task: what to measure.
      name: one of OURS.
      about: gets the figures of `compiled`.

    Returns:
      a function that returns when it is done.
    """
    options = models.compiler_options() if name != PLAIN else None
    network = task.build(**OURS[name])
    with models.forms_of("plain") if name == PLAIN else contextlib.nullcontext():
        if not task.train:
            # A new function, so that JAX does not reuse what it traced for another variant.
            def forward(variables, video):
                return network.apply(variables, video)

            streams = models.as_network_input(task.streams())
            arguments = task.variables, jax.device_put(streams)
            apply = compiled(forward, arguments, about, options)
            return functools.partial(call_and_wait, apply, *arguments)
        tx, _ = optimizers.sgd(lr=1e-6)
        # A copy, since the step donates its buffers and all variants share the variables.
        state = jax.tree.map(jnp.copy, initial_state(task.variables, tx))
        clips, key = jax.device_put(task.packed()), jax.random.key(1)
        step = functools.partial(train_step, model=network, tx=tx)
        update = compiled(step, (state, clips, key), about, options, donate_argnums=0)
        return _Steps(update, state, clips, key)


def compiled(
    function: Callable, arguments: tuple, about: dict, options: dict | None = None, **jit: Any
) -> Callable:
    """Compiles a function twice: first with an empty cache, then with the program in JAX's cache.

    Args:
      function: to compile.
      arguments: its arguments, or their shapes.
      about: gets "compile" and "warm_start", the seconds of tracing and compiling the first and the
        second time, and "megabytes" of temporary memory.
      options: of the compiler.
      jit: options of `jax.jit`.

    Returns:
      the program from the cache.
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
    """A function that takes one training step at each call.

    Args:
      update: the compiled step.
      state: the first one.
      clips: of every step.
      key: of every step.
    """

    def __init__(self, update: Callable, state: Any, clips: Any, key: jax.Array):
        self.update, self.state, self.clips, self.key = update, state, clips, key

    def __call__(self) -> None:
        self.state, scalars = self.update(self.state, self.clips, self.key)
        jax.block_until_ready((self.state, scalars))


def call_and_wait(function: Callable, *arguments: Any) -> Any:
    """Calls a function and waits until its result is computed."""
    return jax.block_until_ready(function(*arguments))


def torch_is_here() -> bool:
    return importlib.util.find_spec("torch") is not None


def their_forms() -> list[str]:
    """The names of THEIRS that take part by default.

    On a CPU torch.compile is left out: it takes minutes and gains nothing.
    """
    if not torch_is_here():
        return []
    import torch_zoo

    found = []
    for name, form in THEIRS.items():
        half, compiled = form.get("half"), form.get("compiled")
        if (torch_zoo.has_bfloat16() or not half) and (torch_zoo.DEVICE != "cpu" or not compiled):
            found.append(name)
    return found


def of_torch(task: Task, name: str) -> Callable:
    """A variant of PyTorch.

    Args:
      task: what to measure.
      name: one of THEIRS.

    Returns:
      a function that returns when it is done.
    """
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
    layout, clips = torch.channels_last_3d if last else torch.contiguous_format, []
    for frames in task.streams().values():
        clip = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).to(torch_zoo.DEVICE)
        clips.append(clip.contiguous(memory_format=layout))
    label = torch.arange(task.batch, device=torch_zoo.DEVICE)
    autocast = functools.partial(torch.autocast, torch_zoo.DEVICE, torch.bfloat16, enabled=half)
    optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9, weight_decay=1e-7)
    network = torch.compile(network) if compiled else network

    def forward():
        with torch.no_grad(), autocast():
            logits = network(*clips)
        return logits.float().cpu().numpy()  # This waits for the device.

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
def product_sizes() -> tuple[int, int]:
    """The matrix products that speeds are compared with: (side of a matrix, number of products).

    They take so long that the time of starting them does not count.
    """
    return (4096, 1) if jax.default_backend() == "cpu" else (8192, 10)


def multiply_adds_of_products() -> int:
    side, number = product_sizes()
    return number * side**3


def matrix_products(dtype: Any) -> Callable:
    """A function that computes the products of `product_sizes`, each from the one before.

    The matrices are noise, since some devices multiply ones or zeros faster.

    Args:
      dtype: of the matrices.
    """
    side, number = product_sizes()
    noise = jax.random.uniform(jax.random.key(0), (side, side), jnp.float32, -1, 1)
    # With this scale products neither grow nor vanish.
    a = (math.sqrt(3 / side) * noise).astype(dtype)

    def multiplied(a):
        product = a
        for _ in range(number):
            product = convolution.conv(product, a, ())
        return product

    program = jax.jit(multiplied, compiler_options=models.compiler_options())
    return functools.partial(call_and_wait, program, a)


def baseline(seconds: dict[str, list[float]]) -> str:
    """The name of the variant that all are compared with.

    It is PyTorch's fastest float32 form, otherwise PyTorch's fastest, otherwise the first of ours.

    Args:
      seconds: result of `harness.interleaved`.
    """
    theirs = [name for name in seconds if name in THEIRS]
    first = next(iter(seconds))
    theirs = [name for name in theirs if "float32" in name] or theirs or [first]
    ratios = harness.summary({name: seconds[name] for name in [first, *theirs]}, first)
    return max(theirs, key=lambda name: ratios[name]["times_as_fast"])


def measure(task: Task, forms: list[str], rounds: int) -> tuple[str, dict]:
    """Measures variants of one network.

    Args:
      task: what to measure.
      forms: names of OURS and THEIRS.
      rounds: number of measurements.

    Returns:
      the text to print; the results.
    """
    found: dict[str, dict] = {name: {} for name in forms}
    variants: dict[str, Callable] = {}
    for name in forms:
        ours = name in OURS
        variants[name] = of_ours(task, name, found[name]) if ours else of_torch(task, name)
    wanted = PLAIN if PLAIN in forms else forms[0]
    if not task.train:
        logits = {name: np.asarray(variants[name]()) for name in forms}
        for name, each in found.items():
            each["difference"] = difference(logits[name], logits[wanted])
    for dtype in "float32", "bfloat16":
        variants[f"matrix products, {dtype}"] = matrix_products(dtype)
    seconds = harness.interleaved(variants, rounds)
    than, work = baseline(seconds), task.work()
    result = harness.summary(seconds, than)
    rows = {}
    for name, about in found.items():
        each = result[name] | about
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        most = multiply_adds_of_products() / result[f"matrix products, {dtype}"]["seconds"]
        rows[name] = [
            harness.spread(each),
            f"{each['times_as_fast']:.2f}x",
            f"{work / each['seconds'] / most:.0%}",
            f"{each['megabytes']:.0f} MB" if "megabytes" in each else "",
            compile_time(each),
            *([f"{each['difference']:.1e}"] if "difference" in each else []),
        ]
    heads = ["", "seconds", f"as fast as {than}", "of a matrix product's speed"]
    heads += ["temporary memory", COMPILING]
    if not task.train:
        heads += [f"difference to {wanted}, relative to the greatest logit"]
    figures = {name: result[name] | found.get(name, {}) for name in result}
    return f"{task}\n\n{harness.table(rows, heads)}", {"task": str(task), "variants": figures}


def measure_all(
    train: bool, clips: Callable[[str], Task], forms: list[str], rounds: int
) -> tuple[str, dict]:
    """Measures every network: the first of our variants, and PyTorch's best.

    Args:
      train: whether training steps are measured.
      clips: returns the task of a network.
      forms: names of OURS and THEIRS.
      rounds: number of measurements.

    Returns:
      the table; the results.
    """
    rows, result = {}, {}
    theirs = [name for name in forms if name in THEIRS]
    mine, *_ = [name for name in forms if name in OURS]
    for model in models.MODELS:
        task, about = clips(model), {}
        variants = {mine: of_ours(task, mine, about)}
        variants |= {name: of_torch(task, name) for name in theirs}
        if not train and theirs:
            about["difference"] = difference(variants[theirs[0]](), np.asarray(variants[mine]()))
        seconds = harness.interleaved(variants, rounds)
        than = baseline(seconds)
        each = harness.summary(seconds, than) | dict(task=str(task), about=about, best=than)
        result[model] = each
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
    if not train:
        heads += ["difference of logits, relative to the greatest"]
    return harness.table(rows, heads), result


def compile_time(about: dict) -> str:
    """The cell of the column COMPILING."""
    return f"{about['compile']:.1f}, {about['warm_start']:.1f} s" if "compile" in about else ""


def difference(logits: np.ndarray, wanted: np.ndarray) -> float:
    """The greatest difference, relative to the greatest wanted value."""
    return float(np.abs(logits - wanted).max() / np.abs(wanted).max())


def main() -> None:
    parser = harness.parser(__doc__)
    steps, networks = ("forward", "train"), (*models.MODELS, "all")
    parser.add_argument("what", choices=steps, help="forward passes or training steps")
    parser.add_argument("--model", default="i3d", choices=networks, help="network (default: i3d)")
    parser.add_argument("--batch", type=cli.positive, help="clips (default: 1 to 16, by network)")
    parser.add_argument(
        "--frames", type=cli.positive, help="for networks of one stream (default: the paper's)"
    )
    parser.add_argument("--size", type=cli.positive, help="pixels (default: the paper's)")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=(*OURS, *THEIRS),
        metavar="FORM",
        help=f"variants: {'; '.join((*OURS, *THEIRS))}",
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
    train = flags.what == "train"
    # Rematerialization changes the backward pass only.
    forms = [name for name, options in OURS.items() if train or not options.get("remat")]
    forms += their_forms()
    if flags.model == "all":
        forms = flags.forms or [name for name in forms if "float32" in name]
        if not any(name in OURS for name in forms):
            parser.error("--forms: --model all needs one of ours")
        text, result = measure_all(train, task, forms, flags.rounds)
    else:
        text, result = measure(task(flags.model), flags.forms or forms, flags.rounds)
    device = {"device": jax.devices()[0].device_kind}
    about = harness.about("jax", "jaxlib", "flax", "torch") | device
    text = f"{flags.what}, {flags.model}\n\n{text}"
    harness.report(text, {"what": flags.what} | result, about, flags.json)


if __name__ == "__main__":
    main()
