"""Requests at the same time over plain sockets, streamed, with as little work as possible: the client runs on the cores that are measured."""

import json
import selectors
import socket
import time


class Failed(Exception):
    """The server answered with something else than what was asked for."""


def post(port: int, path: str, bodies: list[dict], key: str = "", limit_s: float = 120) -> tuple[float, list[str]]:
    """Sends all bodies at once; seconds until the last answer has ended, and the text of each answer."""
    sent = [request(port, path, body, key) for body in bodies]
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in bodies]
    received = [bytearray() for _ in bodies]
    with selectors.DefaultSelector() as open_ones:
        for number, connection in enumerate(connections):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_ones.register(connection, selectors.EVENT_READ, number)
        started = time.monotonic()
        for connection, message in zip(connections, sent, strict=True):
            connection.sendall(message)
        left = len(connections)
        while left:
            events = open_ones.select(timeout=limit_s)
            if not events:
                raise Failed(f"no answer within {limit_s} s")
            for event, _ in events:
                part = event.fileobj.recv(1 << 16)
                received[event.data] += part
                if not part:
                    open_ones.unregister(event.fileobj)
                    event.fileobj.close()
                    left -= 1
        seconds = time.monotonic() - started
    for answer in received:
        if not answer.startswith(b"HTTP/1.1 200"):
            raise Failed(answer[:600].decode(errors="replace"))
    return seconds, [answer.decode(errors="replace") for answer in received]


def request(port: int, path: str, body: dict, key: str) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def events(answer: str) -> list[dict]:
    """The events of a stream. Chunk lengths stand on lines of their own, so lines that begin with `data:` are whole."""
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
