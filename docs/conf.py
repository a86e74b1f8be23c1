"""Sphinx's settings for the site: `make docs` builds it, with warnings as errors."""

import os
import pathlib
import re
import sys
import tempfile
import tomllib

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference_pages
from myst_nb.core import render

project = "i3d_jax"
author = "The i3d_jax authors"
copyright = author
with (HERE.parent / "pyproject.toml").open("rb") as file:
    release = tomllib.load(file)["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "generated"]
html_theme = "furo"
html_title = f"i3d_jax {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

# Tutorials run in a folder of their own, see the same package as this process does, and keep
# nothing in the user's cache.
# DOCS_NOTEBOOKS=off builds the other pages in seconds.
nb_execution_mode = os.environ.get("DOCS_NOTEBOOKS", "auto")
if nb_execution_mode == "off":
    suppress_warnings += ["myst-nb.lexer"]
nb_execution_timeout = 900  # Of a cell; many times what it takes on an idle machine.
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ.setdefault("I3D_JAX_CACHE", tempfile.mkdtemp(prefix="i3d_jax-docs-"))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TQDM_DISABLE"] = "1"
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])

copybutton_exclude = ".linenos, .gp, .go"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_numpy_docstring = False
default_role = "code"

# Characters that reStructuredText gives a meaning, outside of `code`, in docstrings of plain text.
SPECIAL = re.compile(r"(`+[^`]*`+)|([*|]|(?<=\w)_(?!\w))")


def escape_docstring(_app, _what, _name, _obj, _options, lines):
    """Has docstrings read as they are written: only `code` and sections have a meaning."""
    text = "\n".join(lines)
    escaped = SPECIAL.sub(lambda found: found[1] or "\\" + found[2], text)
    lines[:] = escaped.split("\n")


def merge_streams(outputs):
    """Joins what a cell printed piece by piece: myst-nb's own ends the line after each piece."""
    merged, streams = [], {}
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
            continue
        merged.append(output)
        if output["output_type"] == "stream":
            streams[output["name"]] = output
    return merged


render.coalesce_streams = merge_streams


def setup(app):
    """Connects what this file adds to Sphinx."""
    app.connect("builder-inited", lambda _: reference_pages.write(HERE / "generated"))
    # Before napoleon, which turns the sections of the text into reStructuredText.
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
