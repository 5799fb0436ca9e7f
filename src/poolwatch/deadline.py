"""A bound on how long a driver may wait for an answer."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import asyncio

# Seconds that an event loop gets to read what has come.
_GRACE = 0.1


class Deadline:
    """Ends a query that takes too long by shutting down the socket, which every driver takes for a lost connection.

    It runs from its making to the end of its ``with`` block.

    Args:
        fileno: The socket.
        seconds: How long.
        loop: The event loop that the driver waits in; ``None`` for one that blocks its thread.

    Attributes:
        passed: It came to that.
    """

    def __init__(self, fileno: int, seconds: float, loop: asyncio.AbstractEventLoop | None) -> None:
        # A descriptor of its own: the driver may close its one meanwhile, and somebody else get the number.
        self._socket = socket.socket(fileno=os.dup(fileno))
        self._lock = threading.Lock()
        self._loop = loop
        self._over = self._late = self.passed = False
        if loop is None:
            self._timer: threading.Timer | asyncio.TimerHandle = threading.Timer(seconds, self._end)
            self._timer.daemon = True
            self._timer.start()
        else:
            self._timer = loop.call_later(seconds, self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
        self._socket.close()

    def _end(self) -> None:
        if self._loop is not None and not self._late:
            # The loop may have been blocked, and an answer that came in time not been read yet.
            self._late = True
            self._timer = self._loop.call_later(_GRACE, self._end)
            return
        with self._lock:
            if not self._over:
                self.passed = True
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
