"""A connection that is cut: it passes bytes between a client and a server on this machine until it is told not to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

Cut = Callable[[int], int | None]


@dataclass
class Line:
    """Where clients connect, and what becomes of their connections.

    Args:
        port: of this end.
        to: port of the server; it may change.
        cut: number of a connection, from 0 -> bytes of its answer after which it is cut; None = it is whole.
        taken: connections so far.
    """

    port: int = 0
    to: int = 0
    cut: Cut = lambda number: None
    taken: int = 0

    def serve(self, client: socket.socket, allowed: int | None) -> None:
        """Pass one connection on, both ways."""
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.to)) as server:
            threading.Thread(target=partial(copy, client, server, None), daemon=True).start()
            copy(server, client, allowed)


def copy(source: socket.socket, target: socket.socket, allowed: int | None) -> None:
    """Until the source ends, or so many bytes have passed."""
    with contextlib.suppress(OSError):
        while (allowed is None or allowed > 0) and (block := source.recv(4096)):
            target.sendall(block[:allowed])
            allowed = None if allowed is None else allowed - len(block)
        for end in (source, target):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def line() -> Iterator[Line]:
    """A line to whatever server it is led to."""
    made = Line()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made.port = listening.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed: over
                while True:
                    client, _ = listening.accept()
                    allowed = made.cut(made.taken)
                    made.taken += 1
                    threading.Thread(target=made.serve, args=(client, allowed), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield made
