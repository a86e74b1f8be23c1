"""What `experiments/tpu_compile.py` is made of.

`chips.py` has the chips and their topologies, `programs.py` the programs that are compiled,
`hlo.py` reads what the compiler made of them, `batches.py` finds the largest batch, and `kept.py`
is the file of the results.
"""
