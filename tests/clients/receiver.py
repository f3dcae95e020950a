"""Somebody else's HTTP server on this machine: keeps what it is sent, and answers what the test wants."""

import base64
import hashlib
import hmac
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from server import PATIENCE_S


@dataclass
class Message:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        assert self.headers["content-type"] == "application/x-www-form-urlencoded"
        pairs = urllib.parse.parse_qsl(self.body.decode(), strict_parsing=True)
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)


class Receiver:
    """`answer` gets each message and returns a status, with a body where there is more to say; None breaks the connection off."""

    def __init__(self, answer=lambda message: 200, port: int = 0):
        self.answer = answer
        self.messages: list[Message] = []
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self):
                receiver.connections += 1
                super().setup()

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                message = Message(self.path, headers, body)
                receiver.messages.append(message)
                answer = receiver.answer(message)
                if answer is None:
                    return
                status, text = answer if isinstance(answer, tuple) else (answer, {})
                text = json.dumps(text).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, count: int) -> list[Message]:
        eventually(lambda: len(self.messages) >= count, f"{count} messages")
        return self.messages

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def eventually(check, what: str):
    """What `check` returns, once it is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := check()):
        assert time.monotonic() < deadline, f"there never were {what}"
        time.sleep(0.05)
    return found


def verified(secret: str, message: Message) -> dict:
    """The message, if it is signed as the Standard Webhooks specification says."""
    identifier, timestamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    assert abs(time.time() - int(timestamp)) < 300
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    signed = b".".join([identifier.encode(), timestamp.encode(), message.body])
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert hmac.compare_digest(expected, message.headers["webhook-signature"])
    return message.json
