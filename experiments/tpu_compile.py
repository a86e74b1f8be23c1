"""Compiles a run's programs for TPUs on a machine without one, and says what they need.

    pip install -e ".[tpu]"
    python experiments/tpu_compile.py --config=kinetics:i3d_rgb --config.model.dtype=bfloat16
    python experiments/tpu_compile.py --config=kinetics:c3d --topology v4:2x2x2 v6e:16x16 \\
        --program train --clips 6 24 --forms rocm tpu --json c3d.json
    python experiments/tpu_compile.py --config=kinetics:two_stream --program train --largest

libtpu has the compiler of real TPUs. The table has a row per program, topology, batch and form:
whether it fits into the memory of a chip, what it moves and computes, and how long that takes at
the chip's published speeds. The longer of the two times is a bound: nothing is measured.

The programs are "forward" (the network on training clips, floats in, logits out), "train" (the
training loop's step: packed clips, micro-batches, optimizer, donated state), "evaluate" (the
paper's test of whole videos) and "flow" (TV-L1 on pairs of frames of 340x256). The compiler counts
loops once: a step of several micro-batches has the figures of one, and flow, which iterates until
it converges, only those of memory. Bytes include those between a chip's units and its own memory.
"forms" are implementations of layers (`models.forms_of`): "tpu" are ours, "rocm" are XLA's own
operations. --largest compiles other batches, until it has found the largest one that fits. It need
not be the fastest: where memory is short, XLA computes parts of a program again.

Full-size programs of I3D take 3 to 20 minutes of a core each, and 6 GB of memory. With --json a
program that the file has already is not compiled again.
"""

import argparse
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import pathlib
import sys
import time
from typing import Any

import jax
from tpu_program import batches, chips, hlo, kept, programs

from i3d_jax import cli, models
from i3d_jax.models import platforms
from i3d_jax.training import config_files, loop
from i3d_jax.training.config import ConfigError, check_arguments

VERSIONS = "jax", "jaxlib", "libtpu"


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line's options, and the config with the defaults of what it leaves out."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="kinetics:i3d_rgb", help="as i3d_jax.main takes it")
    parser.add_argument(
        "--topology",
        nargs="+",
        default=["v5e"],
        metavar="KIND[:SHAPE]",
        help=f"of {', '.join(chips.CHIPS)}, such as v5e:4x4; the kind alone is one host",
    )
    parser.add_argument(
        "--program",
        nargs="+",
        default=["forward", "train"],
        choices=programs.PROGRAMS,
        help="default: forward train",
    )
    parser.add_argument(
        "--clips",
        type=cli.positive,
        nargs="+",
        default=[6],
        help="clips per chip, over all micro-batches; pairs of frames for flow (default: 6)",
    )
    parser.add_argument(
        "--largest", action="store_true", help="also find the most clips per chip that fit"
    )
    parser.add_argument("--forms", nargs="+", default=["tpu"], choices=platforms.PLATFORMS)
    parser.add_argument("--classes", type=cli.positive, default=400, help="default: 400")
    parser.add_argument(
        "--buffers", type=int, default=8, metavar="N", help="list the N largest of each (8)"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the results")
    flags, rest = parser.parse_known_args(arguments)
    try:
        config_files.check_options(rest)
        config = config_files.override(config_files.load(flags.config), rest)
        check_arguments("config", loop.train, config, workdir="")
    except ConfigError as error:
        parser.error(str(error))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(loop.train).parameters.items()
        if parameter.default is not parameter.empty
    }
    return flags, defaults | config


def compiled(
    lowered: jax.stages.Lowered, forms: str, chip: chips.Chip, clips: float, buffers: int
) -> dict[str, Any]:
    """Compiles a program, and describes what the compiler made of it; all figures are per chip.

    Args:
      lowered: the program.
      forms: "tpu" has its compiler options, too.
      chip: of the topology.
      clips: per chip, of a micro-batch.
      buffers: number of buffers to list.
    """
    began = time.time()
    options = models.compiler_options("tpu") if forms == "tpu" else None
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            "fits": False,
            "error": hlo.memory_error(str(error)),
            "seconds": time.time() - began,
        }
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    found = hlo.instructions(text)
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    arithmetic, moving = cost["flops"] / chip.flops, cost["bytes accessed"] / chip.bandwidth
    return {
        "fits": peak <= chip.memory,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "memory": peak,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "arithmetic_seconds": arithmetic,
        "memory_seconds": moving,
        "clips_per_second": clips / max(arithmetic, moving),
        "hbm_bytes_by_kind": hlo.traffic(found),
        "buffers": hlo.largest(found, buffers),
        "collectives": hlo.collectives(text),
        "donated": hlo.donated(text),
        "seconds": time.time() - began,
    }


HEADER = (
    "topology", "program", "clips", "forms", "fits", "arguments", "temporaries", "TFLOP",
    "GB moved", "arithmetic", "memory", "clips/s at most", "collectives", "compiling",
)  # fmt: skip


def row(about: dict[str, Any], result: dict[str, Any]) -> str:
    """A row of the table, per chip.

    Args:
      about: the row's topology, program, clips and forms.
      result: of `compiled`.
    """
    cells = [str(about[name]) for name in ("topology", "program", "clips", "forms")]
    if "error" in result:
        cells += [f"no: {result['error']}", *[""] * 8]
    else:
        kinds = {kind for kind, _ in result["collectives"]}
        sent = [
            f"{len(sizes)} {kind}, {sum(sizes) / 1e6:.1f} MB"
            for kind in sorted(kinds)
            for sizes in [[size for of, size in result["collectives"] if of == kind]]
        ]
        costs = [
            f"{result['flops'] / 1e12:.3f}",
            f"{result['bytes'] / 1e9:.1f}",
            f"{result['arithmetic_seconds'] * 1e3:.1f} ms",
            f"{result['memory_seconds'] * 1e3:.1f} ms",
            f"{result['clips_per_second']:.0f}",
        ]
        cells += [
            "yes" if result["fits"] else f"no: {result['memory'] / 1e9:.1f} GB",
            f"{result['arguments'] / 1e9:.2f} GB",
            f"{result['temporaries'] / 1e9:.2f} GB",
            *([""] * len(costs) if about["program"] == "flow" else costs),
            "; ".join(sent) or "none",
        ]
    return "| " + " | ".join([*cells, f"{result['seconds']:.0f} s"]) + " |"


def main(arguments: list[str] | None = None) -> int:
    flags, config = parse(arguments)
    try:
        chips.prepare_environment()
        meshes = {name: chips.mesh_of(name) for name in flags.topology}
        done = kept.read(flags.json) if flags.json and flags.json.exists() else {}
    except (ImportError, ValueError) as error:
        cli.print_error(str(error))
        return 2
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    results = []

    def made(topology: str, program: str, forms: str, clips: int) -> dict[str, Any]:
        """Compiles a program, unless the file has it, and prints its row."""
        about = dict(topology=topology, program=program, clips=clips, forms=forms)
        chip, mesh = meshes[topology]
        try:
            with models.forms_of(forms):
                lowered = programs.lower(program, config, mesh, clips, flags.classes)
        except ValueError as error:
            raise ValueError(f"{program}, {clips} clips per chip: {cli.one_line(error)}") from None
        text = json.dumps([topology, forms, versions, lowered.as_text()])
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in done:
            parts = config["grad_accum_steps"] if program == "train" else 1
            result = compiled(lowered, forms, chip, clips / parts, flags.buffers)
            done[key] = about | {"config": flags.config, **versions, **result}
            if flags.json:
                kept.write(flags.json, done)
        results.append((about, done[key]))
        print(row(about, done[key]), flush=True)
        return done[key]

    found = []
    try:
        for case in itertools.product(flags.topology, flags.program, flags.forms):
            for clips in flags.clips:
                made(*case, clips)
            if flags.largest:
                most = batches.largest(
                    lambda clips, case=case: made(*case, clips).get("memory"),
                    meshes[case[0]][0].memory,
                    programs.step_of_clips(case[1], config),
                )
                fastest = _fastest(results, *case)
                found.append(
                    f"{' '.join(case)}: at most {most} clips per chip fit; of those that were "
                    f"compiled, {fastest} take the least time per clip"
                )
    except ValueError as error:
        cli.print_error(str(error))
        return 2
    print("\n".join(["", *found, f"Per chip; predicted, not measured. {_said(versions)}."]))
    if flags.buffers:
        for about, result in results:
            _print_buffers(about, result)
    return 0


def _fastest(
    results: list[tuple[dict[str, Any], dict[str, Any]]], topology: str, program: str, forms: str
) -> int:
    """The clips per chip that take the least time each, of the programs that fit; 0: none does."""
    case = dict(topology=topology, program=program, forms=forms)
    speeds = {
        about["clips"]: result["clips_per_second"]
        for about, result in results
        if about == case | {"clips": about["clips"]} and result["fits"]
    }
    return max(speeds, key=lambda clips: speeds[clips], default=0)


def _said(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _print_buffers(about: dict[str, Any], result: dict[str, Any]) -> None:
    print(f"\nLargest buffers of {' '.join(map(str, about.values()))}:")
    for buffer in result.get("buffers", []):
        print(f"  {buffer['bytes'] / 1e6:8.1f} MB  {buffer['kind']:<14} {buffer['array']}")
        print(f"              {buffer['origin']}")


if __name__ == "__main__":
    sys.exit(main())
