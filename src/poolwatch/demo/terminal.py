"""What passes between the demonstration and who started it: lines, signals, and other libraries' log records."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
from collections import deque


class Stop:
    """The wish to end, which a signal sets and nothing takes back.

    A signal never raises here: whatever is being started or ended is not torn apart, however often Ctrl-C is pressed.
    """

    def __init__(self) -> None:
        self._asked = False
        # Of all that a signal handler could wake a waiting thread with, only this is documented to be reentrant.
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ask(self, *_: object) -> None:
        """Ask for the end; a second call does nothing more."""
        self._asked = True
        self._wakeups.put(None)

    def asked(self) -> bool:
        """Tell whether somebody asked."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks, *seconds* at the most; return what :meth:`asked` does."""
        if not self._asked:
            with contextlib.suppress(queue.Empty):
                self._wakeups.get(timeout=max(seconds, 0.0))
        return self._asked

    def listen(self) -> None:
        """Let Ctrl-C, SIGTERM and the closing of the terminal ask, from now to the end of the process."""
        signal.signal(signal.SIGINT, self.ask)
        signal.signal(signal.SIGTERM, self.ask)
        # Under nohup the terminal may go.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.ask)


class LogTail(logging.Handler):
    """Keeps the last log records and warnings of everybody, off the terminal; poolwatch's own go to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*, as text."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """Return what was kept, oldest first; empty if nothing was."""
        return "\n".join(self._lines)

    def install(self) -> None:
        """Take over the process's logging and warnings."""
        logging.captureWarnings(capture=True)
        logging.getLogger().addHandler(self)
        logging.getLogger("poolwatch").addHandler(logging.StreamHandler())


def say(text: str, stop: Stop) -> None:
    """Print *text* at once. If nobody reads it any more, ask *stop* for the end and stay silent from then on."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop.ask()


def complain(text: str) -> None:
    """Print what went wrong on stderr, after the program's name."""
    sys.stderr.write(f"poolwatch demo: {text}\n")
