"""A study's pages behind a real server, in a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from studies import Site


@contextlib.contextmanager
def served(folder: Path, **site) -> Iterator[tuple[Site, str]]:
    """A site (its arguments as of `Site`) and its address.

    The store is opened in the server's thread: SQLite's connections belong to the one that made
    them.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    found: list[Site] = []
    servers: list[uvicorn.Server] = []

    def serve() -> None:
        found.append(Site(folder, **site))
        config = uvicorn.Config(
            found[0].app, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        servers.append(uvicorn.Server(config))
        servers[0].run(sockets=[listening])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for _ in range(1000):
        if servers and servers[0].started:
            break
        assert thread.is_alive(), "the server has not begun"
        time.sleep(0.01)
    try:
        yield found[0], f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(10)
        listening.close()
