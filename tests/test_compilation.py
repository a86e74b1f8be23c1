import os
import pathlib
import subprocess
import sys

# Tells the folder, and how many programs were taken from it and how many were compiled for it.
PROGRAM = """
import collections, jax
from i3d_jax import compilation
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
compilation.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for number in 2, 3:
    jax.jit(lambda x: x * number)(1.0)
print(jax.config.jax_compilation_cache_dir, events["cache_hits"], events["cache_misses"])
"""


def run(cache, **environment):
    inherited = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | {"I3D_JAX_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return out[0], *map(int, out[1:])


def test_second_process_takes_what_the_first_has_compiled(tmp_path):
    folder, taken, compiled = run(tmp_path)
    assert folder.startswith(str(tmp_path / "compiled"))
    assert (taken, compiled > 0) == (0, True)
    assert run(tmp_path) == (folder, compiled, 0)


def test_a_program_that_was_half_written_is_compiled_again_and_kept(tmp_path):
    folder, _, compiled = run(tmp_path)
    program, *_ = pathlib.Path(folder).glob("*-cache")
    program.write_bytes(program.read_bytes()[:1000])
    program.with_name(program.name.replace("-cache", "-atime")).unlink()  # Killed before that.
    assert run(tmp_path) == (folder, compiled - 1, 1)
    assert run(tmp_path) == (folder, compiled, 0)


def test_users_own_folder_is_used(tmp_path):
    own = str(tmp_path / "own")
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[0] == own
    assert os.listdir(own)
    assert not (tmp_path / "compiled").exists()
