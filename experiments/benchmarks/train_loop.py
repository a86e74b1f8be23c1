"""What training costs beside the steps themselves: logging, saving, waiting for clips.

    python experiments/benchmarks/train_loop.py \\
        --config configs/moving_shapes.py:i3d --data-dir runs/data

Trains with a config from random weights, in turn with its own settings ("all") and without logging
and saving ("bare"), and measures 100 steps of each. For "all" it also measures the time that the
loop spends on each part while no step is running. Prints a Markdown table.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import jax

from i3d_jax.datasets import pipeline
from i3d_jax.training import checkpoints, config_files, logs, loop

STEPS = 100
FIRST = 3  # The first step that is measured; those before it compile.


class Timers:
    """Times methods during the measured steps.

    Attributes:
      seconds: spent in methods, by name.
      asked: when the loop asked for each batch.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.asked: list[float] = []

    def around(self, owner: type, method: str, name: str, clock: Callable[[Any], float]) -> None:
        """Wraps a method so that its calls are timed.

        Args:
          owner: its class.
          method: its name.
          name: under which its seconds are summed.
          clock: function of the object that returns seconds.
        """
        function = getattr(owner, method)

        def timed(self_, *args, **options):
            began = clock(self_)
            result = function(self_, *args, **options)
            if FIRST <= len(self.asked) <= FIRST + STEPS:
                self.seconds[name] = self.seconds.get(name, 0.0) + clock(self_) - began
            return result

        setattr(owner, method, timed)


def measure(config: dict, timers: Timers) -> tuple[float, dict[str, float]]:
    """Trains once.

    Args:
      config: arguments of `loop.train`.
      timers: that wrap the timed methods.

    Returns:
      seconds per step; of these the seconds in each timed method.
    """
    timers.seconds, timers.asked = {}, []
    with tempfile.TemporaryDirectory() as folder:
        loop.train(folder, **config)
    seconds = (timers.asked[FIRST + STEPS] - timers.asked[FIRST]) / STEPS
    return seconds, {name: each / STEPS for name, each in timers.seconds.items()}


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument(
        "--config",
        default="configs/moving_shapes.py:i3d",
        help="as python -m i3d_jax.main takes it (default: configs/moving_shapes.py:i3d)",
    )
    parser.add_argument("--data-dir", help="folder of prepared data sets (default: that of TFDS)")
    flags = parser.parse_args()
    config = config_files.load(flags.config).to_dict()
    # Only steps are measured: no pretraining, and at the end a test of few videos.
    config |= dict(
        steps=FIRST + STEPS + 1, init_from=None, pretrain=None, test_split="validation[:32]"
    )
    config["dataset"]["data_dir"] = flags.data_dir
    timers = Timers()

    def now(_: Any) -> float:
        return time.perf_counter()

    waiting, fetching = "waiting for clips, no step running", "fetching clips, mostly during a step"
    timers.around(logs.Clock, "next", waiting, lambda clock: clock.waited)
    timers.around(logs.Clock, "next", fetching, now)
    timers.around(logs.Log, "__call__", "logging, no step running", now)
    timers.around(checkpoints.Checkpoints, "save", "saving, no step running", now)
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
    steps, parts, rows = {}, {}, {}
    for name, rounds in found.items():
        steps[name] = statistics.median(seconds for seconds, _ in rounds)
    pairs = zip(found["all"], found["bare"], strict=True)
    ratios = [with_all / bare for (with_all, _), (bare, _) in pairs]
    for name in found["all"][0][1]:
        parts[name] = statistics.median(of[name] for _, of in found["all"])
        rows[name] = [f"{parts[name] * 1e3:.2f}", f"{parts[name] / steps['all']:.2%}"]
    rows |= {"the whole": [f"{steps['all'] * 1e3:.1f}", ""]}
    rows |= {"the whole, without logging and saving": [f"{steps['bare'] * 1e3:.1f}", ""]}
    ratio = f"{statistics.median(ratios):.3f} times ({min(ratios):.3f} to {max(ratios):.3f})"
    text = (
        f"{harness.table(rows, ['of a step', 'ms', 'share'])}\n\n"
        f"With logging and saving, a step takes {ratio} as long. "
        f"{flags.config}, {STEPS} steps, medians of {flags.rounds} rounds."
    )
    about = harness.about("jax", "flax", "orbax-checkpoint", "grain")
    harness.report(text, {"steps": steps, "parts": parts, "ratios": ratios}, about, flags.json)


if __name__ == "__main__":
    main()
