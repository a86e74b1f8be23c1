"""Inflation: turns the parameters of an image network into a video network's (section 2.4.1).

An N x N filter is repeated N times over time and divided by N. A video of one repeated image then
gives the image's response. This is exact away from the clip's ends; there, zero padding takes the
place of frames. Or the filter is put into the middle of the time axis, with zeros around it
(Girdhar et al., *Detect-and-Track*, CVPR 2018). A video then gives the response of each of its
frames, at its ends too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

HOW = "mean", "centre"


def inflate_params(params: Any, *, like: Any, how: str = "mean") -> Any:
    """Inflates a pytree of 2-D parameters into the structure, shapes and dtypes of `like`.

    A leaf [H, W, I, O] whose counterpart is [T, H, W, I, O] is repeated T times over time and
    divided by T. A leaf with its counterpart's shape is copied (biases, batch norm statistics).
    Nothing else is guessed: replace a last layer for other classes, or a first layer for other
    channels, before or after.

    Args:
      params: any pytree of arrays: a Flax or Haiku dict, an Equinox module, tuples.
      like: a pytree with the same paths to its leaves, of arrays or `jax.ShapeDtypeStruct`.
      how: "mean" repeats a kernel and divides; "centre" puts it at T // 2, with zeros around it.

    Returns:
      A pytree with the structure of `like`.

    Raises:
      ValueError: names every leaf that is missing from `params`, is not in `like`, or has a shape
        that cannot be inflated; or `how` has another value.
    """
    if how not in HOW:
        raise ValueError(f"how is {how!r}, wanted {' or '.join(map(repr, HOW))}")
    source, target = named_leaves(params), named_leaves(like)
    problems = [
        f"{name}: missing, wanted {_shape(leaf)}"
        for name, leaf in target.items()
        if name not in source
    ]
    problems += [
        f"{name}: not wanted, found {_shape(leaf)}"
        for name, leaf in source.items()
        if name not in target
    ]
    problems += [
        f"{name}: cannot inflate {_shape(leaf)} to {_shape(target[name])}"
        for name, leaf in source.items()
        if name in target
        and not (_same_shape(leaf, target[name]) or _can_inflate(leaf, target[name]))
    ]
    if problems:
        raise ValueError("cannot inflate these parameters:\n  " + "\n  ".join(problems))
    # Leaves that are no arrays, such as an Equinox activation function, are not inflated.
    names = [name for name, wanted in target.items() if hasattr(wanted, "shape")]
    wanted = tuple((tuple(target[name].shape), target[name].dtype) for name in names)
    inflated = dict(
        zip(names, _inflate_leaves([source[name] for name in names], wanted, how), strict=True)
    )
    return jax.tree.unflatten(
        jax.tree.structure(like), [inflated.get(name, source[name]) for name in target]
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path ("params/Conv_1a/conv/kernel"), ordered as its leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(leaves) != len(pairs):
        raise ValueError('two leaves of a pytree have the same path (a key with "/" in it?)')
    return leaves


def _shape(leaf):
    return tuple(leaf.shape) if hasattr(leaf, "shape") else repr(leaf)


def _same_shape(leaf, wanted):
    return _shape(leaf) == _shape(wanted) or not (
        hasattr(leaf, "shape") or hasattr(wanted, "shape")
    )


def _can_inflate(leaf, wanted):
    shape, target = _shape(leaf), _shape(wanted)
    return len(shape) == 4 and len(target) == 5 and shape == target[1:]


# One jitted program, since compiling operations one by one takes seconds for a network.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _inflate_leaves(leaves, wanted, how):
    return [
        _inflate_leaf(leaf, shape, dtype, how)
        for leaf, (shape, dtype) in zip(leaves, wanted, strict=True)
    ]


def _inflate_leaf(leaf, shape, dtype, how):
    if leaf.shape != shape and how == "centre":
        leaf = jnp.zeros(shape, leaf.dtype).at[shape[0] // 2].set(leaf)
    elif leaf.shape != shape:
        # Divides in float32, so that a bfloat16 kernel is rounded only once.
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        leaf = jnp.broadcast_to(wide[None] / shape[0], shape)
    return jnp.array(leaf, dtype)  # A copy, so that the caller may donate one of the two.
