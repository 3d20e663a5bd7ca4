"""A real HTTP server on the loopback interface, with the faults that servers show."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass
class Web:
    """What a server has and how it fails; `asked` counts the requests for each path.

    cut: paths whose connection is closed in the middle; dropped: closed at once; busy: how many times a path answers
    with which status before it is served; moved: where else a path is; endless: what every other path has; slow_s: how
    long each file takes.
    """

    files: Mapping[str, bytes]
    cut: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    busy: dict[str, tuple[int, int]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    endless: bytes | None = None
    asked: Counter[str] = field(default_factory=Counter)
    slow_s: float = 0.0
    url: str = ""


def _handler(web: Web) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            web.asked[path] += 1
            times, status = web.busy.get(path, (0, 0))
            moved = path.removeprefix("/moved") if path.startswith("/moved/") else web.moved.get(path)
            content = web.files.get(path, web.endless)
            if path in web.dropped:
                self.connection.close()
            elif web.asked[path] <= times:
                self._reply(status, b"")
            elif moved is not None:
                self._reply(302, b"", location=moved)
            elif content is not None:
                time.sleep(web.slow_s)
                self._reply(200, content, cut=path in web.cut)
            else:
                self._reply(404, b"")

        def _reply(self, status: int, data: bytes, *, cut: bool = False, location: str = "") -> None:
            self.send_response(status)
            self.send_header("Location", location)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

    return Handler


@contextlib.contextmanager
def serving(web: Web) -> Iterator[Web]:
    """Serve on a free port while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
