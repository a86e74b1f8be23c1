import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scaling
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def test_the_bytes_of_collectives_are_read_out_of_a_compiled_program():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(lambda x: (x.sum(0), jnp.square(x).sum()), in_shardings=cut, out_shardings=whole)
    found = scaling.collectives(
        step.lower(jax.ShapeDtypeStruct((4, 100), jnp.float32)).compile().as_text()
    )
    assert {kind for kind, _ in found} == {"all-reduce"} and sum(
        size for _, size in found
    ) == 4 * 101


def test_what_is_no_collective_is_not_counted():
    text = """
  %all-reduce.2 = (f32[2,3]{1,0}, /*index=5*/bf16[4]{0}) all-reduce(%a, %b), channel_id=1
  %get-tuple-element.1 = f32[2,3]{1,0} get-tuple-element(%all-reduce.2), index=0
  %all-gather-start.1 = s32[] all-gather-start(%c), dimensions={0}
"""
    assert scaling.collectives(text) == [("all-reduce", 2 * 3 * 4 + 4 * 2), ("all-gather", 4)]


def test_sending_takes_a_ring_within_a_machine_and_one_of_the_machines():
    links = scaling.Links("", 8, 100.0, 10.0, 0.5)
    assert scaling.seconds_to_send(400, 8, links) == pytest.approx(2 * 7 / 8 * 4 + 2 * 3 * 0.5)
    assert scaling.seconds_to_send(400, 16, links) == pytest.approx(
        2 * 7 / 8 * 4 + 2 / 2 * 400 / 8 / 10 + 2 * 4 * 0.5
    )
