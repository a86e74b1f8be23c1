"""A run of an experiment: a name, and all that its result depends on besides code and machine."""

import hashlib
import json
from typing import Any, NamedTuple


class Run(NamedTuple):
    """A training run with its test, or what is made of the outputs of several.

    Attributes:
      name: unique; the result file is named after it.
      seed: of everything random.
      config: arguments of `loop.train`, but for the data's folder and the starting weights; of a
        sum the data set alone; of filters nothing.
      start: the run whose weights it starts from; None: none.
      inflation: how kernels of images become those of videos (`inflate_params`): "mean", "centre".
      kind: "train"; "sum", of the logits of its parts; "filters", the first layers of its parts.
      parts: the runs that a sum, or filters, are made of.
    """

    name: str
    seed: int
    config: dict[str, Any]
    start: "Run | None" = None
    inflation: str = "mean"
    kind: str = "train"
    parts: "tuple[Run, ...]" = ()

    @property
    def needs(self) -> "tuple[Run, ...]":
        """The runs whose weights or predictions this one takes."""
        return (*([self.start] if self.start else []), *self.parts)

    @property
    def description(self) -> dict[str, Any]:
        """All that the result depends on, as JSON has it."""
        described = {
            "config": self.config,
            "start": self.start and [self.start.name, self.start.fingerprint],
            "inflation": self.inflation,
            "parts": [[part.name, part.fingerprint] for part in self.parts],
            **({} if self.kind == "train" else {"kind": self.kind}),
        }
        return json.loads(json.dumps(described))

    @property
    def fingerprint(self) -> str:
        """A hash of the description."""
        text = json.dumps(self.description, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def unique(runs: "list[Run]") -> "list[Run]":
    """The runs, each once, after the runs that it needs.

    Raises:
      ValueError: two different runs have one name.
    """
    found: dict[str, Run] = {}

    def add(run: Run) -> None:
        for need in run.needs:
            add(need)
        if found.setdefault(run.name, run).fingerprint != run.fingerprint:
            raise ValueError(f"two runs are called {run.name}")

    for run in runs:
        add(run)
    return list(found.values())


def differences(earlier: Any, now: Any, prefix: str = "") -> list[str]:
    """The places where two descriptions differ, "config.optimizer.lr: 0.01, now 0.02"."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            line
            for name in {**earlier, **now}
            for line in differences(earlier.get(name), now.get(name), f"{prefix}{name}.")
        ]
    return [] if earlier == now else [f"{prefix.rstrip('.')}: {earlier!r}, now {now!r}"]
