"""Commands, links and code on the pages are right; the tutorials' code is in test_tutorials."""

import importlib
import pkgutil
import re

import pytest
from support import pages

from i3d_jax import cli, main
from i3d_jax.__main__ import COMMANDS

MODULES = {module.removesuffix(".__main__"): module for module, _ in COMMANDS.values()}
COMMAND_LINES = [
    pytest.param(module, arguments, id=f"{page.stem}: {' '.join(arguments)[:60]}")
    for page in pages.PAGES
    for module, arguments in pages.own_commands(page)
]


class _ParsedError(Exception):
    pass


@pytest.mark.parametrize("module,arguments", COMMAND_LINES)
def test_a_command_line_on_a_page_is_understood(module, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if module == "i3d_jax.main":
        own_config = "--config=small.py" in arguments
        arguments = [each.replace("small.py", "moving_shapes") for each in arguments]
        arguments = [
            each.replace("configs/moving_shapes.py", "moving_shapes") for each in arguments
        ]
        _, config = main.parse(arguments)
        assert own_config or config["steps"] > 0
        return
    parse = cli.Parser.parse_args

    def parse_and_stop(*given, **options):
        parse(*given, **options)
        raise _ParsedError

    monkeypatch.setattr(cli.Parser, "parse_args", parse_and_stop)
    with pytest.raises(_ParsedError):
        importlib.import_module(MODULES[module]).main(arguments)


def test_pages_have_command_lines_of_every_command():
    assert {module for module, _ in (param.values for param in COMMAND_LINES)} == {*MODULES}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_links_between_files_lead_somewhere(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        assert (page.parent / path).exists(), target
        if anchor:
            text = (page.parent / path).read_text()
            headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """A heading's anchor, as the usual hosts and the site make it."""
    kept = "".join(each for each in heading.lower() if each.isalnum() or each in " -_")
    return kept.replace(" ", "-")


def test_python_on_pages_is_in_the_readme_or_in_tutorials_which_other_tests_run():
    found = {page.name for page in pages.PAGES if pages.blocks(page, "python")}
    assert found == {"README.md"}


def test_the_readme_has_at_most_700_words_and_its_picture_at_most_500_kb():
    assert len((pages.REPOSITORY / "README.md").read_text().split()) <= 700
    assert (pages.DOCS / "images" / "overview.png").stat().st_size <= 500_000


def test_the_citation_has_the_version_of_the_package():
    text = (pages.REPOSITORY / "CITATION.cff").read_text()
    assert f"version: {importlib.import_module('i3d_jax').__version__}\n" in text


def test_the_changelog_names_no_config_key_that_is_not_there():
    text = (pages.REPOSITORY / "CHANGELOG.md").read_text()
    from i3d_jax.training import config_files

    known = {path.rpartition(".")[2] for path in config_files.keys({})} | {*config_files.sections()}
    for new in ("grad_accum_steps", "ema_decay", "max_skipped_steps", "freeze_backbone"):
        assert new in known and f"`{new}`" in text


def test_the_reference_of_python_names_what_is_there():
    text = (pages.DOCS / "reference" / "api.md").read_text()
    names = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)
    assert len(names) > 30
    for name in names:
        assert pkgutil.resolve_name(name) is not None


def imports() -> list[tuple[str, str]]:
    """The tutorials, each with the lines that import from the package."""
    code = {page: "\n".join(pages.blocks(page, "{code-cell} ipython3")) for page in pages.TUTORIALS}
    lines = {
        page.stem: re.findall(r"^from i3d_jax.*$", text, re.MULTILINE)
        for page, text in code.items()
    }
    return [(name, line) for name, found in lines.items() for line in found]


@pytest.mark.parametrize("name,line", imports())
def test_code_of_the_site_imports_what_is_there(name, line):
    exec(line, {})  # noqa: S102
