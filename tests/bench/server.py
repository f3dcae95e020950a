"""A server of a benchmark's own, and requests to it with nothing but the standard library."""

import http.client
import json
import os
import random
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("MYRIAD_BINARY", ROOT / "target/release/myriad"))
KEY = "sk-myriad-key-of-the-benchmarks"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Server:
    folder: Path
    arguments: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)

    def __enter__(self) -> "Server":
        listen = ["--listen", f"127.0.0.1:{self.port}", "--ops-listen", f"127.0.0.1:{self.ops_port}", "--data", str(self.folder)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MYRIAD_", "XDG_"))}
        variables = kept | {"MYRIAD_BOOTSTRAP_KEY": KEY, "HOME": str(self.folder)}
        self.started = time.monotonic()
        self.process = subprocess.Popen([BINARY, "serve", *listen, *self.arguments], env=variables, stdout=subprocess.DEVNULL)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.002)
        self.model = self.get(self.port, "/v1/models")["data"][0]["id"]
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(60)

    def get(self, port: int, path: str) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        return json.load(connection.getresponse())

    def is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.ops_port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.split()[0].split("{")[0] == name)

    def rss_mib(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def complete(self, prompt: list[int], tokens: int) -> "Reply":
        """One streamed completion of exactly so many tokens."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        body["stream_options"] = {"include_usage": True}
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            reply = Reply(response.status, retry_after=response.getheader("retry-after"))
            for line in response:
                if line.startswith(b"data: {"):
                    reply.first_s = reply.first_s or time.monotonic() - started
                    usage = json.loads(line[6:]).get("usage")
                    reply.cached = (usage or {}).get("prompt_tokens_details", {}).get("cached_tokens", reply.cached)
                    reply.tokens = (usage or {}).get("completion_tokens", reply.tokens)
            reply.total_s = time.monotonic() - started
            return reply
        finally:
            connection.close()


@dataclass
class Reply:
    status: int
    retry_after: str | None = None
    first_s: float = 0
    total_s: float = 0
    cached: int = 0
    tokens: int = 0


def prompt(seed: int, tokens: int) -> list[int]:
    """Ids that every vocabulary has; each seed's differ from the first token on, as far as that goes."""
    draw = random.Random(seed)
    return [draw.randrange(64, 256) for _ in range(tokens)]
