"""Optical flow: TV-L1, as the paper's flow streams saw it. Light: jax and numpy only."""

from i3d_jax.flow.tvl1 import FAST, NOTE, OPENCV, PRESETS, TVL1, VERSION, recipe, tv_l1

__all__ = ["FAST", "NOTE", "OPENCV", "PRESETS", "TVL1", "VERSION", "recipe", "tv_l1"]
