"""A web server on loopback that does what tests need of origins: redirect, break off, stall."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Request(BaseHTTPRequestHandler):
    """One request, with answers in a word each."""

    protocol_version = "HTTP/1.1"
    origin: "Origin"

    def do_GET(self) -> None:
        self.origin.seen.append((self.path, dict(self.headers.items())))
        answer = self.origin.answers.get(self.path.split("?")[0])
        if answer is None:
            self.say(404)
        else:
            answer(self)

    def say(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name != "length":
                self.send_header(name.replace("_", "-"), value)
        if "Transfer_Encoding" not in headers:
            self.send_header("Content-Length", headers.get("length", str(len(content))))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


Answer = Callable[[Request], None]


@dataclass
class Origin:
    """A running server, what it answers by path, and what it was asked."""

    host: str
    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def serve(self, path: str, content: bytes) -> str:
        self.answers[path] = lambda request: request.say(200, content)
        return self.url + path

    def redirect(self, path: str, location: str) -> str:
        self.answers[path] = lambda request: request.say(302, Location=location)
        return self.url + path

    def stall(self, path: str) -> str:
        """Says that much will come, sends a little, and nothing more."""

        def answer(request: Request) -> None:
            request.send_response(200)
            request.send_header("Content-Length", "1000000")
            request.end_headers()
            request.wfile.write(b"PK\x03\x04")
            self.closing.wait(60)

        self.answers[path] = answer
        return self.url + path


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Origin]:
    class Handler(Request):
        pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    origin = Origin(host, server.server_address[1])
    Handler.origin = origin
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield origin
    finally:
        origin.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
