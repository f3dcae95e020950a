"""Keys over time and over several servers: revoked everywhere at once, never brought back by a start, and their use not forgotten."""

import stat
import subprocess
import time

import httpx
import pytest

from server import KEY, PATIENCE_S, postgres_database

pytestmark = pytest.mark.books

KEYS = 100_000


def status(server, key: str) -> int:
    return httpx.get(f"{server.url}/v1/account", headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S).status_code


def test_a_key_among_very_many_is_revoked_on_every_server_within_a_second(own_server):
    url = postgres_database()
    one = own_server("--database", url).start()
    many = ("INSERT INTO api_keys (id, account, name, hash, hint, created_ms) SELECT 'key-' || n, 'local', 'one of many', "
            f"encode(sha256(n::text::bytea), 'hex'), 'many', 0 FROM generate_series(1, {KEYS}) AS n")
    subprocess.run(["psql", "--quiet", "--dbname", url, "--command", many], check=True)
    assert one.stop() == 0
    one.start()
    two = own_server("--database", url).start()
    took = []
    with one.http() as http:
        for _ in range(5):
            made = http.post("/v1/account/keys", json={"name": "short"}).raise_for_status().json()
            deadline = time.monotonic() + PATIENCE_S
            while status(two, made["key"]) == 401 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert status(two, made["key"]) == 200
            begun = time.monotonic()
            http.delete(f"/v1/account/keys/{made['id']}").raise_for_status()
            assert status(one, made["key"]) == 401
            while status(two, made["key"]) == 200 and time.monotonic() < begun + PATIENCE_S:
                time.sleep(0.01)
            took.append(time.monotonic() - begun)
            assert status(two, made["key"]) == 401
    print(f"revoked on the other server after {[round(seconds, 2) for seconds in took]} s")
    # The bound is a second; the rest is for a machine that does other things.
    assert max(took) < 1.5, took


@pytest.fixture
def locked_out(own_server, database):
    """A server whose bootstrap key was revoked, and another key."""
    server = own_server(*database).start()
    with server.http() as http:
        spare = http.post("/v1/account/keys", json={"name": "spare"}).raise_for_status().json()["key"]
        (own,) = [row["id"] for row in http.get("/v1/account/keys").json()["data"] if row["name"] == "bootstrap"]
        http.delete(f"/v1/account/keys/{own}").raise_for_status()
    assert server.stop() == 0
    return server, spare


def test_a_server_starts_with_a_bootstrap_key_that_was_revoked_and_says_so(locked_out):
    server, spare = locked_out
    server.start()
    assert (status(server, KEY), status(server, spare)) == (401, 200), "a start brought a revoked key back"
    said = server.output.split("Myriad ready")[1:]
    assert "MYRIAD_BOOTSTRAP_KEY was revoked" in server.output and "myriad accounts recover" in server.output
    assert "the one you gave was revoked" in said[-1]


def test_servers_that_start_together_with_one_key_on_a_new_database_all_start(own_server):
    url = postgres_database()
    servers = [own_server("--database", url) for _ in range(3)]
    for server in servers:
        server.spawn()
    for server in servers:
        deadline = time.monotonic() + PATIENCE_S
        while not server.ready():
            assert server.process.poll() is None and time.monotonic() < deadline, server.output
            time.sleep(0.02)
        assert status(server, KEY) == 200
    with servers[0].http() as http:
        assert [row["name"] for row in http.get("/v1/account/keys").json()["data"]] == ["bootstrap"]


def test_when_a_key_was_used_is_known_after_a_stop(own_server, database):
    server = own_server(*database).start()
    with server.http() as http:
        used = http.post("/v1/account/keys", json={"name": "used"}).raise_for_status().json()
    assert status(server, used["key"]) == 200
    assert server.stop() == 0
    server.start()
    with server.http() as http:
        (row,) = [row for row in http.get("/v1/account/keys").json()["data"] if row["name"] == "used"]
    assert row["last_used_at"] is not None


def test_nobody_else_on_the_machine_can_read_the_data(own_server):
    server = own_server().start()

    def modes():
        paths = [server.data, *(server.data / f"myriad.sqlite{suffix}" for suffix in ("", "-wal", "-shm"))]
        return [stat.S_IMODE(path.stat().st_mode) for path in paths]

    assert modes() == [0o700, 0o600, 0o600, 0o600]
    assert server.stop() == 0
    # As a server of before has left it.
    server.data.chmod(0o755)
    (server.data / "myriad.sqlite").chmod(0o644)
    server.start()
    assert modes() == [0o700, 0o600, 0o600, 0o600]
    assert "its mode is 0700 now" in server.output and "its mode is 0600 now" in server.output
