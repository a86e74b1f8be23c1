"""What is in the README and the pages of the site: code, commands, links."""

import pathlib
import re
import shlex

REPOSITORY = pathlib.Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
TUTORIALS = sorted(path for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index")
PAGES = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(path for path in DOCS.rglob("*.md") if not {"_build", "generated"} & {*path.parts}),
        *(REPOSITORY / "experiments").rglob("*.md"),
    ]
)


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a page that are of a language."""
    return re.findall(
        rf"^```{re.escape(language)}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every command line of a page, also of those in a tutorial's cells."""
    cells = [cell.partition("%%bash\n")[2] for cell in blocks(page, "{code-cell} ipython3")]
    lines = "\n".join([*blocks(page, "bash"), *cells]).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def own_commands(page: pathlib.Path) -> list[tuple[str, list[str]]]:
    """The module and arguments of every command line of ours on a page."""
    found = []
    for words in commands(page):
        if words[:2] == ["python", "-m"] and words[2].startswith("i3d_jax"):
            arguments = words[3:]
            # Redirections and pipes are the shell's.
            ends = [at for at, word in enumerate(arguments) if word in (">", "|", "||", "2>")]
            found.append((words[2], arguments[: ends[0]] if ends else arguments))
    return found


def links(page: pathlib.Path) -> list[str]:
    """The targets of a page's links and pictures that are files of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target for target in targets if "://" not in target and not target.startswith("#")]
