"""A server's data moves, is backed up and comes back: with every nano-dollar, key and adapter where it was."""

import glob
import shutil
import sqlite3
import subprocess
from contextlib import closing

import httpx
import pytest

import lora
from server import postgres_database
from talk import ask, connect
from test_statements import this_month

pytestmark = pytest.mark.books

PATIENT = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Say every word you know."}], "extra_body": {"ignore_eos": True}}


def program(name: str) -> str:
    """Debian keeps some of PostgreSQL's programs out of PATH."""
    return (sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}")) or [name])[-1]


def fill(server) -> str:
    """Two accounts, an adapter, prices, credits of each kind and some requests. Returns the other account's key."""
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        with connect(server) as client:
            ask(client)
        admin.post("/admin/v1/prices", json={"input": 0.1, "cached_input": 0.01, "output": 0.4}).raise_for_status()
        key = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).json()["key"]
        for nano, kind in ((3_000_000_000, "top_up"), (1_234, "grant"), (-3, "adjust"), (99, "expire")):
            credit = {"account": "acme", "amount_nano_usd": nano, "kind": kind, "memo": f"a {kind}, ä"}
            admin.post("/admin/v1/credits", json=credit).raise_for_status()
        files = next(iter(lora.eight().values()))
        http.put("/v1/adapters/acme/mine", files=lora.parts(files), headers={"authorization": f"Bearer {key}"}).raise_for_status()
        for model in ("myriad-mini", "mine"):
            with connect(server, api_key=key) as client:
                ask(client, model=model)
                ask(client, model=model, extra_headers={"idempotency-key": model})
        http.put("/v1/account/members/ann", json={"role": "owner"}).raise_for_status()
    return key


def seen(server, key: str) -> dict:
    """What an account has and has had, as it is told."""
    with server.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        account, month = http.get("/v1/account").json(), http.get(f"/v1/account/statements/{this_month()}").json()
        requests, keys = http.get("/v1/account/requests?limit=1000").json(), http.get("/v1/account/keys").json()
        adapters = http.get("/v1/adapters").json()
    keys = [{name: value for name, value in row.items() if name != "last_used_at"} for row in keys["data"]]
    return {"balance": account["balance_nano_usd"], "credit": account["credit"], "statement": month,
            "requests": requests["data"], "keys": keys, "adapters": adapters["data"]}


def goes_on(server, key: str) -> None:
    """The adapter is still there, and what is used from now on is charged."""
    before = seen(server, key)["balance"]
    with connect(server, api_key=key) as client:
        cost = ask(client, model="mine", seed=2).usage.cost_nano_usd
    assert cost > 0 and seen(server, key)["balance"] == before - cost


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_everything_moves_into_an_empty_database(own_server, tmp_path, kind):
    server = own_server().start()
    key = fill(server)
    target = postgres_database() if kind == "postgres" else f"sqlite:{tmp_path / 'new.sqlite'}"
    move = ("migrate", "--data", str(server.data), "--to", target)
    running = server.cli(*move)
    assert running.returncode == 1 and "in use by another myriad process" in running.stderr
    before = seen(server, key)
    assert server.stop() == 0
    done = server.cli(*move)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: line.split()[-2:] for line in done.stdout.splitlines()}
    assert rows["rows of requests"] == ["5", "5"] and rows["rows of accounts"] == ["2", "2"]
    assert "ledger, revenue" in rows and "cost of requests" in rows and "All is equal" in done.stdout
    assert all(left == right for name, (left, right) in rows.items() if name.startswith(("rows", "ledger", "cost", "balance")))
    again = server.cli(*move)
    assert again.returncode == 1 and "2 rows in accounts already" in again.stderr

    moved = own_server("--database", target, "--data", str(server.data)).start()
    assert seen(moved, key) == before
    goes_on(moved, key)
    # A kept answer came along: the same request again costs nothing.
    balance = seen(moved, key)["balance"]
    with connect(moved, api_key=key) as client:
        replay = client.chat.completions.with_raw_response.create(
            model="mine", messages=[{"role": "user", "content": "Hello! I ordered a lamp last week and it has not arrived."}],
            temperature=0, max_tokens=24, extra_body={"ignore_eos": True}, extra_headers={"idempotency-key": "mine"})
    assert replay.headers["idempotent-replayed"] == "true" and seen(moved, key)["balance"] == balance


def test_a_damaged_database_does_not_move(own_server, tmp_path):
    server = own_server().start()
    fill(server)
    assert server.stop() == 0
    with closing(sqlite3.connect(server.data / "myriad.sqlite")) as database, database:
        database.execute("UPDATE balances SET available = available + 5000000000 WHERE account = 'acme'")
    target = f"sqlite:{tmp_path / 'new.sqlite'}"
    refused = server.cli("migrate", "--data", str(server.data), "--to", target)
    assert refused.returncode == 1 and "All is equal" not in refused.stdout
    assert "the account acme has available is $7.9" in refused.stderr and "by its ledger it is $2.9" in refused.stderr, refused.stderr
    with closing(sqlite3.connect(server.data / "myriad.sqlite")) as database, database:
        database.execute("UPDATE balances SET available = available - 5000000000 WHERE account = 'acme'")
    done = server.cli("migrate", "--data", str(server.data), "--to", target)
    assert done.returncode == 0, done.stderr


def test_what_ran_when_the_old_server_was_killed_is_settled_by_the_new_one(own_server):
    server = own_server().start()
    key = fill(server)
    before = seen(server, key)["balance"]
    with connect(server, api_key=key) as client:
        stream = client.chat.completions.create(**PATIENT, stream=True)
        for _ in range(200):
            next(stream)
        server.kill()
    target = postgres_database()
    done = server.cli("migrate", "--data", str(server.data), "--to", target)
    assert done.returncode == 0, done.stderr
    moved = own_server("--database", target, "--data", str(server.data)).start()
    moved.settled(key)
    after = seen(moved, key)
    assert after["requests"][0]["finish"] == "interrupted" and after["requests"][0]["completion_tokens"] > 0
    assert after["balance"] == before - after["requests"][0]["cost_nano_usd"] == after["statement"]["closing_balance_nano_usd"]


def test_a_database_that_a_server_writes_to_does_not_move(own_server, tmp_path):
    server = own_server("--database", postgres_database()).start()
    refused = server.cli("migrate", "--from", server.arguments[1], "--to", f"sqlite:{tmp_path / 'new.sqlite'}")
    assert refused.returncode == 1 and "a server is writing to the database" in refused.stderr
    assert server.stop() == 0
    done = server.cli("migrate", "--from", server.arguments[1], "--to", f"sqlite:{tmp_path / 'new.sqlite'}")
    assert done.returncode == 0, done.stderr
    for wrong, said in ((("--from", f"sqlite:{tmp_path / 'none.sqlite'}"), "none.sqlite"), (("--data", str(tmp_path)), "no database at")):
        refused = server.cli("migrate", *wrong, "--to", f"sqlite:{tmp_path / 'other.sqlite'}")
        assert refused.returncode == 1 and said in refused.stderr
    assert not (tmp_path / "none.sqlite").exists()


def test_an_older_database_is_brought_up_to_date(own_server):
    server = own_server().start()
    where = ("migrate", "--data", str(server.data))
    assert "in use by another" in server.cli(*where).stderr
    assert server.stop() == 0
    assert server.cli(*where).stdout == "The database is up to date.\n"
    with closing(sqlite3.connect(server.data / "myriad.sqlite")) as database:
        database.executescript("DROP INDEX requests_by_finish; DELETE FROM _sqlx_migrations WHERE version = 10;")
    said = server.cli("accounts", "recover", "--data", str(server.data)).stderr
    assert "0010 statements" in said and "myriad migrate" in said
    assert server.cli(*where).stdout == "ran 0010 statements\n"
    server.start()


def test_a_backup_of_sqlite_under_load_is_restored(own_server):
    server = own_server().start()
    key = fill(server)
    before = seen(server, key)
    restored = own_server()
    restored.data.mkdir(parents=True)
    # As docs/operations.md says it: the database first, so that each file that it names is in the copy of the folder.
    with closing(sqlite3.connect(server.data / "myriad.sqlite")) as database:
        database.execute("VACUUM INTO ?", [str(restored.data / "myriad.sqlite")])
    with connect(server, api_key=key) as client:
        ask(client, seed=9)
    shutil.copytree(server.data / "blobs", restored.data / "blobs")
    server.kill()
    restored.start()
    assert seen(restored, key) == before
    goes_on(restored, key)


def test_a_backup_of_postgresql_under_load_is_restored(own_server, tmp_path):
    url = postgres_database()
    server = own_server("--database", url).start()
    key = fill(server)
    before = seen(server, key)
    subprocess.run([program("pg_dump"), "--format=custom", f"--file={tmp_path / 'dump'}", f"--dbname={url}"], check=True)
    with connect(server, api_key=key) as client:
        ask(client, seed=9)
    restored = own_server("--database", postgres_database())
    restored.data.mkdir(parents=True)
    shutil.copytree(server.data / "blobs", restored.data / "blobs")
    server.kill()
    target = restored.arguments[1]
    subprocess.run([program("pg_restore"), "--no-owner", "--exit-on-error", f"--dbname={target}", tmp_path / "dump"], check=True)
    restored.start()
    assert seen(restored, key) == before
    goes_on(restored, key)
