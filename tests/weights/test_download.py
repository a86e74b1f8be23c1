import contextlib
import resource
import time
import tracemalloc
import types

import numpy as np
import pytest
from support.servers import answering, head

from i3d_jax.weights import download
from i3d_jax.weights.download import DownloadError

DATA = np.random.default_rng(0).bytes(100_000)


def whole(handler, data=DATA):
    head(handler, Content_Length=len(data))
    handler.wfile.write(data)


def cut_off_after(most, **headers):
    """Breaks off after this many bytes; sends the rest when asked for it."""

    def answer(handler):
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        part = {"Content_Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        head(handler, 206 if start else 200, Content_Length=len(DATA) - start, **part, **headers)
        handler.wfile.write(DATA[start : start + most])

    return answer


def busy(handler):
    head(handler, 503, Content_Length=0)


def reset(handler):
    """Closes the connection without an answer."""


def drip(handler):
    head(handler, Content_Length=len(DATA))
    with contextlib.suppress(OSError):
        for byte in DATA:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)


def drip_headers(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)


def endless(handler):
    head(handler)
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(bytes(1 << 20))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)


@pytest.mark.parametrize(
    "answers",
    [
        [whole],
        [busy, reset, whole],
        [cut_off_after(40_000)],
        [cut_off_after(40_000, ETag='"1"')],
        [cut_off_after(40_000, ETag='W/"1"'), busy, cut_off_after(60_000)],
        [cut_off_after(40_000), whole],  # A server without range requests.
        [cut_off_after(40_000, ETag='"1"'), drip, cut_off_after(40_000)],
        [
            lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + DATA[:50_000]),
            cut_off_after(50_000),
        ],
    ],
)
def test_a_file_is_whole_however_often_it_breaks_off(answers, tmp_path):
    with answering(*answers) as (address, _):
        download.download(address, tmp_path / "file", len(DATA))
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_file_goes_on_where_it_broke_off_if_it_is_the_same_still(tmp_path):
    with answering(cut_off_after(40_000, ETag='"1"')) as (address, requests):
        download.download(address, tmp_path / "file", len(DATA))
    assert [(each.get("Range"), each.get("If-Range")) for each in requests] == [
        (None, None),
        ("bytes=40000-", '"1"'),
        ("bytes=80000-", '"1"'),
    ]


@pytest.mark.parametrize(
    "answer,message,requests",
    [
        (cut_off_after(0), "cut off after 0 of 100,000 bytes, 5 times in a row", 5),
        (busy, "HTTP Error 503: Service Unavailable, 5 times in a row", 5),
        (reset, "closed connection without response, 5 times in a row", 5),
        (drip, "less than 1,000 bytes a second, 5 times in a row", 5),
        (drip_headers, "no answer for 0.5 s", 1),
        (lambda handler: head(handler, 404), "HTTP Error 404: Not Found", 1),
        (lambda handler: whole(handler, DATA[:-1]), "has 99,999 bytes, wanted 100,000", 1),
        (
            lambda handler: head(handler, Content_Length=600_000_000),
            "has 600,000,000 bytes, wanted 100,000",
            1,
        ),
        (endless, "has more than 100,000 bytes", 1),
    ],
)
def test_what_cannot_be_had_is_given_up_and_says_why(answer, message, requests, tmp_path):
    tracemalloc.start()
    with answering(answer) as (address, found), pytest.raises(DownloadError) as error:
        download.download(address, tmp_path / "file", len(DATA))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(error.value).startswith(f"{address}: ") and message in str(error.value)
    assert len(found) == requests and peak < 10 << 20


def test_tries_are_counted_anew_only_where_more_of_the_file_has_come(tmp_path, monkeypatch):
    def from_its_start(most):
        def answer(handler):
            head(handler, Content_Length=len(DATA))
            handler.wfile.write(DATA[:most])

        return answer

    monkeypatch.setattr(download, "MIN_PROGRESS", 10_000)
    again = "cut off after 40,000 of 100,000 bytes, 5 times in a row"
    answers = [from_its_start(40_000), from_its_start(20_000)] * 10
    with answering(*answers) as (address, requests), pytest.raises(DownloadError, match=again):
        download.download(address, tmp_path / "file", len(DATA))
    assert len(requests) == 5
    with answering(cut_off_after(10_000)) as (address, requests):
        download.download(address, tmp_path / "file", len(DATA))
    assert len(requests) == 10


def test_a_server_says_when_to_come_again(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(
        download, "time", types.SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    )
    with answering(lambda handler: head(handler, 429, Retry_After="7"), busy, whole) as (
        address,
        _,
    ):
        download.download(address, tmp_path / "file", len(DATA))
    assert slept == [7, 0.02]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x", "nonsense", "http://[", "file:///no/such", "http://a b/"]
)
def test_an_address_that_is_none_is_not_asked_twice(address, tmp_path):
    with pytest.raises(DownloadError) as error:
        download.download(address, tmp_path / "file", 10)
    assert str(error.value).startswith(f"{address}: ") and "times" not in str(error.value)


def test_a_disk_that_is_full_is_not_taken_for_the_network(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with (
            answering(whole) as (address, requests),
            pytest.raises(OSError, match="File too large"),
        ):
            download.download(address, tmp_path / "file", len(DATA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(requests) == 1
