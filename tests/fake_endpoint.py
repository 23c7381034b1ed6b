"""A real HTTP server on this machine that plays an OpenAI-compatible endpoint, as told by a script."""

from __future__ import annotations

import functools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stepwell.endpoint import Endpoint

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# Each client reads all certificates of the machine, which takes longer than the test; and none is asked for here.
one_context = functools.lru_cache(ssl.create_default_context)

Reply = Callable[[dict[str, Any]], str]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between test and server, no key of the developer's. A test file has it by importing it."""
    for name in (*PROXIES, *(name.upper() for name in PROXIES), "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ssl, "create_default_context", one_context)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One response, byte for byte."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    type: str = "application/json"
    after_seconds: float = 0.0


def completion(text: str | None, *, finish: str | None = "stop", tokens: int | None = 7) -> Raw:
    """A chat completion with this text."""
    body: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens - 1, "completion_tokens": 1, "total_tokens": tokens}
    return Raw(body=json.dumps(body))


def error(status: int, message: str = "no", **more: Any) -> Raw:
    """An error as OpenAI words it; `code` and headers may be given."""
    headers = more.pop("headers", {})
    return Raw(status=status, body=json.dumps({"error": {"message": message, **more}}), headers=headers)


@dataclass
class Server:
    """What was asked of the server, and what it answers: the script's responses in order, the last one for ever."""

    script: list[Raw | Reply]
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0

    def endpoint(self, **options: Any) -> Endpoint:
        """It, impatient."""
        base = {"base_url": f"http://127.0.0.1:{self.port}/v1", "model": "m", "retries": 2, "backoff_seconds": 0.001}
        return Endpoint(**{**base, "timeout_seconds": 5, **options})

    def response(self, request: dict[str, Any]) -> Raw:
        """The next of the script."""
        step = self.script[min(len(self.asked), len(self.script)) - 1]
        return step if isinstance(step, Raw) else completion(step(request))


@contextmanager
def serving(*script: Raw | Reply) -> Iterator[Server]:
    """A server that follows the script, in a thread."""
    server = Server(list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(request)
            server.keys.append(self.headers.get("Authorization"))
            server.paths.append(self.path)
            raw = server.response(request)
            time.sleep(raw.after_seconds)
            body = raw.body.encode()
            try:
                self.send_response(raw.status)
                self.send_header("Content-Type", raw.type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in raw.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client did not wait
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
