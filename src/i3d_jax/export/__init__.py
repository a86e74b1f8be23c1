"""Networks in files for other programs: StableHLO by `jax.export`, and ONNX.

`description` has what both formats share: the input's sizes, and the description that a file
carries. `stablehlo` writes one program for CPUs, NVIDIA GPUs and TPUs. `onnx_file` writes a graph
by a walk along the tables of layers from which the networks themselves are built.
"""
