"""What `experiments/tpu_compile.py` is made of.

`chips.py` has the chips and their topologies, `programs.py` the programs that are compiled, and
`hlo.py` reads what the compiler made of them.
"""
