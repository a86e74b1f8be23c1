import base64
import hashlib
import json
import os
import subprocess
import sys

import pytest
from support.servers import answering, head

from i3d_jax.weights import download, package_index
from i3d_jax.weights.download import DownloadError

DATA = b"an sdist" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "thing-1.0.tar.gz"
HTML = {"Content_Type": "text/html"}
JSON = {"Content_Type": "application/vnd.pypi.simple.v1+json"}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Hides this machine's configuration, forbids subprocesses, makes tmp_path / "to"."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(package_index, "SYSTEM_FOLDER", str(tmp_path / "etc"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "to").mkdir()


def serving(pages, seen=None):
    """A server of (bytes, headers) by path; appends the requests to `seen`."""

    def answer(handler):
        if seen is not None:
            seen.append((handler.path, handler.headers.get("Authorization")))
        path = handler.path.partition("?")[0]
        if path not in pages:
            head(handler, 404, Content_Length=0)
            return
        data, headers = pages[path]
        head(handler, 302 if "Location" in headers else 200, Content_Length=len(data), **headers)
        handler.wfile.write(data)

    return answering(answer)


def page(*links):
    return "".join(f"<a href='{link}'>a file</a>\n" for link in links).encode(), HTML


def listed(*files):
    return json.dumps(
        {"files": [{"filename": NAME, "url": url, "hashes": {"sha256": sha}} for url, sha in files]}
    ), JSON


def fetch(tmp_path):
    path = package_index.fetch("thing", NAME, SHA256, len(DATA), tmp_path / "to")
    assert path == tmp_path / "to" / NAME
    return path.read_bytes()


FILE = {f"/files/{NAME}": (DATA, {})}


@pytest.mark.parametrize(
    "pages",
    [
        {"/simple/thing/": page(f"../../files/{NAME}#sha256={SHA256}")},
        {"/simple/thing/": page("thing-0.9.tar.gz", f"/files/{NAME}?x=1#egg")},
        {"/simple/thing/": (b"<base href='/files/'>" + page(NAME)[0], HTML)},
        {"/simple/thing/": (listed((f"/files/{NAME}", SHA256))[0].encode(), JSON)},
        {"/simple/thing/": (listed((f"../../files/{NAME}", None))[0].encode(), JSON)},
        {
            "/simple/thing/": (b"", {"Location": "/else/where/"}),
            "/else/where/": page(f"../../files/{NAME}"),
        },
    ],
    ids=["relative", "absolute", "base", "JSON", "JSON without a hash", "redirected"],
)
def test_the_file_that_an_index_lists_is_fetched_and_nothing_is_run(pages, tmp_path, monkeypatch):
    with serving(pages | FILE) as (address, _):
        monkeypatch.setenv("PIP_INDEX_URL", address.replace("/file", "/simple"))
        assert fetch(tmp_path) == DATA


@pytest.mark.parametrize(
    "content,message",
    [
        (page(), f"has no {NAME}"),
        (page("thing-1.0.zip"), f"has no {NAME}"),
        (page(f"/files/{NAME}#sha256=" + "0" * 64), "has another SHA-256, 000"),
        (page(f"/other/{NAME}"), "is another file (its SHA-256 is "),
        (page("file:///etc/" + NAME), f"has no {NAME}"),
        ((b"{}", JSON), "is not a page of an index"),
        ((b"[" * 200_000, JSON), "is not a page of an index"),
        ((b'{"files": [1]}', JSON), "is not a page of an index"),
        ((b"x" * (16 << 20) + b"x", HTML), "has 16,777,217 bytes, wanted at most 16,777,216"),
    ],
)
def test_an_index_that_does_not_have_the_file_says_so_and_the_next_is_asked(
    content, message, tmp_path, monkeypatch
):
    pages = {
        "/simple/thing/": content,
        f"/other/{NAME}": (DATA[::-1], {}),
        "/good/thing/": page(f"/files/{NAME}"),
    }
    with serving(pages | FILE) as (address, _):
        host = address.removesuffix("/file")
        monkeypatch.setenv("PIP_INDEX_URL", f"{host}/simple/")
        with pytest.raises(DownloadError) as error:
            fetch(tmp_path)
        assert message in str(error.value) and str(error.value).count("\n") == 0
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{host}/none {host}/good")
        assert fetch(tmp_path) == DATA


def test_folders_of_this_machine_are_indexes_too(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NAME).write_bytes(DATA)
    (tmp_path / "simple" / "thing").mkdir(parents=True)
    (tmp_path / "simple" / "thing" / "index.html").write_bytes(page(f"../../files/{NAME}")[0])
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert fetch(tmp_path) == DATA
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="pip's configuration has no index"):
        fetch(tmp_path)
    for links in (
        tmp_path / "files",
        (tmp_path / "files").as_uri(),
        tmp_path / "simple" / "thing" / "index.html",
    ):
        monkeypatch.setenv("PIP_FIND_LINKS", f"/no/such/folder {links}")
        assert fetch(tmp_path) == DATA


def test_a_name_and_password_go_to_their_own_server_and_into_no_message(tmp_path, monkeypatch):
    seen, other = [], []
    with serving({}, other) as (elsewhere, _):
        pages = {"/simple/thing/": page(elsewhere.replace("/file", f"/{NAME}"), f"/files/{NAME}")}
        with serving(pages, seen) as (address, _):
            host = address.removesuffix("/file")
            monkeypatch.setenv("PIP_INDEX_URL", f"{host.replace('//', '//me:s%40crit@')}/simple")
            with pytest.raises(DownloadError) as error:
                fetch(tmp_path)
            monkeypatch.setitem(pages, "/simple/thing/", page(f"/files/{NAME}"))
            monkeypatch.setitem(pages, f"/files/{NAME}", (DATA, {}))
            assert fetch(tmp_path) == DATA
    assert "crit" not in str(error.value) and other == [(f"/{NAME}", None)]
    basic = "Basic " + base64.b64encode(b"me:s@crit").decode()
    assert seen[-2:] == [("/simple/thing/", basic), (f"/files/{NAME}", basic)]


def settings_of(**variables):
    for name, value in variables.items():
        os.environ[name] = value
    try:
        return package_index.read_settings()
    finally:
        for name in variables:
            del os.environ[name]


def test_pips_configuration_is_read_as_pip_reads_it(tmp_path):
    assert settings_of().indexes == ["https://pypi.org/simple"]
    files = {
        "xdg/pip/pip.conf": "[global]\nindex_url = https://system/simple\ntrusted-host = a b\n"
        "[download]\ncert = /c",
        "home/.config/pip/pip.conf": "[global]\ncert = /b\nindex-url = https://user/simple\n"
        "extra-index-url =\n    https://x\n    https://y",
        "prefix/pip.conf": "[install]\nindex-url = https://no/simple\n"
        "[download]\nfind-links = /wheels",
        "own.conf": "[global]\nindex-url = https://own/simple",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = settings_of()
    assert found.indexes == ["https://user/simple", "https://x", "https://y"]
    assert found.links == ["/wheels"] and found.trusted == {"a", "b"} and found.cert == "/c"
    own = str(tmp_path / "own.conf")
    assert settings_of(PIP_CONFIG_FILE=own).indexes == [
        "https://own/simple"
    ]  # Then the user's file is not read.
    found = settings_of(PIP_INDEX_URL="https://variable", PIP_EXTRA_INDEX_URL="", PIP_CERT="/d")
    assert found.indexes == ["https://variable", "https://x", "https://y"] and found.cert == "/d"
    found = settings_of(
        PIP_CONFIG_FILE=os.devnull,
        UV_DEFAULT_INDEX="https://uv",
        UV_INDEX="more=https://more https://last",
    )
    assert found.indexes == ["https://uv", "https://more", "https://last"]
    assert settings_of(PIP_CONFIG_FILE=os.devnull, UV_INDEX_URL="https://u").indexes == [
        "https://u"
    ]
    (tmp_path / "own.conf").write_text("index-url = https://own/simple")
    with pytest.raises(DownloadError, match="own.conf: not a configuration of pip's"):
        settings_of(PIP_CONFIG_FILE=own)


def test_certificates_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CERT", "/no/such.pem")
    with pytest.raises(DownloadError, match="cert /no/such.pem: No such file"):
        fetch(tmp_path)
