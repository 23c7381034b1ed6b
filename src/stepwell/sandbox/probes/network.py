"""Reaches a server on this machine, by TCP, UDP and an abstract Unix socket."""

from __future__ import annotations

import socket
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """What it reached."""
    reached: list[str] = []
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        for host in ("127.0.0.1", arena["address"]):
            try:
                with socket.socket(socket.AF_INET, kind) as one:
                    one.settimeout(2)
                    one.connect((host, arena["port"]))
                    one.send(b"out")
                    reached.append(f"{name} to {host}")
            except OSError:
                continue
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(2)
            one.connect("\0" + arena["abstract"])
            reached.append("an abstract socket")
    except OSError:
        pass
    try:
        if interfaces := [name for _, name in socket.if_nameindex() if name != "lo"]:
            reached.append(f"sees {interfaces}")
    except OSError:
        pass
    return ", ".join(reached)
