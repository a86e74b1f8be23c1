"""What Grad-CAM costs, in forward passes of the same network.

    python experiments/benchmarks/saliency.py [--model i3d] [--frames 64]

Prints a Markdown table with a row for each layer: seconds (median and spread over interleaved
rounds), and how many forward passes that is.
"""

import functools

import harness
import jax
import numpy as np

from i3d_jax import cli, models
from i3d_jax.evaluation import saliency

# Early, middle and late layers of Inception; other networks have their default only.
LAYERS = ("Conv_2c", "Mixed_3c", "Mixed_4f")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=models.MODELS, default="i3d", help="default: i3d")
    parser.add_argument("--frames", type=cli.positive, default=64, help="of a clip (default: 64)")
    flags = parser.parse_args()
    network = models.build(flags.model, num_classes=400)
    model = models.MODELS[flags.model]
    clips = {
        stream: (flags.frames * network.timing.frames(stream) // network.timing.rgb, 1)
        for stream in model.test
    }
    rng = np.random.default_rng(0)
    video = jax.tree.map(
        lambda x: rng.uniform(-1, 1, x.shape).astype(x.dtype),
        models.input_shapes(clips, model.crop),
    )
    variables = network.init(jax.random.key(0), video)
    defaults = saliency.default_layers(network, variables, video)
    layers = [*((name,) for name in LAYERS if flags.model == "i3d"), defaults]
    compiled = functools.partial(jax.jit, compiler_options=models.compiler_options())
    programs = {"forward pass": compiled(network.apply)} | {
        ", ".join(names): compiled(
            functools.partial(saliency.grad_cam, network=network, layers=names)
        )
        for names in layers
    }
    variants = {
        name: functools.partial(lambda run: jax.block_until_ready(run(variables, video)), program)
        for name, program in programs.items()
    }
    found = harness.summary(harness.interleaved(variants, flags.rounds), "forward pass")
    rows = {
        name: [harness.spread(each), f"{1 / each['times_as_fast']:.2f}"]
        for name, each in found.items()
    }
    about = harness.about("jax", "jaxlib", "flax") | {"device": jax.devices()[0].device_kind}
    text = f"{flags.model}, one clip of {flags.frames} frames\n\n" + harness.table(
        rows, ["Grad-CAM at", "seconds", "forward passes"]
    )
    harness.report(text, {"layers": found}, about, flags.json)


if __name__ == "__main__":
    main()
