"""One running myriad: started on free ports with a data directory of its own, stopped, killed, started again."""

import os
import random
import resource
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("MYRIAD_BINARY", ROOT / "target/release/myriad"))
MODEL_FOLDER = ROOT / "models/myriad-mini"
MODEL = "myriad-mini"
KEY = "sk-myriad-key-of-the-client-tests"
# What the suite waits for takes milliseconds; this is how long a broken server may hang it.
PATIENCE_S = 30.0


def free_port() -> int:
    """Below the ports that a system gives to outgoing connections: one that was free a moment ago would often be one of these by now."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def postgres_database() -> str:
    """Makes an empty database on the PostgreSQL server that `tests/run` has started."""
    folder = os.environ["MYRIAD_TEST_POSTGRES_FOLDER"]
    made = subprocess.run([ROOT / "tests/postgres", "database", folder], capture_output=True, text=True, check=True)
    return made.stdout.strip()


@dataclass
class Server:
    folder: Path
    arguments: tuple[str, ...] = ()
    # The first account's key; without one the server makes its own.
    key: str | None = KEY
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def variables(self) -> dict[str, str]:
        """No variable of the person who runs the tests, and no file of theirs."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MYRIAD_", "XDG_", "HF_"))}
        home = str(self.folder / "home")
        return kept | {"HOME": home}

    def command(self) -> list[str]:
        settings = {
            "--listen": f"127.0.0.1:{self.port}",
            "--ops-listen": f"127.0.0.1:{self.ops_port}",
            "--data": str(self.data),
        }
        defaults = [part for pair in settings.items() if pair[0] not in self.arguments for part in pair]
        return [str(BINARY), "serve", *defaults, *self.arguments]

    def spawn(self) -> None:
        key = {} if self.key is None else {"MYRIAD_BOOTSTRAP_KEY": self.key}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "output").open("ab") as output:
            # Python ignores the signal of a file that may not grow, and so does the server: `full_disk`.
            self.process = subprocess.Popen(
                self.command(), env=self.variables() | key, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                restore_signals=False,
            )

    def start(self) -> "Server":
        self.spawn()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.output}")
            if self.ready():
                return self
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready within {PATIENCE_S} s:\n{self.output}")

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    @contextmanager
    def full_disk(self):
        """No file of the server can be written to meanwhile."""
        limit = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (1, limit[1]))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limit)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                return self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def http(self, **options) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, **options)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess:
        """A client command as typed in a second terminal: the same person, nothing exported."""
        return subprocess.run(
            [str(BINARY), *arguments], env=self.variables(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def rows(self) -> list[dict]:
        """Every row of the account, newest first, read page by page."""
        rows: list[dict] = []
        with self.http() as http:
            while True:
                after = {"after": rows[-1]["request_id"]} if rows else {}
                page = http.get("/v1/account/requests", params={"limit": 100, **after}).raise_for_status().json()
                rows += page["data"]
                if not page["has_more"]:
                    return rows

    def settled(self, key: str) -> None:
        """Waits until nothing of the account runs: on PostgreSQL another server must have missed a killed one first."""
        deadline = time.monotonic() + PATIENCE_S
        with self.http() as http:
            http.headers["authorization"] = f"Bearer {key}"
            while any(row["finish"] == "running" for row in http.get("/v1/account/requests?limit=1000").json()["data"]):
                assert time.monotonic() < deadline, "a dead server's requests are still open"
                time.sleep(0.05)

    def row(self, request_id: str) -> dict:
        """The one row of a request, once it is settled."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = [row for row in self.rows() if row["request_id"] == request_id]
            assert len(rows) <= 1, f"{request_id} has {len(rows)} rows"
            if rows and rows[0]["finish"] != "running":
                return rows[0]
            assert time.monotonic() < deadline, f"{request_id} is not settled: {rows}"
            time.sleep(0.01)
