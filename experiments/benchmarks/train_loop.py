"""What training costs beside the steps themselves: logging, saving, waiting for clips.

    python experiments/benchmarks/train_loop.py --config configs/moving_shapes.py:i3d --data-dir runs/data

Runs a config from random weights, at its settings ("all"), and with nothing logged or saved on the way ("bare"), in turn, and
measures 100 steps of each; and, in "all", how long the loop was at each of them while no step was running. Prints a Markdown table,
and JSON to --json.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import jax

from i3d_jax.datasets import pipeline
from i3d_jax.training import checkpoints, logs, loop

STEPS = 100
FIRST = 3  # The steps before are compiled in.


def configured(path: str) -> dict:
    file, _, run = path.partition(":")
    spec = importlib.util.spec_from_file_location("config", file)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (module.get_config(run) if run else module.get_config()).to_dict()


class Timers:
    """Seconds spent in methods, by name, between the first step that counts and the last."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.asked: list[float] = []

    def around(self, owner: type, method: str, name: str, clock: Callable[[Any], float]) -> None:
        """Has the calls of a method take what `clock` of its object goes on by meanwhile."""
        function = getattr(owner, method)

        def timed(self_, *args, **options):
            began = clock(self_)
            result = function(self_, *args, **options)
            if FIRST <= len(self.asked) <= FIRST + STEPS:
                self.seconds[name] = self.seconds.get(name, 0.0) + clock(self_) - began
            return result

        setattr(owner, method, timed)


def measure(config: dict, timers: Timers) -> tuple[float, dict[str, float]]:
    """Seconds per step, and of them those spent in each of what is timed."""
    timers.seconds, timers.asked = {}, []
    with tempfile.TemporaryDirectory() as folder:
        loop.train(folder, **config)
    seconds = (timers.asked[FIRST + STEPS] - timers.asked[FIRST]) / STEPS
    return seconds, {name: each / STEPS for name, each in timers.seconds.items()}


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--config", default="configs/moving_shapes.py:i3d")
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data sets (default: its own)")
    flags = parser.parse_args()
    config = configured(flags.config)
    # Without what is not a step: a network of images first, and the test of all videos at the end.
    config |= dict(
        steps=FIRST + STEPS + 1, init_from=None, pretrain=None, test_split="validation[:32]"
    )
    config["dataset"]["data_dir"] = flags.data_dir
    timers = Timers()
    timers.around(
        logs.Clock, "next", "waiting for clips, no step running", lambda clock: clock.waited
    )
    timers.around(
        logs.Clock,
        "next",
        "fetching clips, most of it during a step",
        lambda _: time.perf_counter(),
    )
    timers.around(logs.Log, "__call__", "logging, no step running", lambda _: time.perf_counter())
    timers.around(
        checkpoints.Checkpoints, "save", "saving, no step running", lambda _: time.perf_counter()
    )
    batches = pipeline.train_batches

    def counted(*args, **options):
        for batch in batches(*args, **options):
            timers.asked.append(time.perf_counter())
            yield batch

    pipeline.train_batches = counted
    quiet = config | dict(log_every=config["steps"], checkpoint_every=config["steps"])
    found: dict[str, list] = {"all": [], "bare": []}
    with tempfile.TemporaryDirectory() as compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)
        for _ in range(flags.rounds):
            for name, each in (("all", config), ("bare", quiet)):
                found[name].append(measure(each, timers))
    steps = {
        name: statistics.median(seconds for seconds, _ in rounds) for name, rounds in found.items()
    }
    parts = {
        name: statistics.median(of[name] for _, of in found["all"]) for name in found["all"][0][1]
    }
    ratios = [
        with_all / bare
        for (with_all, _), (bare, _) in zip(found["all"], found["bare"], strict=True)
    ]
    rows = {
        name: [f"{seconds * 1e3:.2f}", f"{seconds / steps['all']:.2%}"]
        for name, seconds in parts.items()
    }
    rows |= {"the whole": [f"{steps['all'] * 1e3:.1f}", ""]}
    rows |= {"the whole, without logging and saving": [f"{steps['bare'] * 1e3:.1f}", ""]}
    text = (
        f"{harness.table(rows, ['of a step', 'ms', 'share'])}\n\nWith logging and saving, a step takes "
        f"{statistics.median(ratios):.3f} times as long ({min(ratios):.3f} to {max(ratios):.3f}). {flags.config}, {STEPS} steps, "
        f"medians of {flags.rounds} rounds."
    )
    about = harness.about("jax", "flax", "orbax-checkpoint", "grain")
    harness.report(text, {"steps": steps, "parts": parts, "ratios": ratios}, about, flags.json)


if __name__ == "__main__":
    main()
