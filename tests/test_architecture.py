"""The layers of the package: imports go down only, and no folder uses private names of another."""

import ast
import pathlib
import re

import i3d_jax

PACKAGE = pathlib.Path(i3d_jax.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    ): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def drawn_layers() -> list[set[str]]:
    """The layers that the package's docstring draws, from top to bottom."""
    lines = re.findall(r"^ {4}(\S.*?)(?: {2,}.*)?$", i3d_jax.__doc__ or "", re.MULTILINE)
    return [set(line.split(", ")) for line in lines]


def layer(module: str) -> int:
    """The number of a module's layer, counted from the top; a folder's command is in the first."""
    if module.endswith(".__main__"):
        return 0
    name = module.split(".")[1]
    return next(number for number, names in enumerate(drawn_layers()) if name in names)


def imported(module: str) -> list[tuple[str, str]]:
    """What a module imports from the package, anywhere in its code.

    Args:
      module: its name.

    Returns:
      for each import the other module, and the name that is taken from it ("": the whole module).
    """
    found = []
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole, "") if whole in MODULES else (node.module, alias.name))
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name in MODULES]
    return found


def test_every_module_has_one_layer():
    names = [name for names in drawn_layers() for name in names]
    assert sorted(names) == sorted(
        {module.split(".")[1] for module in MODULES if "." in module} - {"__main__"}
    )


def test_imports_go_down_only():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if module not in ("i3d_jax", "i3d_jax.__main__")
        for other, _ in imported(module)
        if other == "i3d_jax"
        or module.split(".")[1] != other.split(".")[1]
        and layer(other) <= layer(module)
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others():
    """A package counts as its `__init__`, which runs before any of its modules."""
    below: dict[str, set[str]] = {
        module: {other for other, _ in imported(module)} for module in MODULES
    }

    def reached(module: str, path: tuple[str, ...] = ()) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module in done:
            return
        for other in below[module]:
            reached(other, (*path, module))
        done.add(module)

    done: set[str] = set()
    for module in MODULES:
        reached(module)


def test_no_folder_uses_what_is_private_to_another():
    wrong = []
    for module, tree in MODULES.items():
        folder = module.split(".")[1:2]
        names = {}
        for other, name in imported(module):
            if other.split(".")[1:2] == folder:
                continue
            if (
                name.startswith("_")
                or other.split(".")[-1].startswith("_")
                and other.split(".")[-1] != "__main__"
            ):
                wrong.append(f"{module} imports {other}.{name}")
            if not name:
                names[other.split(".")[-1]] = other
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            if node.value.id in names and re.match("_[^_]", node.attr):
                wrong.append(f"{module} uses {names[node.value.id]}.{node.attr}")
    assert wrong == []


def code_lines(function: ast.FunctionDef) -> int:
    """The number of lines of a function, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def test_no_function_is_longer_than_a_screen():
    functions = [
        (f"{module}.{node.name}", code_lines(node))
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 500
    assert [(name, lines) for name, lines in functions if lines > 80] == []
