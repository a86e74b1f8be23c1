"""I3D's forward pass and training step: ours, XLA's plain form, and PyTorch's, in turns in one run.

    python experiments/benchmarks/model.py forward
    python experiments/benchmarks/model.py train --frames 16 --batch 2

PyTorch takes part where it is installed (extra `benchmark`): the network of `torch_i3d.py`, contiguous and channels-last, float32 and under bfloat16
autocast. Prints a Markdown table: seconds (median and spread over the rounds), times as fast as PyTorch's best float32, G multiply-adds
per second as a share of a large matrix product's in the same run, temporary memory and compile time.
"""

import argparse
import contextlib
import functools
import importlib.util
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from i3d_jax import models, optimizers, planes
from i3d_jax.models import convolution, pooling
from i3d_jax.step import initial_state, train_step

MULTIPLY_ADDS = 111.15e9  # Of a forward pass of 64 frames of 224x224 pixels (`python -m i3d_jax.models`).
TRAINING = 3  # Forward passes that a step's arithmetic is.


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Has layers computed as XLA does it by itself, while they are traced."""
    conv, pool = convolution._conv3d_as_2d, pooling._separable_max_pool
    convolution._conv3d_as_2d = convolution._conv3d
    pooling._separable_max_pool = lambda x, window, strides: pooling.nn.max_pool(x, window, strides, "SAME")
    try:
        yield
    finally:
        convolution._conv3d_as_2d, pooling._separable_max_pool = conv, pool


def compiled(function: Callable, arguments: tuple, about: dict, options: dict | None = None, **jit: Any) -> Callable:
    """A function compiled for its arguments; what that took, and what it takes, goes into `about`."""
    began = time.perf_counter()
    made = jax.jit(function, compiler_options=options, **jit).lower(*arguments).compile()
    about["compile"] = time.perf_counter() - began
    memory = made.memory_analysis()
    about["megabytes"] = memory.temp_size_in_bytes / 1e6 if memory is not None else math.nan
    return made


def of_ours(about: dict, call: Callable[[models.Network, Callable], Callable]) -> dict[str, Callable]:
    """Per variant what `call` makes of a network and of `compiled` for it."""
    made = {}
    for name, dtype, context, options in (
        ("ours, float32", "float32", contextlib.nullcontext, convolution.compiler_options()),
        ("ours, bfloat16", "bfloat16", contextlib.nullcontext, convolution.compiler_options()),
        ("plain XLA, float32", "float32", plain, None),
    ):
        about[name] = {}
        with context():
            network = models.build("i3d", num_classes=400, dtype=dtype)
            made[name] = call(network, functools.partial(compiled, about=about[name], options=options))
    return made


def forward_of_ours(video: np.ndarray, about: dict) -> dict[str, Callable]:
    def call(network: models.Network, compiled: Callable) -> Callable:
        variables = _variables()
        # A function of its own: what was traced of another is not taken again.
        apply = compiled(lambda variables, video: network.apply(variables, video), (variables, video))
        return functools.partial(_done, apply, variables, jax.device_put(video))

    return of_ours(about, call)


def train_of_ours(video: np.ndarray, about: dict) -> dict[str, Callable]:
    batch, frames, size, *_ = video.shape
    rng = np.random.default_rng(0)
    clips = {
        "rgb": rng.integers(0, 255, (batch, frames, *planes.packed_shape("rgb", size))).astype(np.uint8),
        "corner": np.zeros((batch, 2), np.int32),
        "mirrored": np.zeros(batch, bool),
        "label": np.arange(batch, dtype=np.int32),
    }

    def call(network: models.Network, compiled: Callable) -> Callable:
        tx, _ = optimizers.sgd(lr=1e-6)
        state, key = initial_state(_variables(), tx), jax.random.key(1)
        step = functools.partial(train_step, model=network, tx=tx)
        return _Steps(compiled(step, (state, clips, key), donate_argnums=0), state, jax.device_put(clips), key)

    return of_ours(about, call)


def _variables() -> Any:
    """The same for all variants."""
    network = models.build("i3d", num_classes=400)
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))


class _Steps:
    """Takes a step at every call."""

    def __init__(self, update: Callable, state: Any, clips: Any, key: jax.Array):
        self.update, self.state, self.clips, self.key = update, state, clips, key

    def __call__(self) -> None:
        self.state, scalars = self.update(self.state, self.clips, self.key)
        jax.block_until_ready((self.state, scalars))


def _done(function: Callable, *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def of_torch(video: np.ndarray, train: bool, about: dict) -> dict[str, Callable]:
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed and does not take part")
        return {}
    import torch
    import torch_i3d

    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = {}
    for name, layout, half in (
        ("PyTorch, float32", torch.contiguous_format, False),
        ("PyTorch, float32, channels last", torch.channels_last_3d, False),
        ("PyTorch, bfloat16, channels last", torch.channels_last_3d, True),
    ):
        network = torch_i3d.load(torch_i3d.I3D(), _variables()).to(device, memory_format=layout).train(train)
        clip = torch.from_numpy(video).permute(0, 4, 1, 2, 3).to(device).contiguous(memory_format=layout)
        label = torch.arange(len(video), device=device)
        autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=half)
        optimizer = torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9, weight_decay=1e-7)

        def finish():
            if device == "cuda":
                torch.cuda.synchronize()

        def forward(network=network, clip=clip, autocast=autocast):
            with torch.no_grad(), autocast():
                logits = network(clip)
            finish()
            return logits.float().cpu().numpy()

        def step(network=network, clip=clip, autocast=autocast, optimizer=optimizer, label=label):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = torch.nn.functional.cross_entropy(network(clip), label)
            loss.backward()
            optimizer.step()
            finish()

        made[name], about[name] = (step if train else forward), {}
    return made


def peak(dtype: Any) -> Callable:
    """A matrix product of 4096^3 multiply-adds."""
    a = jnp.ones((4096, 4096), dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    return functools.partial(_done, product, a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("forward", "train"))
    parser.add_argument("--batch", type=int, default=1, help="clips (default: 1)")
    parser.add_argument("--frames", type=int, default=64, help="default: 64")
    parser.add_argument("--size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    flags = parser.parse_args()
    shape = flags.batch, flags.frames, flags.size, flags.size, 3
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    found: dict[str, dict] = {}
    variants = (train_of_ours if flags.what == "train" else forward_of_ours)(video, found)
    variants |= of_torch(video, flags.what == "train", found)
    variants |= {"a matrix product, float32": peak(jnp.float32), "a matrix product, bfloat16": peak(jnp.bfloat16)}
    if flags.what == "forward":
        logits = {name: np.asarray(variants[name]()) for name in found}
        for name, each in found.items():
            wanted = logits["plain XLA, float32"]
            each["difference"] = float(np.abs(logits[name] - wanted).max() / np.abs(wanted).max())
    seconds = harness.interleaved(variants, flags.rounds)
    theirs = [name for name in found if name.startswith("PyTorch, float32")]
    than = min(theirs, key=lambda name: sorted(seconds[name])[flags.rounds // 2]) if theirs else "ours, float32"
    result = harness.summary(seconds, than)
    work = (
        MULTIPLY_ADDS * math.prod(shape[:2]) / 64 * (flags.size / 224) ** 2 * (TRAINING if flags.what == "train" else 1)
    )
    rows = {}
    for name, about in found.items():
        each = result[name] | about
        half = "bfloat16" if "bfloat16" in name else "float32"
        most = 4096**3 / result[f"a matrix product, {half}"]["seconds"]
        low, high = each["spread"]
        rows[name] = [
            f"{each['seconds']:.3f} ({low:.3f} to {high:.3f})",
            f"{each['times_as_fast']:.2f}x",
            f"{work / each['seconds'] / most:.0%}",
            f"{each['megabytes']:.0f} MB" if "megabytes" in each else "",
            f"{each['compile']:.1f} s" if "compile" in each else "",
            f"{each['difference']:.1e}" if "difference" in each else "",
        ]
    heads = ["", "seconds", f"as fast as {than}", "of a matrix product's speed", "temporary memory", "compiling"]
    heads += ["difference to plain XLA's, of the greatest logit"]
    text = f"{flags.what}, {'x'.join(map(str, shape))}\n\n{harness.table(rows, heads)}"
    about = harness.about("jax", "jaxlib", "flax", "torch") | {"device": jax.devices()[0].device_kind}
    harness.tell(
        text,
        {"shape": shape, "variants": {name: result[name] | found.get(name, {}) for name in result}},
        about,
        flags.json,
    )


if __name__ == "__main__":
    main()
