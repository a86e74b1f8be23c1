"""Initialises a network from the weights of another one, and shows this as a table.

Networks that contain Inceptions take them from the weights of one Inception (paper, section 2.4),
and I3D-ResNet takes a ResNet's.
Kernels are copied, or inflated where they are 3-D. Where a stream has other channels, the first
kernel is averaged over its input channels and repeated; Wang et al., *Temporal Segment Networks*
(ECCV 2016, section 3.1) do so for flow. Last layers are always new, and non-local blocks are that
the weights lack. Weights of the same kind of
network give everything but the last layer.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from i3d_jax.inflate import inflate_params, named_leaves

STEMS, LAST_LAYER, NON_LOCAL = ("Conv_1a", "conv1"), "Logits", "_nonlocal"
STEM_KERNELS = tuple(f"{stem}/conv/kernel" for stem in STEMS)


class LeafTransfer(NamedTuple):
    """How one leaf of a network is made.

    Attributes:
      leaf: its path.
      shape: its shape.
      action: what is done: "new", "copied", "inflated: ...".
      source: path of the leaf that it is made from; "" if it is new.
      source_shape: shape of that leaf.
    """

    leaf: str
    shape: tuple[int, ...]
    action: str
    source: str = ""
    source_shape: tuple[int, ...] = ()


def plan_transfer(source: Any, like: Any, backbones: tuple[str, ...]) -> list[LeafTransfer]:
    """Lists what `transfer_variables` does with each leaf of a network.

    Args:
      source: variables of an Inception or a ResNet, or of a network like this one.
      like: variables of the network, or their shapes.
      backbones: as in `models.Model`.
    """
    found = named_leaves(source)
    rows = []
    for leaf, value in named_leaves(like).items():
        name = next(_candidate_sources(leaf, _destinations(source, like, backbones)), "")
        if name not in found:
            rows.append(LeafTransfer(leaf, tuple(value.shape), "new"))
            continue
        given, wanted = tuple(found[name].shape), tuple(value.shape)
        actions = []
        if name.endswith(STEM_KERNELS) and given[-2] != wanted[-2]:
            actions.append(f"averaged over {given[-2]} channels, repeated over {wanted[-2]}")
        if len(given) < len(wanted):
            actions.append(
                f"inflated: repeated over {wanted[0]} frames, / {wanted[0]}"
                if wanted[0] > 1
                else "inflated"
            )
        rows.append(LeafTransfer(leaf, wanted, "; ".join(actions) or "copied", name, given))
    return rows


def format_plan(rows: list[LeafTransfer]) -> str:
    """The plan as a Markdown table, then the number of values that each action makes."""
    lines = ["| leaf | shape | what is done | source | its shape |", "|---|---|---|---|---|"]
    sizes: dict[str, int] = {}
    for row in rows:
        shapes = ["x".join(map(str, shape)) for shape in (row.shape, row.source_shape)]
        lines.append(f"| {row.leaf} | {shapes[0]} | {row.action} | {row.source} | {shapes[1]} |")
        sizes[row.action] = sizes.get(row.action, 0) + math.prod(row.shape)
    lines += ["", *(f"{action}: {size:,}" for action, size in sizes.items())]
    return "\n".join(lines)


def transfer_variables(source: Any, fresh: Any, backbones: tuple[str, ...]) -> Any:
    """Returns the variables that a network starts training from.

    Args:
      source: variables of an Inception or a ResNet, or of a network like this one.
      fresh: the network's own initial variables, from which new leaves are taken.
      backbones: names of the submodules that are image networks, as in `models.Model`.

    Raises:
      ValueError: `source` lacks what the network needs; the message names every leaf.
    """
    places = _destinations(source, fresh, backbones)
    if not places:
        raise ValueError("this network has no layers in common with the given weights")
    variables = fresh
    for place in places:
        like = {kind: _get_subtree(fresh[kind], place) for kind in fresh}
        given = {
            kind: _with_last_layers_of(like[kind], _copy_dicts(source[kind])) for kind in source
        }
        stem, wanted = _stem_conv(given), _stem_conv(like)
        if (
            stem is not None
            and wanted is not None
            and stem["kernel"].shape[-2] != wanted["kernel"].shape[-2]
        ):
            stem["kernel"] = average_channels(stem["kernel"], wanted["kernel"].shape[-2])
        made = inflate_params(given, like=like)
        variables = {kind: _set_subtree(variables[kind], place, made[kind]) for kind in variables}
    return variables


def average_channels(kernel: Any, channels: int) -> Any:
    """Adapts a kernel [..., I, O] to other input channels: its mean over I, repeated."""
    kernel = jnp.asarray(kernel)
    return jnp.repeat(kernel.mean(-2, keepdims=True), channels, -2)


def _destinations(source: Any, like: Any, backbones: tuple[str, ...]) -> tuple[str, ...]:
    same = set(source["params"]) | {LAST_LAYER} == set(like["params"]) | {LAST_LAYER}
    return ("",) if same else backbones


def _candidate_sources(leaf: str, places: tuple[str, ...]) -> Iterator[str]:
    kind, _, path = leaf.partition("/")
    for place in places:
        prefix = place and place + "/"
        if path.startswith(prefix) and LAST_LAYER not in path.split("/"):
            yield f"{kind}/{path.removeprefix(prefix)}"


def _get_subtree(tree: Any, place: str) -> Any:
    return tree[place] if place else tree


def _set_subtree(tree: Any, place: str, value: Any) -> Any:
    return {**tree, place: value} if place else value


def _stem_conv(variables: Any) -> Any:
    stem = next((stem for stem in STEMS if stem in variables["params"]), "")
    return variables["params"].get(stem, {}).get("conv")


def _copy_dicts(tree: Any) -> Any:
    return (
        {name: _copy_dicts(value) for name, value in tree.items()}
        if isinstance(tree, dict)
        else tree
    )


def _with_last_layers_of(like: Any, tree: Any) -> Any:
    """Returns `tree` with the last layers of `like` instead of its own.

    Non-local blocks that it lacks are those of `like`, too.
    """
    if not isinstance(tree, dict) or not isinstance(like, dict):
        return tree
    kept = {
        name: _with_last_layers_of(like.get(name), value)
        for name, value in tree.items()
        if name != LAST_LAYER
    }
    return kept | {
        name: like[name]
        for name in like
        if name == LAST_LAYER or name.endswith(NON_LOCAL) and name not in tree
    }
