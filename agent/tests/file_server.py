"""A small web server with contents, which breaks off, redirects and refuses as a test wants."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`breaks` are how many bytes each of the first answers gives before it breaks off."""

    contents: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    hold: threading.Event | None = None
    url: str = ""


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    made = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            if self.path in made.redirects:
                self.send_response(302)
                self.send_header("Location", made.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = made.contents.get(self.path)
            status = made.statuses.get(self.path, 404 if content is None else 200)
            if status != 200 or content is None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._send(content)

        def _send(self, content: bytes) -> None:
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            most = made.breaks.pop(0) if made.breaks else len(content)
            self.wfile.write(content[first : first + most])
            self.wfile.flush()
            if made.hold is not None:
                made.hold.wait(20)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
