"""A real HTTP server on loopback that misbehaves on demand: for a folder, or in front of another server (moto's S3)."""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Request(NamedTuple):
    path: str
    query: str
    range: str
    time: float


class LoopbackServer:
    """Serves a folder, or passes requests on to `upstream` ("host:port").

    `faults`: by the end of a path, an iterator of faults, one taken for each request; when it is exhausted all is well.
    A fault is a status ("503", "404" ...) or one of: "reset" (connection reset midway), "cut" (the body ends early),
    "flip" (one byte differs), "slow" (half a second for the body), "stall" (silence after half of it, `stall` s).
    `requests`: what was asked for. `ranges=False` ignores Range headers, as some servers do.
    """

    def __init__(
        self, folder: Path | None = None, upstream: str = "", ranges: bool = True, stall: float = 30.0
    ) -> None:
        self.faults: dict[str, Iterator[str]] = {}
        self.requests: list[Request] = []
        self.folder, self.upstream, self.ranges, self.stall = folder, upstream, ranges, stall
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"loopback": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def paths(self, suffix: str = "") -> list[str]:
        """The paths that were asked for and end so, in order."""
        return [r.path for r in list(self.requests) if r.path.endswith(suffix)]

    def fault(self, path: str) -> str:
        return next((next(faults, "") for end, faults in self.faults.items() if path.endswith(end)), "")


class _Handler(BaseHTTPRequestHandler):
    loopback: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets: the second would wait 40 ms

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = self.headers.get("Range", "")
        self.loopback.requests.append(Request(unquote(url.path), url.query, asked, time.monotonic()))
        fault = self.loopback.fault(unquote(url.path))
        if fault.isdigit():
            self._answer(int(fault), {}, b"")
        else:
            status, headers, body = self._forward() if self.loopback.upstream else self._file(unquote(url.path), asked)
            self._answer(status, headers, body, fault)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _file(self, path: str, asked: str) -> tuple[int, dict[str, str], bytes]:
        place = self.loopback.folder / path.lstrip("/")
        if not place.is_file():
            return 404, {}, b""
        body = place.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked) if self.loopback.ranges else None
        if not match:
            return 200, {}, body
        first, last = int(match[1]), min(int(match[2]), len(body) - 1)
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(body)}"}, body[first : last + 1]

    def _forward(self) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.loopback.upstream)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        dropped = ("content-length", "connection", "transfer-encoding", "date", "server")
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
        connection.close()
        return answer.status, headers, body

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str = "") -> None:
        middle = len(body) // 2
        if fault == "flip" and body:
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "slow":
            for i in range(10):
                self.wfile.write(body[i * len(body) // 10 : (i + 1) * len(body) // 10])
                time.sleep(0.05)
        elif fault in ("reset", "cut", "stall"):
            self.wfile.write(body[:middle])
            self.close_connection = True
            if fault == "stall":
                self.loopback.stopped.wait(self.loopback.stall)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)
                self.connection.close()
        else:
            self.wfile.write(body)
