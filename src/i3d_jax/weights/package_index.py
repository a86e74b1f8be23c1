"""Downloads one file of a package index. Nothing is installed, built or run.

It uses the indexes that pip and uv are configured for: pip's configuration files (the sections that
`pip download` reads), and environment variables of both. An index has a page per project, as HTML
(PEP 503) or JSON (PEP 691). `find-links` are folders or pages that list files. The file is
identified by its hash, so any of these may supply it.
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

DEFAULT_INDEX = "https://pypi.org/simple"
SYSTEM_FOLDER = "/etc"
LARGEST_PAGE = 16 << 20  # Bytes.
ACCEPTED_TYPES = (
    "application/vnd.pypi.simple.v1+json, "
    "application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
)


class Settings(NamedTuple):
    """Where and how to download.

    Attributes:
      indexes: URLs of indexes.
      links: folders, or URLs of pages, that list files.
      cert: a file of certificates to trust instead of the system's.
      trusted: hosts that are trusted without a certificate.
      proxy: URL of a proxy, if not the system's.
    """

    indexes: list[str]
    links: list[str]
    cert: str | None
    trusted: set[str]
    proxy: str | None


def fetch(
    project: str, filename: str, sha256: str, size: int, folder: pathlib.Path
) -> pathlib.Path:
    """Downloads a file of a project, verifies its SHA-256, and returns its path.

    Args:
      project: the project's normalised name.
      filename: the file's name.
      sha256: its hash.
      size: its size in bytes.
      folder: where to write it.

    Raises:
      DownloadError: no index has it; the message says why for each.
      OSError: `folder` cannot be written.
    """
    settings, problems, path = read_settings(), [], folder / filename
    pages = [f"{index.rstrip('/')}/{project}/" for index in settings.indexes]
    for page in [*settings.links, *pages]:
        try:
            for address, listed_sha256 in _find_files(page, filename, settings, folder):
                if listed_sha256 not in (None, sha256):
                    raise DownloadError(
                        f"{_without_password(address)} has another SHA-256, {listed_sha256}"
                    )
                download(
                    _without_password(address),
                    path,
                    size,
                    headers=_auth_header(address, page),
                    opener=_opener(address, settings),
                )
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    raise DownloadError(
                        f"{_without_password(address)} is another file (its SHA-256 is {found})"
                    )
                return path
            problems.append(f"{_without_password(page)} has no {filename}")
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError(
        "; ".join(problems) or f"pip's configuration has no index, and no links to {filename}"
    )


def read_settings() -> Settings:
    """Reads pip's configuration files, then pip's and uv's environment variables.

    As in pip, later files override earlier ones, a command's section overrides [global], and
    variables override both.
    """
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
    indexes = [*filter(None, indexes)] or [DEFAULT_INDEX]
    indexes += (
        given.get("extra-index-url", "").split()
        + uv["UV_INDEX"].split()
        + uv["UV_EXTRA_INDEX_URL"].split()
    )
    if given.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        indexes = []
    return Settings(
        # uv's indexes may have names: NAME=URL.
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
    """The places of pip's configuration files, in increasing precedence."""
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
        system = [
            *(os.path.join(folder, "pip") for folder in folders.split(os.pathsep)),
            SYSTEM_FOLDER,
        ]
        user = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"
    yield from (pathlib.Path(folder) / "pip.conf" for folder in system)
    if not (own and os.path.exists(own)):
        yield from (home / ".pip" / "pip.conf", user / "pip.conf")
    yield pathlib.Path(sys.prefix) / "pip.conf"
    if own:
        yield pathlib.Path(own)


def _find_files(
    page: str, filename: str, settings: Settings, folder: pathlib.Path
) -> Iterator[tuple[str, str | None]]:
    """Finds the files of this name on a page or in a folder.

    Yields:
      the URL of a file, and the SHA-256 that the page gives for it, if any.
    """
    local = _local_path(page)
    if local is not None and (local / filename).exists():
        yield (local / filename).absolute().as_uri(), None
        return
    if local is not None and local.is_dir():
        local /= "index.html"
    if local is not None and not local.exists():
        return
    address = page if local is None else local.absolute().as_uri()
    headers, saved = {"Accept": ACCEPTED_TYPES} | _auth_header(page, page), folder / "page"
    answer = download(
        _without_password(address),
        saved,
        LARGEST_PAGE,
        exact=False,
        headers=headers,
        opener=_opener(address, settings),
    )
    text = saved.read_text(errors="replace")
    try:
        links = (
            _parse_json_page(text)
            if answer.content_type.endswith("json")
            else _parse_html_page(text)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, AssertionError):
        raise DownloadError(f"{_without_password(page)} is not a page of an index") from None
    for link, sha256 in links:
        whole = urllib.parse.urljoin(answer.address, link)
        # A page from the network must not name files of this machine.
        if urllib.parse.unquote(
            urllib.parse.urlsplit(whole).path.rpartition("/")[2]
        ) == filename and (local is not None or whole.startswith(("http:", "https:"))):
            yield urllib.parse.urldefrag(whole).url, sha256


def _parse_json_page(text: str) -> list[tuple[str, str | None]]:
    """The links and SHA-256s of an index page in JSON (PEP 691)."""
    return [
        (str(file["url"]), file.get("hashes", {}).get("sha256"))
        for file in json.loads(text)["files"]
    ]


def _parse_html_page(text: str) -> list[tuple[str, str | None]]:
    """The links and SHA-256s of an index page in HTML (PEP 503)."""
    parser = _LinkParser()
    parser.feed(text)
    pairs = [(link, urllib.parse.urldefrag(link).fragment) for link in parser.links]
    return [(link, note[7:] if note.startswith("sha256=") else None) for link, note in pairs]


class _LinkParser(html.parser.HTMLParser):
    """Collects the links of a page; relative ones are resolved with the page's base, if any."""

    def __init__(self):
        super().__init__()
        self.base, self.links = "", []

    def handle_starttag(self, tag, attrs):
        link = dict(attrs).get("href")
        if tag == "base" and link:
            self.base = link
        elif tag == "a" and link:
            self.links.append(urllib.parse.urljoin(self.base, link))


def _local_path(page: str) -> pathlib.Path | None:
    """The path of a page that is a file or folder of this machine, else None."""
    if page.startswith("file:"):
        return pathlib.Path(urllib.request.url2pathname(urllib.parse.urlsplit(page).path))
    return None if "://" in page else pathlib.Path(os.path.expanduser(page))


def _without_password(address: str) -> str:
    """A URL without its user name and password."""
    parts = urllib.parse.urlsplit(address)
    return (
        parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        if "@" in parts.netloc
        else address
    )


def _auth_header(address: str, page: str) -> dict[str, str]:
    """The header with the credentials of a URL, or of its page if it is on the same server."""
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
    """An opener with pip's certificates, trusted hosts and proxy."""
    parts = urllib.parse.urlsplit(_without_password(address))
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
