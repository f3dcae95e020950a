"""A PostgreSQL database is brought up to date while others use it: nobody is refused, and what was killed is finished."""

import hashlib
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from server import BINARY, PATIENCE_S, ROOT, postgres_database
from talk import ask, connect
from test_moving import program

pytestmark = [pytest.mark.books, pytest.mark.waits]

PSQL = [program("psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
# Of sqlx, which has run the migrations of every version.
RAN = """
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL
);
"""
BUILDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' AND state = 'active' \
    AND application_name = 'myriad migrate'"
UNFINISHED = "SELECT CAST(indexrelid AS REGCLASS) FROM pg_index WHERE NOT indisvalid"


def sql(url: str, script: str) -> str:
    return subprocess.run([*PSQL, url], input=script, capture_output=True, text=True, check=True).stdout.strip()


def until(condition):
    """What the condition answers, once it is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
    return answer


@contextmanager
def transaction(url: str, *statements: str):
    """One that stays open with what it saw, as that of pg_dump does."""
    with subprocess.Popen([*PSQL, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as psql:
        try:
            psql.stdin.write("; ".join(["BEGIN ISOLATION LEVEL REPEATABLE READ", *statements, "SELECT 'open'"]) + ";\n")
            psql.stdin.flush()
            assert psql.stdout.readline() == "open\n"
            yield
        finally:
            psql.stdin.close()


def older(number: int) -> str:
    """A database as a server had left it that knew so many migrations, with rows of it."""
    url, script = postgres_database(), RAN
    for file in sorted((ROOT / "migrations").glob("*.sql"))[:number]:
        version, description = file.stem.split("_", 1)
        checksum = hashlib.sha384(file.read_bytes()).hexdigest()
        row = f"{int(version)}, '{description.replace('_', ' ')}', TRUE, decode('{checksum}', 'hex'), 0"
        script += file.read_text() + f"INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({row});"
    sql(url, script + """
        INSERT INTO accounts (name, created_ms) VALUES ('local', 1);
        INSERT INTO requests (id, account, key_id, endpoint, model, base, started_ms, finished_ms, prompt_tokens, completion_tokens, finish)
        SELECT 'chatcmpl-' || n, 'local', 'key', 'chat', 'myriad-mini', 'myriad-mini', n, n, 1, 1, 'stop' FROM generate_series(1, 50) n;
    """)
    return url


@contextmanager
def load(server):
    """Four clients that ask all the time. Yields what they were answered; none may be refused."""
    answered, failed, done = [], [], threading.Event()

    def client() -> None:
        with connect(server) as client:
            while not done.is_set():
                try:
                    answered.append(ask(client, max_tokens=2).id)
                except Exception as error:
                    failed.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        yield answered
    finally:
        done.set()
        for each in clients:
            each.join()
    assert not failed, failed[:3]


def migrate(server, url: str) -> subprocess.Popen:
    command = [str(BINARY), "migrate", "--database", url]
    return subprocess.Popen(command, env=server.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_requests_are_answered_while_a_migration_waits_for_a_backup(own_server):
    url = postgres_database()
    server = own_server("--database", url).start()
    with connect(server) as client:
        ask(client)
    # Nothing that a running server reads.
    sql(url, """
        DROP INDEX requests_by_finish; DROP INDEX requests_interrupted; ALTER TABLE accounts DROP COLUMN suspended_ms;
        DELETE FROM _sqlx_migrations WHERE version IN (10, 16, 18);
    """)
    with load(server) as answered:
        with transaction(url, "LOCK TABLE accounts, requests IN ACCESS SHARE MODE"):
            until(lambda: answered)
            migration = migrate(server, url)
            waits = migration.stderr.readline()
            assert "migration 0018 suspended" in waits and "(psql), in a transaction for" in waits, waits
            # With the table's lock asked for once and for all, nobody would be answered any more.
            before = len(answered)
            until(lambda: len(answered) > before + 20)
            assert migration.poll() is None
        out, _ = migration.communicate(timeout=PATIENCE_S)
    assert migration.returncode == 0
    ran = ["ran 0010 statements", "ran 0016 interrupted", "ran 0018 suspended"]
    assert out.splitlines() == [*ran, "built index requests_by_finish", "built index requests_interrupted"]
    assert server.cli("migrate", "--database", url).stdout == "The database is up to date.\n"
    assert server.stop() == 0
    server.start()


@pytest.mark.parametrize("killed", ["process", "session"])
def test_an_index_is_finished_by_the_next_start_after_a_kill(own_server, killed):
    url = older(9)
    server = own_server("--database", url)
    with transaction(url):
        migration = migrate(server, url)
        building = until(lambda: sql(url, BUILDS))
        migration.kill()
        migration.communicate()
        if killed == "session":
            # As with a crash of the database as well: what it had begun stays behind.
            sql(url, f"SELECT pg_terminate_backend({building})")
            until(lambda: not sql(url, BUILDS))
            assert sql(url, UNFINISHED) == "requests_by_finish"
        server.spawn()
        if killed == "session":
            until(lambda: sql(url, BUILDS))
        else:
            until(lambda: "another process" in server.output)
        assert "Myriad ready" not in server.output and server.process.poll() is None
    until(server.ready)
    assert sql(url, UNFINISHED) == ""
    assert server.cli("migrate", "--database", url).stdout == "The database is up to date.\n"
    with connect(server) as client:
        ask(client)
    assert len(server.rows()) == 51
