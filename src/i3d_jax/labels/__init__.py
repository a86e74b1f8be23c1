"""The class names of the data sets."""

import importlib.resources


def names(data_set: str) -> tuple[str, ...]:
    """The classes of "kinetics_400" or another list here, in the order of the published logits if there are such."""
    return tuple(
        importlib.resources.files(__name__)
        .joinpath(f"{data_set}.txt")
        .read_text("utf-8")
        .splitlines()
    )
