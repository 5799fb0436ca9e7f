"""What the kernel knows of a socket, asked without reading from it."""

from __future__ import annotations

import os
import select
import socket

# The peer has closed its half: poll(2), of Linux alone. Elsewhere a socket that no event loop reads cannot tell.
_CLOSED = getattr(select, "POLLRDHUP", 0)
TELLS = bool(_CLOSED)
# Windows has no poll(2).
_READABLE, _FAILED, _NO_SOCKET = (getattr(select, name, 0) for name in ("POLLIN", "POLLERR", "POLLNVAL"))


def has_ended(fileno: int) -> bool | None:
    """Tell whether the peer has closed or reset the connection; ``None`` where the kernel does not tell.

    A negative *fileno*: it was closed, in another thread perhaps.
    """
    if not _CLOSED:
        return None
    return bool(_poll(fileno, _CLOSED))


def was_reset(fileno: int) -> bool | None:
    """Tell whether a connection that has ended was reset (true) or closed in order; ``None`` if that does not show."""
    happened = _poll(fileno, _CLOSED)
    return True if happened & _FAILED else False if happened == _CLOSED and _CLOSED else None


def peek(fileno: int) -> bytes | None:
    """Return the first bytes of what lies unread; ``None`` if nothing does, or the connection was reset."""
    # Looking would take the error of a reset away.
    if not _READABLE or _poll(fileno, _READABLE) != _READABLE:
        return None
    # Another thread may take the connection, and what lies there, or close it at this moment.
    try:
        with socket.socket(fileno=os.dup(fileno)) as look:
            return look.recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return None


def _poll(fileno: int, events: int) -> int:
    """Return which of *events*, or of the errors that are always reported, have happened on a socket; 0 for none."""
    if fileno < 0:
        return _NO_SOCKET
    if not hasattr(select, "poll"):
        return 0
    poll = select.poll()
    poll.register(fileno, events)
    happened = poll.poll(0)
    return happened[0][1] if happened else 0
