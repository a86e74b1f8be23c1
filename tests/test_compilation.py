import os
import signal
import subprocess
import sys
import time

import pytest

from i3d_jax import compilation
from i3d_jax.compilation import ProgramCache

# Prints the folder, how many programs were loaded from it and how many were compiled. If it runs as
# root, it gives up root's right to write anywhere.
PROGRAM = """
import collections, ctypes, os
if os.getuid() == 0:
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()) == 0
import jax
from i3d_jax import compilation
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
compilation.enable_persistent_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for number in 2, 3:
    jax.jit(lambda x: x * number)(1.0)
folder = jax.config.jax_compilation_cache_dir
print(folder, events["cache_hits"], events["cache_misses"], flush=True)
"""

# Flips bits in every part of a program's file, and exchanges two programs; runs them each time.
FLIPS = """
import collections, pathlib
import jax, jax.numpy as jnp, numpy as np
from i3d_jax import compilation
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
compilation.enable_persistent_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)

def results():
    jax.clear_caches()
    functions = lambda x: jnp.tanh(x @ x.T).sum(0), lambda x: jnp.tanh(x @ x.T).sum(1) + 1
    found = [jax.jit(f)(x) for f in functions]
    return np.stack(found).tobytes()

right = results()
first, second, *others = sorted(pathlib.Path(jax.config.jax_compilation_cache_dir).glob("[!.]*"))
whole = first.read_bytes()
rng = np.random.default_rng(0)
for part in np.array_split(np.arange(len(whole) * 8), 40):
    bit = rng.choice(part)
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    first.write_bytes(damaged)
    assert results() == right, bit
    assert first.read_bytes() != damaged, bit
events.clear()
assert results() == right and events["cache_misses"] == 0
exchanged = first.read_bytes(), second.read_bytes()
second.write_bytes(exchanged[0]), first.write_bytes(exchanged[1])
assert results() == right and events["cache_misses"] == 2
"""


def start(program, cache, **environment):
    inherited = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=inherited | {"I3D_JAX_CACHE": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(cache, program=PROGRAM, warned="", **environment):
    process = start(program, cache, **environment)
    out, errors = process.communicate()
    assert (process.returncode, errors) == (0, warned)
    folder, *numbers = out.split()
    return folder, *map(int, numbers)


def test_second_process_takes_what_the_first_has_compiled(tmp_path):
    folder, taken, compiled = run(tmp_path)
    assert folder.startswith(str(tmp_path / "compiled"))
    assert (taken, compiled > 0) == (0, True)
    assert run(tmp_path) == (folder, compiled, 0)


def test_programs_with_flipped_bits_and_programs_that_changed_places_are_compiled_again(tmp_path):
    process = start(FLIPS, tmp_path)
    assert process.communicate() == ("", "") and process.returncode == 0


def test_users_own_folder_is_used_and_has_checksums(tmp_path):
    own = str(tmp_path / "own")
    _, _, compiled = run(tmp_path, JAX_COMPILATION_CACHE_DIR=own)
    assert len(list((tmp_path / "own").glob("*.program"))) == len(os.listdir(own)) == compiled
    assert not (tmp_path / "compiled").exists()


def test_folder_of_another_user_is_read_and_named_once_when_it_cannot_be_written(tmp_path):
    folder, _, compiled = run(tmp_path)
    os.chmod(folder, 0o555)
    more = PROGRAM.replace("2, 3", "2, 3, 4, 5")
    warning = f"{folder}: cannot be written (Permission denied): what is compiled is not kept\n"
    assert run(tmp_path, more, warned=warning) == (folder, compiled, 2)
    os.chmod(folder, 0o755)


def test_program_that_its_process_died_of_is_removed_by_the_next_one(tmp_path):
    for name in "loaded", "other":
        ProgramCache(tmp_path, -1).put(name, b"program")
    load = "import os, pathlib; from i3d_jax.compilation import ProgramCache; "
    load += f"ProgramCache(pathlib.Path({str(tmp_path)!r}), -1).get('loaded')"
    subprocess.run([sys.executable, "-c", load], check=True)
    assert ProgramCache(tmp_path, -1).get("loaded") == b"program"
    died = subprocess.run([sys.executable, "-c", f"{load}; os.kill(os.getpid(), 11)"], check=False)
    assert died.returncode == -signal.SIGSEGV
    programs = ProgramCache(tmp_path, -1)
    assert (programs.get("loaded"), programs.get("other")) == (None, b"program")


def test_programs_of_a_process_that_lives_stay_and_are_not_watched_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "SETTLE_SECONDS", 0.3)
    programs = ProgramCache(tmp_path, -1)
    programs.put("key", b"program")
    assert programs.get("key") == ProgramCache(tmp_path, -1).get("key") == b"program"
    assert len(os.listdir(tmp_path)) > 1
    time.sleep(1)
    assert os.listdir(tmp_path) == ["key.program"]


def test_a_damaged_note_of_a_dead_process_stops_nobody(tmp_path):
    (tmp_path / ".loaded-1").write_bytes(b"\xff\0")
    (tmp_path / ".loaded-2").write_text("../key\n")
    (tmp_path.parent / "key.program").write_text("no program of this folder")
    ProgramCache(tmp_path, -1)
    assert (tmp_path.parent / "key.program").exists()


def test_the_least_recently_used_programs_make_room(tmp_path):
    size = 1000
    programs = ProgramCache(tmp_path, 3500)
    for age, name in enumerate("abc"):
        programs.put(name, name.encode() * size)
        os.utime(tmp_path / f"{name}.program", (age, age))
    assert programs.get("a") == b"a" * size
    programs.put("d", b"d" * size)
    assert {name for name in "abcd" if programs.get(name)} == set("acd")
    programs.put("large", b"l" * 3501)
    assert {name for name in ("a", "c", "d", "large") if programs.get(name)} == set("acd")


def test_a_folder_that_is_none_has_no_programs(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    programs = ProgramCache(tmp_path / "file", -1)
    for name in "ab":
        programs.put(name, b"program")
        assert programs.get(name) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'file'}: cannot be written (File exists): what is compiled is not kept"
    ]


@pytest.mark.slow  # Starts processes.
def test_programs_are_kept_by_a_command_that_a_signal_ends(tmp_path):
    """A signal ends the command without `atexit`; its programs are not the cause."""
    code = (
        "import signal, sys, jax, jax.numpy as jnp\n"
        "from i3d_jax import cli, compilation\n"
        "def main():\n"
        "    compilation.enable_persistent_cache()\n"
        "    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((64, 64))).block_until_ready()\n"
        "    signal.raise_signal(signal.SIGTERM) if sys.argv[1:] else None\n"
        "cli.run(main)"
    )
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = os.environ | settings | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    kept = []
    for signalled in False, True, True:
        arguments = [sys.executable, "-c", code, *(["stop"] if signalled else [])]
        done = subprocess.run(
            arguments, check=False, env=environment, capture_output=True, text=True
        )
        assert done.returncode == (143 if signalled else 0), done.stderr
        kept.append({path.name: path.stat().st_ino for path in tmp_path.iterdir()})
    assert kept[0] == kept[1] == kept[2] and any(name.endswith(".program") for name in kept[0])
