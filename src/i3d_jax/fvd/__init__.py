"""The Fréchet Video Distance (FVD), by the conventions of its implementations, with an error bar.

`conventions.py` is the table of these, and `resizing.py` has their resizes. `videos.py` opens sets
of videos, `clips.py` cuts clips out of them, and `measuring.py` runs the network. `frechet.py`,
`kernel.py` and `intervals.py` are the mathematics, in float64, of features [N, D]. `saved.py` has
the files of measured sets, `report.py` what is said of a distance. The command is
`python -m i3d_jax.fvd`.
"""

from i3d_jax.fvd.conventions import CONVENTIONS, VARIANTS
from i3d_jax.fvd.frechet import Terms, distance, terms
from i3d_jax.fvd.intervals import Interval, bootstrap, extrapolate
from i3d_jax.fvd.kernel import KernelDistance, kernel_distance, squared_mmd
from i3d_jax.fvd.measuring import features
from i3d_jax.fvd.statistics import Statistics, merge

__all__ = [
    "CONVENTIONS",
    "VARIANTS",
    "Interval",
    "KernelDistance",
    "Statistics",
    "Terms",
    "bootstrap",
    "distance",
    "extrapolate",
    "features",
    "kernel_distance",
    "merge",
    "squared_mmd",
    "terms",
]
