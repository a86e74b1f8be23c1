"""Starting weights: where each leaf of a network's variables comes from, as a table, and the variables it makes.

Every network that has Inceptions inside it takes them from one Inception's weights (paper, section 2.4): copied, inflated if
they are 3-D, and, where the stream has other channels, the first kernel averaged over its channels and repeated over the
stream's: Wang et al., *Temporal Segment Networks* (ECCV 2016, section 3.1) for two-stream networks of images. Last layers
are new, whatever classes there were. Weights of the same kind of network give everything but those.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from i3d_jax.inflate import inflate_params, named_leaves

STEM, LAST = "Conv_1a/conv/kernel", "Logits"


class Row(NamedTuple):
    """One leaf: its path and shape, what is done, and the path and shape of the leaf it is made from, if any."""

    leaf: str
    shape: tuple[int, ...]
    action: str
    source: str = ""
    source_shape: tuple[int, ...] = ()


def plan_transfer(source: Any, like: Any, trunks: tuple[str, ...]) -> list[Row]:
    """Says what `transfer_variables` does, a row per leaf of `like`; the arguments are its."""
    found = named_leaves(source)
    rows = []
    for leaf, value in named_leaves(like).items():
        name = next(_sources(leaf, _places(source, like, trunks)), "")
        if name not in found:
            rows.append(Row(leaf, tuple(value.shape), "new"))
            continue
        given, wanted = tuple(found[name].shape), tuple(value.shape)
        actions = []
        if name.endswith(STEM) and given[-2] != wanted[-2]:
            actions.append(f"averaged over {given[-2]} channels, repeated over {wanted[-2]}")
        if len(given) < len(wanted):
            actions.append(
                f"inflated: repeated over {wanted[0]} frames, / {wanted[0]}"
                if wanted[0] > 1
                else "inflated"
            )
        rows.append(Row(leaf, wanted, "; ".join(actions) or "copied", name, given))
    return rows


def format_plan(rows: list[Row]) -> str:
    """The rows as a Markdown table, and how many parameters and statistics each action makes."""
    lines = ["| leaf | shape | what is done | source | its shape |", "|---|---|---|---|---|"]
    sizes: dict[str, int] = {}
    for row in rows:
        shapes = ["x".join(map(str, shape)) for shape in (row.shape, row.source_shape)]
        lines.append(f"| {row.leaf} | {shapes[0]} | {row.action} | {row.source} | {shapes[1]} |")
        sizes[row.action] = sizes.get(row.action, 0) + math.prod(row.shape)
    lines += ["", *(f"{action}: {size:,}" for action, size in sizes.items())]
    return "\n".join(lines)


def transfer_variables(source: Any, fresh: Any, trunks: tuple[str, ...]) -> Any:
    """The variables that a network starts from.

    Args:
      source: variables of an Inception, or of a network like this one.
      fresh: the network's own, as it initialises itself; leaves that are new are taken from these.
      trunks: where in the network's variables there are those of Inceptions, see `models.Model`.

    Raises:
      ValueError: `source` does not have what the network wants; names every leaf.
    """
    places = _places(source, fresh, trunks)
    if not places:
        raise ValueError("there is nothing in them that this network could start from")
    variables = fresh
    for place in places:
        like = {kind: _at(fresh[kind], place) for kind in fresh}
        given = {kind: _last_layers_of(like[kind], _copy(source[kind])) for kind in source}
        stem, wanted = _stem(given), _stem(like)
        if (
            stem is not None
            and wanted is not None
            and stem["kernel"].shape[-2] != wanted["kernel"].shape[-2]
        ):
            stem["kernel"] = average_channels(stem["kernel"], wanted["kernel"].shape[-2])
        made = inflate_params(given, like=like)
        variables = {kind: _put(variables[kind], place, made[kind]) for kind in variables}
    return variables


def average_channels(kernel: Any, channels: int) -> Any:
    """A kernel [..., I, O] for other input channels: its mean over I, repeated."""
    kernel = jnp.asarray(kernel)
    return jnp.repeat(kernel.mean(-2, keepdims=True), channels, -2)


def _places(source: Any, like: Any, trunks: tuple[str, ...]) -> tuple[str, ...]:
    same = set(source["params"]) | {LAST} == set(like["params"]) | {LAST}
    return ("",) if same else trunks


def _sources(leaf: str, places: tuple[str, ...]) -> Iterator[str]:
    kind, _, path = leaf.partition("/")
    for place in places:
        prefix = place and place + "/"
        if path.startswith(prefix) and LAST not in path.split("/"):
            yield f"{kind}/{path.removeprefix(prefix)}"


def _at(tree: Any, place: str) -> Any:
    return tree[place] if place else tree


def _put(tree: Any, place: str, value: Any) -> Any:
    return {**tree, place: value} if place else value


def _stem(variables: Any) -> Any:
    return variables["params"].get("Conv_1a", {}).get("conv")


def _copy(tree: Any) -> Any:
    return {name: _copy(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def _last_layers_of(like: Any, tree: Any) -> Any:
    """`tree` with the last layers that `like` has in the place of its own."""
    if not isinstance(tree, dict) or not isinstance(like, dict):
        return tree
    kept = {
        name: _last_layers_of(like.get(name), value) for name, value in tree.items() if name != LAST
    }
    return kept | ({LAST: like[LAST]} if LAST in like else {})
