"""I3D and the networks it was compared with, for human action recognition in video, in JAX.

Light on purpose: jax, flax and numpy only. Decoding, data sets and training are modules of their own.
"""

import sys

from i3d_jax import cli

# One of the commands starts (Python has this name until it has imported the package): JAX takes seconds.
if sys.argv[:1] == ["-m"] and any(each.removeprefix("-m").startswith("i3d_jax") for each in sys.orig_argv):
    cli.begin()

from i3d_jax import models
from i3d_jax.inflate import inflate_params

__version__ = "0.1.0"
__all__ = ["inflate_params", "models"]
