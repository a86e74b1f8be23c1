"""The paper's test of a network on whole videos: predictions, scores, and the files with both.

`protocol.py` runs networks on data sets, `metrics.py` scores their logits, and `results.py` reads
and writes the folder of an evaluation and fuses several. The command is `i3d_jax.evaluate`.
"""
