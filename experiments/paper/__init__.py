"""What the scripts of the paper's tables share: their runs, the runner, and the result files.

`runs.py` says what a run is, `miniature.py` has the runs on moving_shapes, `full_size.py` the
commands and costs of the paper's own. `runner.py` makes the runs that have no result file yet, and
`results.py` reads and writes these files. `layout.py` makes tables of them.
"""
