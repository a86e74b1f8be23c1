"""What a run tells: JSON lines, the durable record, and TensorBoard."""

import json
import math
import pathlib

import tensorboardX

from i3d_jax.files import replacing


class Log:
    """Writes scalars by step to `log.jsonl`, a line each, and for TensorBoard; no step is in it twice.

    A run that was killed may have logged steps after its last checkpoint, `start`, and half a line; they are forgotten,
    since they will be taken again.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        path = folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        with replacing(path) as rewritten:
            rewritten.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.board = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1)
        self.logged = {tuple(sorted(json.loads(line))): json.loads(line)["step"] for line in kept}

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        names = tuple(sorted({"step", *scalars}))
        if self.logged.get(names, -1) >= step:
            return
        self.logged[names] = step
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}  # JSON has no NaN.
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.board.close()
