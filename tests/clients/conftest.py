"""What every test of the suite starts from: a running server and the official client, unmodified."""

import pytest

import lora
from server import Server, postgres_database
from talk import connect


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Shared by all tests that leave it as it was; request rows are found by id, so they may add to it."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture
def own_server(tmp_path):
    """Makes servers that one test has to itself; not started yet."""
    servers = []

    def make(*arguments: str, **options) -> Server:
        servers.append(Server(tmp_path / f"server-{len(servers)}", arguments, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request) -> tuple[str, ...]:
    """Arguments of a server on each kind of database."""
    return () if request.param == "sqlite" else ("--database", postgres_database())


@pytest.fixture
def client(server):
    """Replies that do not validate against the client's own types are errors."""
    with connect(server) as client:
        yield client


@pytest.fixture
def lenient_client(server):
    """For what the API answers with null where the client's types have none: the client reads it, but does not validate it."""
    with connect(server, _strict_response_validation=False) as client:
        yield client


@pytest.fixture
def http(server):
    with server.http() as http:
        yield http


@pytest.fixture(scope="session")
def random_adapters(server) -> list[str]:
    """Eight adapters of different ranks and linears under the first account."""
    adapters = lora.eight()
    with server.http() as http:
        account = http.get("/v1/account").json()["id"]
        for name, files in adapters.items():
            reply = http.put(f"/v1/adapters/{account}/{name}", files=lora.parts(files))
            assert reply.is_success, reply.text
    return list(adapters)
