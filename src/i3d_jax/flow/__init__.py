"""Optical flow: TV-L1, as the paper's flow streams saw it, for images, videos and folders of them.

`tv_l1` computes the flow of pairs of images (`tvl1.py`, `images.py`), `videos.py` that of whole
videos, and `python -m i3d_jax.flow` writes it to files (`formats.py`, `colours.py`). Importing
`i3d_jax.flow` needs jax and numpy only.
"""

from i3d_jax.flow.tvl1 import FAST, OPENCV, PRESETS, RECIPE_FILE, TVL1, VERSION, recipe, tv_l1

__all__ = ["FAST", "OPENCV", "PRESETS", "RECIPE_FILE", "TVL1", "VERSION", "recipe", "tv_l1"]
