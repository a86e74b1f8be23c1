"""Takes one file from a package index: nothing is installed, built or run.

Indexes are those that pip is told of, in its configuration files (the sections that `pip download` reads) and its environment
variables, and uv by environment variables: an index page per project as HTML (PEP 503) or JSON (PEP 691), or `find-links`,
folders and pages of files. The file is known by its hash, so that any of them may have it.
"""

import base64
import configparser
import hashlib
import html.parser
import json
import os
import pathlib
import ssl
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from i3d_jax.weights.download import DownloadError, download

DEFAULT = "https://pypi.org/simple"
SYSTEM = "/etc"
LARGEST_PAGE = 16 << 20  # Bytes.
PAGES = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class Settings(NamedTuple):
    """Where to look.

    Attributes:
      indexes: addresses of indexes.
      links: folders, or addresses of pages, that list files.
      cert: a file of certificates to trust instead of the system's.
      trusted: hosts that are trusted without a certificate.
      proxy: its address, if not the system's.
    """

    indexes: list[str]
    links: list[str]
    cert: str | None
    trusted: set[str]
    proxy: str | None


def fetch(
    project: str, filename: str, sha256: str, size: int, folder: pathlib.Path
) -> pathlib.Path:
    """Downloads a file of a project into `folder`, verifies its SHA-256, and returns its path.

    Raises:
      DownloadError: no index has it; says of each why.
      OSError: `folder` cannot be written.
    """
    settings, problems, path = read_settings(), [], folder / filename
    pages = [f"{index.rstrip('/')}/{project}/" for index in settings.indexes]
    for page in [*settings.links, *pages]:
        try:
            for address, noted in _files(page, filename, settings, folder):
                if noted not in (None, sha256):
                    raise DownloadError(f"{_public(address)} has another SHA-256, {noted}")
                download(
                    _public(address),
                    path,
                    size,
                    headers=_authority(address, page),
                    opener=_opener(address, settings),
                )
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    raise DownloadError(
                        f"{_public(address)} is another file (its SHA-256 is {found})"
                    )
                return path
            problems.append(f"{_public(page)} has no {filename}")
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError(
        "; ".join(problems) or f"pip's configuration has no index, and no links to {filename}"
    )


def read_settings() -> Settings:
    """What pip is told, in its configuration files and then by environment variables, and uv by environment variables."""
    # As pip reads them: a later file overrides an earlier one, the section of a command that for all, and a variable both.
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}}
    for path in _configuration_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError) as error:
            raise DownloadError(
                f"{path}: not a configuration of pip's: {' '.join(str(error).split())}"
            ) from None
        for section, found in sections.items():
            if parser.has_section(section):
                found |= {
                    key.replace("_", "-"): value for key, value in parser.items(section) if value
                }
    given = sections["global"] | sections["download"]
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            given[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    uv = {
        name: os.environ.get(name, "")
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
    }
    indexes = [given.get("index-url", ""), uv["UV_DEFAULT_INDEX"] or uv["UV_INDEX_URL"]]
    indexes = [*filter(None, indexes)] or [DEFAULT]
    indexes += (
        given.get("extra-index-url", "").split()
        + uv["UV_INDEX"].split()
        + uv["UV_EXTRA_INDEX_URL"].split()
    )
    if given.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        indexes = []
    return Settings(
        # uv gives indexes names, NAME=ADDRESS.
        list(
            dict.fromkeys(
                index.partition("=")[2] if "=" in index.partition(":")[0] else index
                for index in indexes
            )
        ),
        given.get("find-links", "").split(),
        given.get("cert"),
        set(given.get("trusted-host", "").split()),
        given.get("proxy"),
    )


def _configuration_files() -> Iterator[pathlib.Path]:
    """pip's configuration files that there may be, those that count more later."""
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return
    home = pathlib.Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        system, user = (
            ["/Library/Application Support/pip"],
            home / "Library/Application Support/pip",
        )
        user = user if user.is_dir() else home / ".config/pip"
    else:
        folders = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
        system = [*(os.path.join(folder, "pip") for folder in folders.split(os.pathsep)), SYSTEM]
        user = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"
    yield from (pathlib.Path(folder) / "pip.conf" for folder in system)
    if not (own and os.path.exists(own)):
        yield from (home / ".pip" / "pip.conf", user / "pip.conf")
    yield pathlib.Path(sys.prefix) / "pip.conf"
    if own:
        yield pathlib.Path(own)


def _files(
    page: str, filename: str, settings: Settings, folder: pathlib.Path
) -> Iterator[tuple[str, str | None]]:
    """The addresses of files of this name that a page or folder lists, and the SHA-256 that it notes of each, if any."""
    local = _local(page)
    if local is not None and (local / filename).exists():
        yield (local / filename).absolute().as_uri(), None
        return
    if local is not None and local.is_dir():
        local /= "index.html"
    if local is not None and not local.exists():
        return
    address = page if local is None else local.absolute().as_uri()
    headers, saved = {"Accept": PAGES} | _authority(page, page), folder / "page"
    answer = download(
        _public(address),
        saved,
        LARGEST_PAGE,
        exact=False,
        headers=headers,
        opener=_opener(address, settings),
    )
    text = saved.read_text(errors="replace")
    try:
        listed = (
            _listed_as_json(text) if answer.content_type.endswith("json") else _listed_as_html(text)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, AssertionError):
        raise DownloadError(f"{_public(page)} is not a page of an index") from None
    for link, sha256 in listed:
        whole = urllib.parse.urljoin(answer.address, link)
        # A page from the network names no files of this machine's.
        if urllib.parse.unquote(
            urllib.parse.urlsplit(whole).path.rpartition("/")[2]
        ) == filename and (local is not None or whole.startswith(("http:", "https:"))):
            yield urllib.parse.urldefrag(whole).url, sha256


def _listed_as_json(text: str) -> list[tuple[str, str | None]]:
    return [
        (str(file["url"]), file.get("hashes", {}).get("sha256"))
        for file in json.loads(text)["files"]
    ]


def _listed_as_html(text: str) -> list[tuple[str, str | None]]:
    parser = _Links()
    parser.feed(text)
    pairs = [(link, urllib.parse.urldefrag(link).fragment) for link in parser.links]
    return [(link, note[7:] if note.startswith("sha256=") else None) for link, note in pairs]


class _Links(html.parser.HTMLParser):
    """The links of a page, relative ones to its base if it names one."""

    def __init__(self):
        super().__init__()
        self.base, self.links = "", []

    def handle_starttag(self, tag, attrs):
        link = dict(attrs).get("href")
        if tag == "base" and link:
            self.base = link
        elif tag == "a" and link:
            self.links.append(urllib.parse.urljoin(self.base, link))


def _local(page: str) -> pathlib.Path | None:
    """The path that a page's address is of, if it is one of this machine's."""
    if page.startswith("file:"):
        return pathlib.Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
    return None if "://" in page else pathlib.Path(os.path.expanduser(page))


def _public(address: str) -> str:
    """An address without the name and password in it."""
    parts = urllib.parse.urlsplit(address)
    return (
        parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        if "@" in parts.netloc
        else address
    )


def _authority(address: str, page: str) -> dict[str, str]:
    """The header with the name and password in the address of a page, for what is on the same server."""
    (own, _, host), (given, _, server) = (
        urllib.parse.urlsplit(each).netloc.rpartition("@") for each in (address, page)
    )
    who = own or (given if host == server else "")
    if not who:
        return {}
    name, _, password = who.partition(":")
    pair = f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(password)}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _opener(address: str, settings: Settings) -> urllib.request.OpenerDirector:
    """Opens an address with the certificates, trusted hosts and proxy that pip is told of."""
    parts = urllib.parse.urlsplit(_public(address))
    try:
        context = ssl.create_default_context(
            cafile=settings.cert and os.path.expanduser(settings.cert)
        )
    except OSError as error:
        raise DownloadError(f"cert {settings.cert}: {error.strerror or error}") from None
    if {parts.hostname, parts.netloc} & settings.trusted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if settings.proxy:
        handlers.append(
            urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy})
        )
    return urllib.request.build_opener(*handlers)
