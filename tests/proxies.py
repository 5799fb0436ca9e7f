"""A TCP proxy between drivers and a server, which ends connections in the ways that networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from databases import Database
    from poolwatch.demo.servers import Server


@dataclass(eq=False)
class _Pair:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    heard: float
    forgotten: bool = False


class Proxy:
    """Forwards what comes to ``port`` to *server*, in a thread of its own; leaving the ``with`` block ends it.

    Args:
        server: Where to.
        idle_limit: Seconds of silence after which a connection is forgotten without a word; ``None`` for never.
        answers: What comes on a forgotten connection is answered with a reset, as load balancers do; else swallowed,
            as firewalls do.

    Attributes:
        hangs: Swallow what the server answers.
    """

    def __init__(self, server: Server | Database, *, idle_limit: float | None = None, answers: bool = True) -> None:
        self._target = server.port
        self._idle_limit = idle_limit
        self._answers = answers
        self.hangs = False
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._pairs: list[_Pair] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    @property
    def silence(self) -> float:
        """Seconds since anything was heard on any connection."""
        return self._loop.time() - max(each.heard for each in self._pairs)

    def finish(self) -> None:
        """Close every connection in order: a FIN."""
        self._do(self._finish)

    def reset(self) -> None:
        """Close every connection at once: an RST."""
        self._do(self._reset)

    def forget(self) -> None:
        """Forget every connection of this moment without a word, whatever their silence."""
        self._do(self._forget)

    def say(self, goodbye: bytes) -> None:
        """Send *goodbye* on every connection, and close them in order."""

        def act() -> None:
            for each in self._pairs:
                each.client.write(goodbye)
            self._finish()

        self._do(act)

    def _do(self, act: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _finish(self) -> None:
        for each in self._pairs:
            each.client.close()
            each.server.close()
        self._pairs.clear()

    def _reset(self) -> None:
        for each in self._pairs:
            _abort(each.client)
            each.server.close()
        self._pairs.clear()

    def _forget(self) -> None:
        for each in self._pairs:
            each.forgotten = True

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        listening.close()
        for each in self._pairs:
            each.client.transport.abort()
            each.server.transport.abort()
        # What is under way ends with its sockets.
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server, self._loop.time())
        self._pairs.append(pair)
        await asyncio.gather(self._pump(reader, server, pair), self._pump(answers, client, pair))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: _Pair) -> None:
        # A side that has ended ends the other in the same way.
        end: Callable[[asyncio.StreamWriter], None] = asyncio.StreamWriter.close
        try:
            while data := await source.read(65536):
                self._forward(data, sink, pair)
                await sink.drain()
        except OSError:
            end = _abort
        if not pair.forgotten:
            end(sink)

    def _forward(self, data: bytes, sink: asyncio.StreamWriter, pair: _Pair) -> None:
        now = self._loop.time()
        pair.forgotten = pair.forgotten or (self._idle_limit is not None and now - pair.heard > self._idle_limit)
        pair.heard = now
        if pair.forgotten and self._answers and sink is pair.server:
            _abort(pair.client)
        if not pair.forgotten and not (self.hangs and sink is pair.client):
            sink.write(data)


class Eavesdropper(Proxy):
    """Knows questions for limits when it sees them, and may answer them itself.

    Attributes:
        questions: How many there were.
        answer: What the next one is answered with instead of what the server says, once; ``None`` for that.
    """

    questions = 0
    answer: bytes | None = None
    _asking: _Pair | None = None

    def _forward(self, data: bytes, sink: asyncio.StreamWriter, pair: _Pair) -> None:
        if sink is pair.server and b"max_connections" in data:
            self.questions += 1
            self._asking = pair if self.answer is not None else None
        elif sink is pair.client and pair is self._asking:
            data, self.answer, self._asking = self.answer or b"", None, None
        super()._forward(data, sink, pair)


def _abort(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
