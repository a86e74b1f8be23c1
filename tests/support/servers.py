"""HTTP servers with the answers that a test gives them."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def answering(*answers):
    """A server that gives each request the next of some answers, and then always the last one.

    Yields its address and the requests.
    """
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(dict(self.headers))
            self.close_connection = True
            answers[min(len(requests), len(answers)) - 1](self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file", requests
        server.shutdown()


def head(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
