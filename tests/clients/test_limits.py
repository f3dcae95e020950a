"""Caps and alerts: nothing is spent over a cap, whoever asks and however many ask at once."""

import threading

import httpx
import pytest
from openai import APIStatusError

from talk import connect
from test_credit import PATIENT, TOKEN, share_what_a_large_request_left, shop, shops, wait_until  # noqa: F401

pytestmark = pytest.mark.books


def limits(server, key):
    return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"})


def spent(server, key):
    with limits(server, key) as http:
        return sum(row["cost_nano_usd"] for row in http.get("/v1/account/requests?limit=1000").json()["data"])


@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_a_cap_ends_the_answer_that_reaches_it_and_refuses_the_next(shop, period):  # noqa: F811
    server, admin, key = shop
    admin.patch("/admin/v1/accounts/acme", json={"credit": "unlimited"})
    with connect(server, api_key=key) as client, limits(server, key) as http:
        before = client.chat.completions.create(**PATIENT, max_tokens=20).usage.cost_nano_usd
        cap = before + 1_000_000
        assert http.post("/v1/account/limits", json={"period": period, "amount_nano_usd": cap}).status_code == 201
        reply = client.chat.completions.create(**PATIENT)
        assert reply.choices[0].stop_reason == "insufficient_quota"
        total = before + reply.usage.cost_nano_usd
        assert cap - TOKEN < total <= cap
        with pytest.raises(APIStatusError, match="cap") as refused:
            client.chat.completions.create(**PATIENT)
        assert refused.value.status_code == 402
        [shown] = http.get("/v1/account/limits").json()["data"]
        assert (shown["spent_nano_usd"], shown["amount_nano_usd"], shown["set_by"]) == (total, cap, "account")
        # Raised, it goes on; removed, it no longer counts.
        http.post("/v1/account/limits", json={"period": period, "amount_nano_usd": cap + 100 * TOKEN}).raise_for_status()
        assert client.chat.completions.create(**PATIENT, max_tokens=50).choices[0].finish_reason == "length"
        with pytest.raises(APIStatusError):
            client.chat.completions.create(**PATIENT, max_tokens=50)
        [shown] = http.get("/v1/account/limits").json()["data"]
        assert http.delete(f"/v1/account/limits/{shown['id']}").status_code == 200
        assert client.chat.completions.create(**PATIENT, max_tokens=50).choices[0].finish_reason == "length"


@pytest.mark.parametrize("scope", ["account", "key", "adapter"])
def test_a_cap_counts_what_was_spent_before_it_was_set_again(shop, scope):  # noqa: F811
    server, admin, key = shop
    with server.http() as http, connect(server) as client:
        own = http.get("/v1/account/keys").json()["data"][0]["id"]
        subject = {"account": {}, "key": {"subject": own}, "adapter": {"subject": "local/support"}}[scope]
        cap = {"scope": scope, "period": "month"} | subject

        def ask():
            return client.chat.completions.create(**PATIENT | {"model": "support"}, max_tokens=5)

        made = http.post("/v1/account/limits", json=cap | {"amount": 1}).json()
        ask()
        assert http.delete(f"/v1/account/limits/{made['id']}").status_code == 200
        cost = sum(ask().usage.cost_nano_usd for _ in range(3))
        assert cost > 0
        http.post("/v1/account/limits", json=cap | {"amount": 0}).raise_for_status()
        for _ in range(10):
            with pytest.raises(APIStatusError, match="cap") as refused:
                ask()
            assert refused.value.status_code == 402


def test_a_cap_counts_the_requests_that_run_when_it_is_set(shop):  # noqa: F811
    server, admin, key = shop
    admin.patch("/admin/v1/accounts/acme", json={"credit": "unlimited"})
    with connect(server, api_key=key) as client, limits(server, key) as http:
        streams = [client.chat.completions.create(**PATIENT, max_tokens=300, stream=True) for _ in range(4)]
        for stream in streams:
            next(iter(stream))
        # Those that run will spend more than that.
        cap = 2 * 300 * TOKEN
        http.post("/v1/account/limits", json={"period": "total", "amount_nano_usd": cap}).raise_for_status()
        with pytest.raises(APIStatusError, match="cap"):
            client.chat.completions.create(**PATIENT, max_tokens=1)
        for stream in streams:
            for _ in stream:
                pass
        ran = spent(server, key)
        assert ran > 4 * 300 * TOKEN
        for _ in range(5):
            with pytest.raises(APIStatusError, match="cap"):
                client.chat.completions.create(**PATIENT, max_tokens=1)
        assert spent(server, key) == ran


def test_caps_of_a_key_and_of_an_adapter_bind_only_them(shop):  # noqa: F811
    server, admin, key = shop
    with server.http() as http, connect(server) as client:
        own = http.get("/v1/account/keys").json()["data"][0]["id"]
        other = http.post("/v1/account/keys", json={"name": "other"}).json()
        http.post("/v1/account/limits", json={"scope": "key", "subject": own, "period": "day", "amount_nano_usd": 0}).raise_for_status()
        with pytest.raises(APIStatusError, match="cap"):
            client.chat.completions.create(**PATIENT, max_tokens=5)
        with connect(server, api_key=other["key"]) as free:
            assert free.chat.completions.create(**PATIENT, max_tokens=5).usage.completion_tokens == 5
            cap = {"scope": "adapter", "subject": "local/support", "period": "month", "amount_nano_usd": 0}
            http.post("/v1/account/limits", json=cap).raise_for_status()
            with pytest.raises(APIStatusError, match="cap"):
                free.chat.completions.create(**PATIENT | {"model": "support"}, max_tokens=5)
            assert free.chat.completions.create(**PATIENT | {"model": "sql"}, max_tokens=5).usage.completion_tokens == 5
        assert http.post("/v1/account/limits", json={"period": "week", "amount": 1}).json()["error"]["param"] == "period"
        assert http.post("/v1/account/limits", json={"scope": "key", "period": "day", "amount": 1}).json()["error"]["param"] == "subject"


def test_a_cap_on_what_the_account_does_not_have_is_refused(shop):  # noqa: F811
    server, admin, key = shop
    with limits(server, key) as acme, server.http() as http:
        # Another account's adapter is as absent as one that never was: there is no telling them apart.
        answers = [acme.post("/v1/account/limits", json={"scope": "adapter", "subject": subject, "period": "day", "amount": 1})
                   for subject in ("local/support", "local/nothing", "acme/support", "support", "myriad-mini", "a//b")]
        assert {answer.status_code for answer in answers} == {400} and len({answer.text for answer in answers}) == 1
        assert answers[0].json()["error"]["param"] == "subject" and "no such adapter" in answers[0].json()["error"]["message"]
        by_operator = admin.post("/admin/v1/accounts/acme/limits", json={"scope": "adapter", "subject": "local/support", "period": "day", "amount": 1})
        assert by_operator.status_code == 400 and acme.get("/v1/account/limits").json()["data"] == []
        version = http.post("/v1/account/limits", json={"scope": "adapter", "subject": "local/support@1", "period": "day", "amount": 1})
        assert version.status_code == 400 and "leave out the @" in version.json()["error"]["message"]
        # A bare name is the account's own, and is kept in full, as requests name it.
        made = http.post("/v1/account/limits", json={"scope": "adapter", "subject": "support", "period": "day", "amount": 0})
        assert made.status_code == 201 and made.json()["subject"] == "local/support"
        with connect(server) as client, pytest.raises(APIStatusError, match="cap"):
            client.chat.completions.create(**PATIENT | {"model": "support"}, max_tokens=5)


def test_many_at_once_do_not_exceed_a_cap_and_the_operators_stays(shop):  # noqa: F811
    server, admin, key = shop
    admin.post("/admin/v1/credits", json={"account": "acme", "amount": 1}).raise_for_status()
    cap = 2_000_000
    made = admin.post("/admin/v1/accounts/acme/limits", json={"period": "day", "amount_nano_usd": cap}).json()
    with limits(server, key) as http:
        assert http.delete(f"/v1/account/limits/{made['id']}").status_code == 404
        http.post("/v1/account/limits", json={"period": "day", "amount": 100}).raise_for_status()

    def ask():
        with connect(server, api_key=key) as client:
            try:
                client.chat.completions.create(**PATIENT)
            except APIStatusError as refused:
                assert refused.status_code == 402

    threads = [threading.Thread(target=ask) for _ in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert cap - 12 * TOKEN < spent(server, key) <= cap
    found = admin.get("/admin/v1/reconciliation?days=2").json()
    assert found["differences"] == 0 and found["compared"] > 10, found


def test_what_one_server_has_leased_of_a_cap_and_does_not_use_another_one_may_spend(shops):  # noqa: F811
    first, second, admin, key = shops
    admin.patch("/admin/v1/accounts/acme", json={"credit": "unlimited"}).raise_for_status()
    cap = {"period": "total", "amount_nano_usd": 2_000 * TOKEN}
    with limits(first, key) as http, limits(second, key) as other:
        http.post("/v1/account/limits", json=cap).raise_for_status()
        wait_until(lambda: other.get("/v1/account/limits").json()["data"])
    share_what_a_large_request_left(first, second, key)
    assert 0 < spent(first, key) <= cap["amount_nano_usd"]
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    assert found["differences"] == 0, found
