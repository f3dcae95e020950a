"""A database that is away or whose disk is full: every endpoint says 503, the server says that it is not ready, and with the database
everything is back."""

import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from server import KEY, ROOT, Server, postgres_database
from test_migrations import sql

pytestmark = [pytest.mark.books, pytest.mark.waits]

CHAT = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def answers(server: Server) -> dict[str, httpx.Response]:
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers, timeout=30) as admin:
        credit = {"account": "local", "amount": 1}
        return {
            "base": http.post("/v1/chat/completions", json=CHAT),
            "adapter": http.post("/v1/chat/completions", json=CHAT | {"model": "support"}),
            "once": http.post("/v1/chat/completions", json=CHAT, headers={"idempotency-key": str(time.monotonic())}),
            "models": http.get("/v1/models"),
            "key": http.post("/v1/account/keys", json={"name": "another"}),
            "credit": admin.post("/admin/v1/credits", json=credit),
            "reconciliation": admin.get("/admin/v1/reconciliation"),
        }


def ready_within(server: Server, ready: bool, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.ready() != ready:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_full_disk_refuses_and_room_on_it_brings_all_back(own_server):
    server = own_server().start()
    with httpx.Client(base_url=server.ops_url, headers={"authorization": f"Bearer {KEY}"}) as admin:
        admin.post("/admin/v1/prices", json={"input": 1, "output": 2}).raise_for_status()
        admin.patch("/admin/v1/accounts/local", json={"credit": "prepaid"}).raise_for_status()
        admin.post("/admin/v1/credits", json={"account": "local", "amount": 5}).raise_for_status()
    assert all(reply.is_success for reply in answers(server).values())
    # Somebody's answer is on its way into the books while nothing can be written there.
    stream = {**CHAT, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=stream) as reply:
        lines = reply.iter_lines()
        next(lines)
        with server.full_disk():
            time.sleep(1)
            with httpx.Client(base_url=server.ops_url, headers=http.headers, timeout=30) as admin:
                found = admin.get("/admin/v1/reconciliation?days=2")
                assert found.status_code == 503 and found.headers["retry-after"], found.text
                refused = admin.post("/admin/v1/credits", json={"account": "local", "amount": 1})
                assert refused.status_code == 503, refused.text
        assert list(lines)[-2] == "data: [DONE]"
    with server.full_disk():
        deadline = time.monotonic() + 60
        while server.ready():
            assert time.monotonic() < deadline
            for name, reply in answers(server).items():
                # Models are read, and reconciliation says what was found last.
                reading = name in ("models", "reconciliation")
                assert reply.status_code == 503 or (reading and reply.status_code == 200), (name, reply.text)
                assert reply.status_code == 200 or reply.headers["retry-after"]
    ready_within(server, True, 10)
    for _ in range(3):
        found = answers(server)
        assert all(reply.is_success for reply in found.values()), {name: reply.text for name, reply in found.items()}
    deadline = time.monotonic() + 10
    while differences := found["reconciliation"].json()["differences"]:
        assert time.monotonic() < deadline, differences
        found = answers(server)


def test_while_postgres_is_away_everything_is_503(own_server):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        control = ROOT / "tests/postgres"
        subprocess.run([control, "start", folder / "p"], check=True, stdout=subprocess.DEVNULL)
        try:
            database = subprocess.run([control, "database", folder / "p"], check=True, capture_output=True, text=True).stdout.strip()
            server = own_server("--database", database).start()
            assert all(reply.is_success for reply in answers(server).values())
        finally:
            subprocess.run([control, "stop", folder / "p"], check=True)
        for name, reply in answers(server).items():
            # Reconciliation says what was found last.
            assert name == "reconciliation" or (reply.status_code == 503 and reply.headers["retry-after"]), (name, reply.text)
        ready_within(server, False, 20)
        assert "database" in httpx.get(f"{server.url}/readyz").json()["error"]["message"]
        server.kill()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_text_that_postgres_does_not_store_is_400_everywhere(own_server, kind):
    server = own_server(*(() if kind == "sqlite" else ("--database", postgres_database()))).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        replies = [
            admin.post("/admin/v1/prices", json={"input": 1, "output": 1, "model": "a\0"}),
            admin.post("/admin/v1/accounts", json={"name": "a\0"}),
            http.post("/v1/account/keys", json={"name": "a\0"}),
            http.get("/v1/account/requests?after=%00"),
            http.get("/v1/organization/costs?start_time=1&line_items=%00"),
            http.delete("/v1/account/keys/%00"),
            http.delete("/v1/account/limits/a%00"),
        ]
        assert [reply.status_code for reply in replies] == [400] * len(replies), [reply.text for reply in replies]
        assert http.post("/v1/chat/completions", json=CHAT | {"model": "a\0"}).status_code in (400, 404)
        assert http.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": "a\0b"}]}).is_success


def test_a_column_that_a_newer_server_adds_is_no_trouble_to_one_that_runs(own_server):
    """As a migration does it while servers of the version before are there, which keep their statements prepared."""
    database = postgres_database()
    server = own_server("--database", database).start()
    prices = {"input": 1, "output": 2}
    paths = ["account", "account/keys", "account/members", "account/requests", "account/ledger", "account/limits", "account/webhooks",
             "account/audit", "account/usage", "account/statements", "account/prices", "models", "adapters"]

    def use() -> None:
        with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers, timeout=30) as admin:
            for number in range(6):
                replies = [http.get(f"/v1/{path}") for path in paths]
                replies.append(http.post("/v1/chat/completions", json=CHAT))
                replies.append(http.post("/v1/chat/completions", json=CHAT | {"model": "support"}))
                replies.append(admin.post("/admin/v1/credits", json={"account": "local", "amount": 1}))
                replies.append(http.post("/v1/account/limits", json={"kind": "alert", "scope": "account", "period": "day", "amount": number + 1}))
                replies.append(admin.get("/admin/v1/reconciliation?days=1"))
                assert all(reply.is_success for reply in replies), [(reply.url, reply.text) for reply in replies if not reply.is_success]

    with httpx.Client(base_url=server.ops_url, headers={"authorization": f"Bearer {KEY}"}) as admin:
        admin.post("/admin/v1/prices", json=prices).raise_for_status()
        admin.patch("/admin/v1/accounts/local", json={"credit": "prepaid"}).raise_for_status()
        admin.post("/admin/v1/credits", json={"account": "local", "amount": 5}).raise_for_status()
    use()
    tables = sql(database, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'").split()
    assert len(tables) > 15
    for table in tables:
        sql(database, f'ALTER TABLE "{table}" ADD COLUMN of_a_newer_server BIGINT NOT NULL DEFAULT 0')
    use()
