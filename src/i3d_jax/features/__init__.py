"""Features of videos: the activations of a network's layer over time, for videos of any length.

`load` gives networks by their weights, and `extract` computes the features of videos: dense rows,
streamed with bounded memory (`dense.py`), or independent windows (`windowed.py`). Every row has its
frames and its start, end and centre in seconds (`grids.py`). `python -m i3d_jax.features` writes
them to files (`outputs.py`, `jobs.py`), also as other projects want them (`presets.py`).
"""

from i3d_jax.features.extraction import extract
from i3d_jax.features.grids import Dense, Windows
from i3d_jax.features.networks import load
from i3d_jax.features.outputs import Features
from i3d_jax.features.reading import Reading
from i3d_jax.features.task import Extraction, reading_for

__all__ = [
    "Dense",
    "Extraction",
    "Features",
    "Reading",
    "Windows",
    "extract",
    "load",
    "reading_for",
]
