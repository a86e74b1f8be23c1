"""I3D and the networks it was compared with, for human action recognition in video, in JAX.

`import i3d_jax` needs jax, flax and numpy only. Everything else is imported by name, such as
`from i3d_jax import video, weights`.

The package has layers. A module imports from its own layer's folder and from the layers below it,
never from those above (`tests/test_architecture.py`). A folder's `__main__` is a command, and
stands in the top layer:

    main, predict, evaluate, live, demo    the commands: parse, call, print
    export                                 networks as StableHLO and ONNX
    timeline                               predictions over time, from the stream
    training                               the loop, its step, checkpoints, config
    fvd                                    the Fréchet Video Distance
    features                               features of videos over time, and their files
    evaluation                             the paper's test, scores, results
    datasets                               TFDS builders, preparation, batches of clips
    flow                                   TV-L1 optical flow
    weights                                published and own weights, by name or file
    models                                 the networks, their layers, the platforms' forms of these
    video                                  decoding, H.264, packed frames
    compilation, distributed, inflate, labels, pictures, pixels, prefetch
    cli, files, stopping                   the ground floor
"""

import os
import sys

from i3d_jax import cli

# If a command starts (Python calls it "-m" until it has imported the package), it can be
# interrupted while JAX is imported, which takes seconds.
_as_module = sys.argv[:1] == ["-m"] and any(
    each.removeprefix("-m").startswith("i3d_jax") for each in sys.orig_argv
)
if _as_module or os.path.basename((sys.argv or [""])[0]) == "i3d-jax":
    cli.install_signal_handlers()

from i3d_jax import models
from i3d_jax.inflate import inflate_params

__version__ = "0.1.0"
__all__ = ["inflate_params", "models"]
