"""Downloads with an end: of a known size, given up when they drip, and taken up again where they broke off."""

import contextlib
import http.client
import pathlib
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import tqdm

PATIENCE = (
    30.0  # Seconds without an answer, and those in which as many bytes must come as SPEED says.
)
SPEED = 1000  # Bytes per second.
TRIES = 5  # In a row that come less than PROGRESS bytes further.
PROGRESS = 1 << 20
PAUSE = 1.0  # Seconds before the second try; twice as long before each further one.
LONGEST_PAUSE = 30.0
BUSY = 408, 425, 429, 500, 502, 503, 504  # Statuses of servers that may answer later.


class DownloadError(ValueError):
    """A file that cannot be had; the message names its address."""


class Answer(NamedTuple):
    """Where a file came from in the end, after redirections, and what it is said to be."""

    address: str
    content_type: str


class _BrokenOffError(Exception):
    """A try that failed, and after which, `pause` seconds later, another may succeed."""

    def __init__(self, reason: object, pause: float = 0):
        super().__init__(str(reason) or type(reason).__name__)
        self.pause = pause


def download(
    address: str,
    path: pathlib.Path,
    size: int,
    *,
    exact: bool = True,
    headers: Mapping[str, str] | None = None,
    opener: urllib.request.OpenerDirector | None = None,
) -> Answer:
    """Downloads a file; a server that is busy or breaks off is asked again, for the rest.

    Args:
      size: bytes that it has, beyond which nothing is read.
      exact: whether it may have no fewer. The caller then knows the file by its hash, so that a broken one can be put together.
      headers: of the request; they do not follow redirections.
      opener: urllib's, for other settings than the system's.

    Raises:
      DownloadError: it cannot be had, is cut off, or has another size.
      OSError: `path` cannot be written.
    """
    opener = opener or urllib.request.build_opener()
    tries, version, furthest = 0, "", 0
    bar = tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=not exact)
    with path.open("wb") as file, bar:
        while True:
            start = file.tell()
            try:
                request = _request(address, headers, start if exact else 0, version)
                with contextlib.closing(_read(request, opener, answered=start > 0)) as blocks:
                    response = next(blocks)
                    version = (
                        response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                    )
                    _save(blocks, response, file, size, exact, bar)
                return Answer(response.geturl(), response.headers.get_content_type())
            except DownloadError as error:
                raise DownloadError(f"{address}: {error}") from None
            except _BrokenOffError as error:
                tries = 1 if file.tell() >= furthest + PROGRESS else tries + 1
                furthest = max(furthest, file.tell())
                if tries >= TRIES:
                    raise DownloadError(f"{address}: {error}, {tries} times in a row") from None
                pause = min(max(PAUSE * 2 ** (tries - 1), error.pause), LONGEST_PAUSE)
                tqdm.tqdm.write(f"{address}: {error}; trying again in {pause:g} s", file=sys.stderr)
                time.sleep(pause)


def _request(
    address: str, headers: Mapping[str, str] | None, start: int, version: str
) -> urllib.request.Request:
    """A request for a file from byte `start` on or, if it is not the version any more that was begun with, for all of it."""
    try:
        request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"})
    except ValueError as error:
        raise DownloadError(str(error)) from None
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version and not version.startswith(
            "W/"
        ):  # Weak entity tags are not for parts (RFC 9110, 13.1.5).
            request.add_header("If-Range", version)
    return request


def _save(
    blocks: Iterator[Any], response: Any, file: BinaryIO, size: int, exact: bool, bar: tqdm.tqdm
) -> None:
    """Writes the blocks of an answer, after what is there if it is the rest of that."""
    if not (getattr(response, "status", None) == 206 and _start(response) == file.tell()):
        file.seek(0)
        file.truncate()
    bar.update(file.tell() - bar.n)
    length = response.headers.get("Content-Length", "")
    whole = file.tell() + int(length) if length.isdecimal() and len(length) < 20 else None
    if whole is not None and whole > size:
        raise DownloadError(f"has {whole:,} bytes, wanted {'' if exact else 'at most '}{size:,}")
    for block in blocks:
        if file.tell() + len(block) > size:
            raise DownloadError(f"has more than {size:,} bytes")
        file.write(block)
        bar.update(len(block))
    found, wanted = file.tell(), size if whole is None and exact else whole
    if wanted is not None and found < wanted:
        raise _BrokenOffError(f"cut off after {found:,} of {wanted:,} bytes")
    if exact and found != size:
        raise DownloadError(f"has {found:,} bytes, wanted {size:,}")


def _start(response: Any) -> int | None:
    """Where a part of a file starts in it."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _read(
    request: urllib.request.Request, opener: urllib.request.OpenerDirector, answered: bool
) -> Generator[Any, None, None]:
    """Yields the answer to a request, then its blocks of bytes.

    A thread reads them, so that a server is given up that drips, be it in its headers: every byte starts a socket's time-out anew.

    Args:
      answered: whether the server has answered before; one that has not is not there, and asked no more.

    Raises:
      _BrokenOffError, DownloadError: with and without the prospect of another try.
    """
    blocks: queue.Queue[Any] = queue.Queue(4)
    given_up = threading.Event()

    def put(item: Any) -> bool:
        while not given_up.is_set():
            with contextlib.suppress(queue.Full):
                blocks.put(item, timeout=1)
                return True
        return False

    def read() -> None:
        try:
            with opener.open(request, timeout=PATIENCE) as response:
                going = put(response)
                while going and (block := response.read1(1 << 16)):
                    going = put(block)
            put(None)
        except Exception as error:  # noqa: BLE001
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        since, received = time.monotonic(), 0
        while True:
            try:
                item = blocks.get(timeout=max(0.0, since + PATIENCE - time.monotonic()))
            except queue.Empty:
                if not answered:
                    raise DownloadError(f"no answer for {PATIENCE:g} s") from None
                raise _BrokenOffError(f"less than {SPEED:,} bytes a second") from None
            if isinstance(item, Exception):
                raise _judged(item, answered) from None
            if item is None:
                return
            answered = True
            received += len(item) if isinstance(item, bytes) else 0
            yield item
            if time.monotonic() - since >= PATIENCE:
                if received < SPEED * PATIENCE:
                    raise _BrokenOffError(f"less than {SPEED:,} bytes a second")
                since, received = time.monotonic(), 0
    finally:
        given_up.set()


def _judged(error: Exception, answered: bool) -> Exception:
    """The error of a request as one of those that `_read` raises, or as it is if it is a mistake of ours."""
    if isinstance(error, urllib.error.HTTPError):
        after = error.headers.get("Retry-After", "")
        pause = float(after) if after.isdecimal() else 0
        return _BrokenOffError(error, pause) if error.code in BUSY else DownloadError(str(error))
    if not isinstance(error, OSError | http.client.HTTPException | ValueError):
        return error
    reason = getattr(error, "reason", None) or error
    reset = isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.BadStatusLine)
    return (
        _BrokenOffError(reason)
        if answered or reset
        else DownloadError(str(reason) or type(reason).__name__)
    )
