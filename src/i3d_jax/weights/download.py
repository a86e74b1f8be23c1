"""Downloads files of known size; resumes broken transfers and gives up on stalled servers."""

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

TIMEOUT = 30.0  # Seconds without an answer; also the period over which MIN_SPEED is measured.
MIN_SPEED = 1000  # Bytes per second.
MAX_TRIES = 5  # Consecutive tries that each add less than MIN_PROGRESS bytes.
MIN_PROGRESS = 1 << 20
FIRST_PAUSE = 1.0  # Seconds before the second try; it doubles before each further one.
MAX_PAUSE = 30.0
RETRY_STATUSES = 408, 425, 429, 500, 502, 503, 504  # HTTP statuses that may be temporary.


class DownloadError(ValueError):
    """A file that cannot be downloaded; the message names its address."""


class Answer(NamedTuple):
    """What the server said about a file.

    Attributes:
      address: where it came from, after redirections.
      content_type: its media type.
    """

    address: str
    content_type: str


class _RetryableError(Exception):
    """A try that failed, but may succeed again after `pause` seconds."""

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
    """Downloads a file; resumes if the server is busy or the connection breaks.

    Args:
      address: the file's URL.
      path: where to write it.
      size: its size in bytes; no more than that is read.
      exact: whether the file must have exactly this size. The caller must then verify the
        file's hash, since it may have been put together from several tries.
      headers: of the request; they are not sent to the targets of redirections.
      opener: urllib's opener, for settings other than the system's.

    Raises:
      DownloadError: the file cannot be downloaded, is cut off or has another size.
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
                with contextlib.closing(
                    _read_blocks(request, opener, answered=start > 0)
                ) as blocks:
                    response = next(blocks)
                    version = (
                        response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                    )
                    _write_blocks(blocks, response, file, size, exact, bar)
                return Answer(response.geturl(), response.headers.get_content_type())
            except DownloadError as error:
                raise DownloadError(f"{address}: {error}") from None
            except _RetryableError as error:
                tries = 1 if file.tell() >= furthest + MIN_PROGRESS else tries + 1
                furthest = max(furthest, file.tell())
                if tries >= MAX_TRIES:
                    raise DownloadError(f"{address}: {error}, {tries} times in a row") from None
                pause = min(max(FIRST_PAUSE * 2 ** (tries - 1), error.pause), MAX_PAUSE)
                tqdm.tqdm.write(f"{address}: {error}; trying again in {pause:g} s", file=sys.stderr)
                time.sleep(pause)


def _request(
    address: str, headers: Mapping[str, str] | None, start: int, version: str
) -> urllib.request.Request:
    """Makes a request for a file.

    Args:
      address: the file's URL.
      headers: of the request.
      start: the first byte that is wanted.
      version: the version that was begun with; the server sends the whole file if it changed.
    """
    try:
        request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"})
    except ValueError as error:
        raise DownloadError(str(error)) from None
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        # Weak entity tags must not be used for ranges (RFC 9110, 13.1.5).
        if version and not version.startswith("W/"):
            request.add_header("If-Range", version)
    return request


def _write_blocks(
    blocks: Iterator[Any], response: Any, file: BinaryIO, size: int, exact: bool, bar: tqdm.tqdm
) -> None:
    """Writes the blocks of a response: after what the file has, if they continue it."""
    if not (getattr(response, "status", None) == 206 and _range_start(response) == file.tell()):
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
        raise _RetryableError(f"cut off after {found:,} of {wanted:,} bytes")
    if exact and found != size:
        raise DownloadError(f"has {found:,} bytes, wanted {size:,}")


def _range_start(response: Any) -> int | None:
    """The first byte of the range that a response contains."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _read_blocks(
    request: urllib.request.Request, opener: urllib.request.OpenerDirector, answered: bool
) -> Generator[Any, None, None]:
    """Yields the response to a request, then its blocks of bytes.

    A thread reads them. Each byte restarts a socket's timeout, so a server that sends very slowly,
    even its headers, would otherwise never be given up.

    Args:
      request: the request.
      opener: urllib's opener.
      answered: whether the server has answered before. One that has not is not tried again.

    Raises:
      _RetryableError: it may work later.
      DownloadError: it will not.
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
            with opener.open(request, timeout=TIMEOUT) as response:
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
                item = blocks.get(timeout=max(0.0, since + TIMEOUT - time.monotonic()))
            except queue.Empty:
                if not answered:
                    raise DownloadError(f"no answer for {TIMEOUT:g} s") from None
                raise _RetryableError(f"less than {MIN_SPEED:,} bytes a second") from None
            if isinstance(item, Exception):
                raise _classify_error(item, answered) from None
            if item is None:
                return
            answered = True
            received += len(item) if isinstance(item, bytes) else 0
            yield item
            if time.monotonic() - since >= TIMEOUT:
                if received < MIN_SPEED * TIMEOUT:
                    raise _RetryableError(f"less than {MIN_SPEED:,} bytes a second")
                since, received = time.monotonic(), 0
    finally:
        given_up.set()


def _classify_error(error: Exception, answered: bool) -> Exception:
    """Turns the error of a request into one that `_read_blocks` raises; bugs stay as they are."""
    if isinstance(error, urllib.error.HTTPError):
        after = error.headers.get("Retry-After", "")
        pause = float(after) if after.isdecimal() else 0
        return (
            _RetryableError(error, pause)
            if error.code in RETRY_STATUSES
            else DownloadError(str(error))
        )
    if not isinstance(error, OSError | http.client.HTTPException | ValueError):
        return error
    reason = getattr(error, "reason", None) or error
    reset = isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.BadStatusLine)
    return (
        _RetryableError(reason)
        if answered or reset
        else DownloadError(str(reason) or type(reason).__name__)
    )
