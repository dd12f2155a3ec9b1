"""A TCP proxy between a MySQL client and its server: it counts requests, slows them down, and cuts.

    >>> with proxied(connect) as (proxy, through):
    ...     connection = MySQLdb.connect(**through)
    ...     proxy.requests = 0
    ...     connection.query("SELECT 1")  # proxy.requests == 1: one packet, one round trip
    ...     proxy.delay = 0.005  # seconds, each way
    ...     proxy.cut = at_request(2, 0.5)  # the next request but one breaks off in the middle
    ...     proxy.cut = Once(lambda packet: b"COMMIT" in packet.data, 0)  # the next COMMIT is lost
    ...     proxy.cut = Before(b"DROP TABLE", action)  # action() is called before it passes

It reads MySQL's packets (three bytes of length, one of sequence number, payload), so the connection must be without
TLS and compression. A request is a packet that the client numbers 0, as it does with every command; what it sends to
log in is numbered higher (dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html).
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Bytes.
CHUNK = 1 << 16
# What is under way while it is delayed.
QUEUED_CHUNKS = 256


class Packet(NamedTuple):
    """One MySQL packet, and where in the conversation it stands."""

    from_client: bool
    # The proxy's number of the request that it is, belongs to or answers; 0 before the first.
    request: int
    # Bytes that this connection has passed on in this direction before it.
    offset: int
    # Header and payload.
    data: bytes


Cut = Callable[[Packet], "int | None"]
COM_QUIT = b"\x01"


def is_goodbye(packet: Packet) -> bool:
    """Whether a client ends its connection: one that was cut off before may say so meanwhile."""
    return packet.from_client and packet.data[4:] == COM_QUIT


def at_request(number: int, share: float) -> Cut:
    """Cut when `proxy.requests` reaches the number: 0 before that request, 0.5 inside it, 1 after it.

    After it, the server has all of it, and the client gets no reply."""

    def cut(packet: Packet) -> int | None:
        hit = packet.from_client and packet.request == number and packet.data[3] == 0
        return round(len(packet.data) * share) if hit else None

    return cut


def at_reply(number: int) -> Cut:
    """Cut when the server has done the request of this number, and begins a reply of which the client sees nothing."""
    return lambda packet: None if packet.from_client or packet.request != number else 0


def after_bytes(count: int, from_client: bool = True) -> Cut:
    """Cut when a connection has passed on so many bytes from the client, or from the server."""

    def cut(packet: Packet) -> int | None:
        rest = count - packet.offset
        return (
            max(rest, 0) if packet.from_client == from_client and rest <= len(packet.data) else None
        )

    return cut


class Once:
    """Cuts the first packet from the client of which `which` holds, or the reply to it.

    keep: how many bytes of the packet still pass; None for all of it, and none of the reply.
    `done` says that it was cut. Later connections go through.
    """

    def __init__(self, which: Callable[[Packet], bool], keep: int | None) -> None:
        self.which = which
        self.keep = keep
        self.done = False
        self._request: int | None = None

    def __call__(self, packet: Packet) -> int | None:
        if self.done:
            return None
        if not packet.from_client:
            self.done = packet.request == self._request
            return 0 if self.done else None
        if self._request is None and self.which(packet):
            self._request = packet.request
            self.done = self.keep is not None
            return self.keep
        return None


class Before:
    """Calls action() before the first packet from a client that has the text goes on.

    `done` says that it was called, and has returned. Packets of other connections pass meanwhile.
    """

    def __init__(self, text: bytes, action: Callable[[], object]) -> None:
        self.text = text
        self.action = action
        self.begun = False
        self.done = False

    def __call__(self, packet: Packet) -> int | None:
        if packet.from_client and not self.begun and self.text in packet.data:
            self.begun = True
            self.action()
            self.done = True
        return None


@contextlib.contextmanager
def proxied(connect: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    """A proxy before a server, and what MySQLdb.connect takes to go through it."""
    through = {**connect, "host": "127.0.0.1", "ssl_mode": "DISABLED"}
    path = through.pop("unix_socket", None)
    with Proxy(path or connect["host"], connect.get("port", 3306)) as proxy:
        yield proxy, {**through, "port": proxy.port}


class Proxy:
    """Listens on 127.0.0.1 at `port` from the start of its context to the end, which closes all connections.

    requests: how many have come from clients, on all connections; set it to 0 to count anew.
    delay: seconds that data takes each way; it costs time, not throughput.
    cut: a function that is asked about each packet, in both directions, before it is passed on. It answers None to
    let it pass, or how many of its bytes still pass before both sides of the connection are closed. It stays in
    force, so `lambda packet: 0` refuses every new connection as well; None ends that.
    """

    def __init__(self, host: str, port: int) -> None:
        """host: the server's, or the path of its Unix socket."""
        self.requests, self.delay = 0, 0.0
        self.cut: Cut | None = None
        self.lock = threading.Lock()
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._connections: list[_Connection] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _close(self._listener)
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        # The listener was closed.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._reach()
                except OSError:
                    # There is no server: then there is no proxy.
                    _close(client)
                    continue
                self._connections.append(_Connection(self, client, server))

    def _reach(self) -> socket.socket:
        if self._target[0].startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target[0])
            return server
        return socket.create_connection(self._target)


class _Connection:
    """One client's connection. A direction has two threads, so that a delay does not hold up what comes behind."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server, self.request = proxy, client, server, 0
        # Set before the last bytes pass: nothing may follow them, in either direction.
        self.cut = False
        self.closing = threading.Lock()
        self.ends: tuple[socket.socket, ...] = (client, server)
        for source, target in (client, server), (server, client):
            if source.family == socket.AF_INET:
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            chunks: queue.Queue[tuple[float, bytes]] = queue.Queue(QUEUED_CHUNKS)
            threading.Thread(target=self._receive, args=(source, chunks), daemon=True).start()
            threading.Thread(target=self._send, args=(target, chunks), daemon=True).start()

    def close(self) -> None:
        # Another connection may have the number of a socket that was closed: each is closed once.
        with self.closing:
            ends, self.ends = self.ends, ()
        for end in ends:
            _close(end)

    def _receive(self, source: socket.socket, chunks: queue.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            chunks.put((time.monotonic() + self.proxy.delay, data))

    def _send(self, target: socket.socket, chunks: queue.Queue[tuple[float, bytes]]) -> None:
        buffer, offset, going = bytearray(), 0, True
        while going:
            due, data = chunks.get()
            time.sleep(max(due - time.monotonic(), 0))
            buffer += data
            passed = bytearray()
            for packet in _packets(buffer):
                keep = self._ask(packet, target is self.server, offset + len(passed))
                passed += packet[:keep]
                if keep is not None:
                    self.cut, going = True, False
                    break
            offset += len(passed)
            try:
                target.sendall(passed)
            except OSError:
                going = False
            going = going and bool(data)
        self.close()
        # Else a full queue would hold its thread for ever.
        while data:
            _, data = chunks.get()

    def _ask(self, data: bytes, from_client: bool, offset: int) -> int | None:
        """How many of the packet's bytes to pass before the cut; None for all of them, and no cut."""
        if from_client and data[3] == 0:
            with self.proxy.lock:
                self.proxy.requests += 1
                self.request = self.proxy.requests
        if self.cut:
            return 0
        cut = self.proxy.cut
        return cut(Packet(from_client, self.request, offset, data)) if cut else None


def _packets(buffer: bytearray) -> Iterator[bytes]:
    """Take the complete packets from the front of the buffer."""
    start = 0
    while len(buffer) >= start + 4:
        end = start + 4 + int.from_bytes(buffer[start : start + 3], "little")
        if len(buffer) < end:
            break
        yield bytes(buffer[start:end])
        start = end
    del buffer[:start]


def _close(connection: socket.socket) -> None:
    # It may be closed already.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
