"""The compiled programs of the paper's test: a network on whole videos, or on their chunks."""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from i3d_jax import distributed, models
from i3d_jax.evaluation import results
from i3d_jax.models import Network, streaming
from i3d_jax.video import planes


class Programs:
    """The compiled programs of a network, which give the logits per step, f32 [B, S, K].

    Their names are "" for the network's own, and those of its streams.

    Args:
      network: the network.
      sharding: of batches; None is one device.
    """

    def __init__(self, network: Network, sharding: Any):
        self.network, self.sharding = network, sharding
        self.compiled: dict[tuple, jax.stages.Compiled] = {}
        # Each process needs all logits.
        self.replicated = (
            None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        )

    def whole(self, variables: Any, streams: dict) -> dict:
        """The logits of whole videos."""
        return self._run(logits_of_whole, self.replicated, variables, streams)

    def start(self, variables: Any, streams: dict, ticks: int) -> streaming.State:
        """The state before the first chunk of videos of so many ticks."""
        return self._run(_stream_start, self.sharding, variables, streams, np.int32(ticks))

    def step(self, variables: Any, streams: dict, state: Any) -> tuple[Any, dict, int]:
        """The state after a chunk, the logits, and the number of their first step."""
        places = self.sharding, self.replicated, self.replicated
        state, found, first = self._run(_stream_step, places, variables, streams, state)
        return state, found, int(first)

    def _run(self, function: Callable, out_shardings: Any, *arguments: Any) -> Any:
        key = (
            function,
            *((x.shape, getattr(x, "sharding", None)) for x in jax.tree.leaves(arguments[1:])),
        )
        if key not in self.compiled:
            program = jax.jit(
                function,
                static_argnames="network",
                out_shardings=out_shardings,
                compiler_options=models.compiler_options(),
            )
            self.compiled[key] = distributed.compile_on_all_processes(
                program, *arguments, network=self.network
            )
        return self.compiled[key](*arguments)


def logits_of_whole(variables: Any, streams: dict, *, network: Network) -> dict:
    """The logits per step, f32 [B, S, K], of whole videos as `planes.unpack` takes them."""
    video = models.as_network_input(planes.unpack(streams))
    _, ends = cast(Any, network.apply(variables, video, endpoints=True))
    return _logits_by_name(ends)


def _stream_start(variables, streams, ticks, *, network):
    video = jax.eval_shape(lambda x: models.as_network_input(planes.unpack(x)), streams)
    return streaming.start(network, variables, video, ticks)


def _stream_step(variables, streams, state, *, network):
    video = models.as_network_input(planes.unpack(streams))
    state, ends = streaming.step(variables, state, video, network=network)
    logits = _logits_by_name(ends)
    # All videos of a batch have one length.
    return state, {name: each.values for name, each in logits.items()}, logits[""].steps[0, 0]


def _logits_by_name(ends: dict) -> dict:
    streams = {
        stream: ends[f"{stream}/Logits"] for stream in results.STREAMS if f"{stream}/Logits" in ends
    }
    return {"": ends["Logits"], **streams}
