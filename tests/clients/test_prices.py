"""Prices: what a request costs is in its reply, its row and the sums, to the nano-dollar."""

from fractions import Fraction

import httpx
import pytest

from talk import ask, connect

SHARED = {"input": 1, "output": 1}


@pytest.fixture
def priced(own_server):
    server = own_server().start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        yield server, http, admin


def rounded_up(usage, input, cached, output):
    tokens = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
    million_nanos = tokens * input + usage.prompt_tokens_details.cached_tokens * cached + usage.completion_tokens * output
    return -int(-Fraction(million_nanos) // 1_000_000)


def test_cost_in_replies_rows_and_sums(priced):
    server, http, admin = priced
    with connect(server) as client:
        assert ask(client).usage.cost_nano_usd == 0
        assert http.get("/v1/account/prices").json()["data"] == []
        base = admin.post("/admin/v1/prices", json={"model": "myriad-mini", "input": 0.1, "cached_input": 0.01, "output": 0.4})
        assert base.status_code == 201 and base.json()["nano_usd"] == {
            "input": 10**8, "cached_input": 10**7, "output": 4 * 10**8, "training": None, "storage": None}
        own = admin.post("/admin/v1/prices", json={"model": "local/support", "input": 1, "output": 2}).json()
        assert [price["version"] for price in http.get("/v1/account/prices").json()["data"]] == [1, own["version"]]

        replies = {"base": ask(client), "adapter": ask(client, model="support@1")}
        expected = {"base": rounded_up(replies["base"].usage, 10**8, 10**7, 4 * 10**8),
                    "adapter": rounded_up(replies["adapter"].usage, 10**9, 10**9, 2 * 10**9)}
        for kind, reply in replies.items():
            assert reply.usage.cost_nano_usd == expected[kind] > 0
            assert reply.usage.cost == expected[kind] / 1e9
        *_, last = client.chat.completions.create(
            model="support", messages=[{"role": "user", "content": "hello"}], stream=True, stream_options={"include_usage": True})
        assert last.usage.cost_nano_usd == rounded_up(last.usage, 10**9, 10**9, 2 * 10**9)

    rows = {row["request_id"]: row for row in http.get("/v1/account/requests").json()["data"]}
    for kind, version in (("base", 1), ("adapter", 2)):
        row = rows[replies[kind].id]
        assert (row["price_version"], row["cost_nano_usd"]) == (version, expected[kind])
    total = sum(row["cost_nano_usd"] for row in rows.values())
    for by in ("", "key", "model", "adapter", "day", "adapter,day"):
        usage = http.get("/v1/account/usage", params={"group_by": by}).json()["data"]
        assert sum(group["cost_nano_usd"] for group in usage) == total
        assert sum(group["requests"] for group in usage) == len(rows) == 4
    by_adapter = {group["adapter"]: group for group in http.get("/v1/account/usage", params={"group_by": "adapter"}).json()["data"]}
    assert by_adapter["local/support"]["requests"] == 2 and by_adapter[None]["requests"] == 2


def test_a_price_outlives_a_restart_and_what_was_used_keeps_its_price(priced, own_server):
    server, http, admin = priced
    admin.post("/admin/v1/prices", json={"input": 1, "output": 1}).raise_for_status()
    with connect(server) as client:
        first = ask(client)
    admin.post("/admin/v1/prices", json={"input": 5, "output": 5}).raise_for_status()
    server.kill()
    server.start()
    with server.http() as http, connect(server) as client:
        second = ask(client)
        rows = {row["request_id"]: row for row in http.get("/v1/account/requests").json()["data"]}
    assert rows[first.id]["price_version"] == 1 and rows[first.id]["cost_nano_usd"] == first.usage.cost_nano_usd
    assert rows[second.id]["price_version"] == 2 and second.usage.cost_nano_usd == 5000 * second.usage.total_tokens


def test_bad_prices_are_refused_by_name(priced):
    server, http, admin = priced
    good = SHARED
    for body, param in (({"output": 1}, "input"), ({"input": 1}, "output"), (good | {"input": -1}, "input"),
                        (good | {"output": 1001}, "output"), (good | {"storage": 1001}, "storage"),
                        (good | {"training": "1,5"}, "training"), (good | {"input": "nan"}, "input"),
                        (good | {"input": 1e-10}, "input"), (good | {"input": True}, "input"),
                        (good | {"account": "nobody"}, "account"), (good | {"model": "a@1"}, "model"),
                        (good | {"starts_at": 1}, "starts_at"), (good | {"start_at": 1}, "start_at")):
        refused = admin.post("/admin/v1/prices", json=body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param, body
    assert admin.get("/admin/v1/prices").json()["data"] == []
    assert httpx.post(f"{server.ops_url}/admin/v1/prices", json=good).status_code == 401
    assert http.post("/admin/v1/prices", json=good).status_code == 404, "the public listener has no such endpoint"
    for query, param in (({"group_by": "colour"}, "group_by"), ({"from": "yesterday"}, "from"), ({"to": "2026-02-30"}, "to")):
        refused = http.get("/v1/account/usage", params=query)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param


def test_on_the_command_line(own_server):
    server = own_server(key=None).start()

    def run(*arguments):
        done = server.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Nothing has a price" in run("prices")
    set_price = ("prices", "set", "--input", "0.5", "--output", "2", "--training", "3.5", "--storage", "0.05", "--model", "local/support", "--ops-url", server.ops_url)
    assert "local/support" in run(*set_price) and "$3.5" in run("prices") and "$0.05" in run("prices") and "$0.5" in run("prices") and "$2" in run("prices", "list")
    # A model that is not there yet gets its price, and whoever misspelt it is told. The operator sees it, an account's list does not.
    ahead = server.cli(*set_price[:-4], "--model", "acme/later", *set_price[-2:])
    assert ahead.returncode == 0 and "acme/later" in ahead.stdout and "no adapter" in ahead.stderr
    assert "acme/later" not in run("prices") and "acme/later" in run("prices", "list", "--all", "--ops-url", server.ops_url)
    later = server.cli(*set_price, "--starts-at", "2099-01-01T12:00:00Z")
    assert later.returncode == 0 and "2099-01-01" in later.stdout and "12:00" in later.stdout, later
    past = server.cli(*set_price, "--starts-at", "2026-01-01")
    assert past.returncode != 0 and "past" in past.stderr, past
    for wrong, said in (("-1", "below 0"), ("0.0000000001", "9 decimals"), ("nan", "must be dollars"), ("99999999999", "can be counted")):
        refused = server.cli("prices", "set", f"--input={wrong}", "--output", "1", "--ops-url", server.ops_url)
        assert refused.returncode != 0 and said in refused.stderr, refused.stderr
    run("chat", "support", "-m", "hello")
    requests = run("usage").splitlines()
    assert len(requests) == 2 and "$0.0000" in requests[1] and "$0.000000000" not in requests[1]
    sums = run("usage", "--by", "adapter,day").splitlines()
    assert len(sums) == 2 and sums[0].split()[:3] == ["adapter", "day", "requests"] and sums[1].startswith("local/support")
    assert "not colour" in server.cli("usage", "--by", "colour").stderr
    assert "http" in server.cli(*set_price[:-1], "http://127.0.0.1:9").stderr


def test_an_account_sees_no_price_of_anothers_adapter(priced):
    server, http, admin = priced
    key = admin.post("/admin/v1/accounts", json={"id": "acme"}).json()["key"]
    models = [{}, {"model": "myriad-mini"}, {"model": "local/support"}, {"model": "acme/secret"}, {"model": "not-loaded"},
              {"model": "local/support", "account": "local"}, {"account": "acme"}]
    for model in models:
        admin.post("/admin/v1/prices", json=SHARED | model).raise_for_status()

    def seen(rows):
        return [{field: row[field] for field in ("model", "account") if row[field]} for row in rows]

    assert seen(admin.get("/admin/v1/prices").json()["data"]) == models
    own = httpx.get(f"{server.url}/v1/account/prices", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert seen(own) == [{}, {"model": "myriad-mini"}, {"model": "acme/secret"}, {"account": "acme"}]
    assert seen(http.get("/v1/account/prices").json()["data"]) == [
        {}, {"model": "myriad-mini"}, {"model": "local/support"}, {"model": "local/support", "account": "local"}]


def test_a_price_for_what_is_not_there_is_taken_with_a_warning(priced):
    server, http, admin = priced
    for model, said in (("myriad-mini", None), ("local/support", None), ("local/suport", "no adapter"),
                        ("support", "account/name"), ("acme/support", "no adapter")):
        made = admin.post("/admin/v1/prices", json=SHARED | {"model": model})
        assert made.status_code == 201
        warnings = made.json()["warnings"]
        assert len(warnings) == (said is not None) and all(said in text and model in text for text in warnings), (model, warnings)


def test_rates_are_kept_as_they_are_written(priced):
    """As numbers or, from who has decimals and no exact numbers, as text."""
    server, http, admin = priced
    written = ['{"input": 0.3, "output": 123.456789012}', '{"input": "0.000000001", "output": 1e-9}', '{"input": 1e2, "output": "999.999999999"}']
    for body in written:
        admin.post("/admin/v1/prices", content=body, headers={"content-type": "application/json"}).raise_for_status()
    rates = [row["nano_usd"] for row in http.get("/v1/account/prices").json()["data"]]
    assert [(rate["input"], rate["output"]) for rate in rates] == [
        (300_000_000, 123_456_789_012), (1, 1), (100_000_000_000, 999_999_999_999)]
