"""The class names of data sets, one text file per list."""

import importlib.resources


def names(data_set: str) -> tuple[str, ...]:
    """Returns a list of classes, in the order of the published logits if there are any.

    Args:
      data_set: name of the list, such as "kinetics_400".
    """
    return tuple(
        importlib.resources.files(__name__)
        .joinpath(f"{data_set}.txt")
        .read_text("utf-8")
        .splitlines()
    )
