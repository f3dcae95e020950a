"""Revenue at Stripe: what its meter sums is what the ledger settled, to the nano-dollar, whatever fails in between."""

import re
import threading
import time

import httpx
import pytest

from receiver import Receiver, eventually
from talk import ask, connect
from test_webhooks import priced

pytestmark = [pytest.mark.books, pytest.mark.waits]

KEY = "sk_test_of_the_tests"


class StripeStandIn(Receiver):
    """Answers as Stripe does: an identifier counts once, its repeat is a 400."""

    def __init__(self):
        self.events: dict[str, dict] = {}
        self.refusal: dict | None = None
        self.lose_answers = 0
        super().__init__(self.meter)

    def meter(self, message):
        assert message.path == "/v1/billing/meter_events" and message.headers["authorization"] == f"Bearer {KEY}"
        form = message.form
        if self.refusal:
            return 400, {"error": {"message": self.refusal, "type": "invalid_request_error"}}
        identifier = form["identifier"]
        if identifier in self.events:
            said = f"An event already exists with identifier {identifier}."
            return 400, {"error": {"message": said, "type": "invalid_request_error"}}
        assert len(identifier) <= 100 and -300 < time.time() - int(form["timestamp"]) < 35 * 86_400
        self.events[identifier] = form
        if self.lose_answers:
            self.lose_answers -= 1
            return None
        return 200, {"object": "billing.meter_event"}

    def sum(self) -> int:
        return sum(int(event["payload[value]"]) for event in self.events.values())


@pytest.fixture
def stripe():
    stripe = StripeStandIn()
    yield stripe
    stripe.stop()


@pytest.fixture
def shop(own_server, database, stripe):
    """A server that exports to the stand-in, and an account that is tied to a customer there."""
    arguments = ("--stripe-key", KEY, "--stripe-meter", "myriad_spent", "--stripe-url", stripe.url, "--log", "debug")
    server = priced(own_server(*arguments, *database).start())
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        made = admin.post("/admin/v1/accounts", json={"id": "acme"}).json()
        assert made["stripe_customer"] is None
        assert tie(admin, "cus_acme").json()["stripe_customer"] == "cus_acme"
        yield server, admin, made["key"]
    assert KEY not in server.output


def tie(admin, customer, **fields):
    return admin.patch("/admin/v1/accounts/acme", json={"stripe_customer": customer} | fields)


def spend(server, key, tokens=10):
    with connect(server, api_key=key) as client:
        ask(client, max_tokens=tokens)


def export(admin, **fields) -> dict:
    """Closes hours up to now, the running one included."""
    done = admin.post("/admin/v1/export", json={"until": int(time.time()) + 1} | fields)
    assert done.status_code == 200, done.text
    return done.json()


def exports(admin) -> list[dict]:
    return admin.get("/admin/v1/export").raise_for_status().json()["data"]


def delivered(admin):
    eventually(lambda: all(row["status"] == "delivered" for row in exports(admin)), "deliveries only")


def settled(server, key) -> int:
    headers = {"authorization": f"Bearer {key}"}
    rows = httpx.get(f"{server.url}/v1/account/ledger?limit=1000", headers=headers).json()["data"]
    return sum(row["amount_nano_usd"] for row in rows if row["kind"] == "settle")


def test_what_the_meter_sums_is_what_the_ledger_settled(shop, stripe):
    server, admin, key = shop
    spend(server, server.key)  # Nobody's customer.
    [spend(server, key) for _ in range(3)]
    assert export(admin)["exported"] >= 1
    eventually(lambda: stripe.sum() == settled(server, key), "events of the first requests")
    for event in stripe.events.values():
        assert set(event) == {"event_name", "identifier", "timestamp", "payload[stripe_customer_id]", "payload[value]"}
        assert event["event_name"] == "myriad_spent" and event["payload[stripe_customer_id]"] == "cus_acme"
        assert int(event["timestamp"]) % 3600 == 0 and int(event["payload[value]"]) > 0
    assert export(admin)["exported"] == 0
    # The hour grew: a further revision has the difference.
    spend(server, key)
    assert export(admin)["exported"] >= 1
    eventually(lambda: stripe.sum() == settled(server, key), "events of the later request")
    delivered(admin)
    shown = exports(admin)
    assert {row["identifier"] for row in shown} == set(stripe.events)
    assert sum(row["amount_nano_usd"] for row in shown) == settled(server, key)
    assert len(stripe.messages) == len(stripe.events), "something was sent twice"


def test_what_stripe_refuses_is_shown_and_sent_again(shop, stripe):
    server, admin, key = shop
    stripe.refusal = "No active meter found"
    spend(server, key)
    export(admin)
    [row] = eventually(lambda: [row for row in exports(admin) if row["failure"]], "refusals")
    assert row["failure"] == "Stripe answered 400 Bad Request: No active meter found"
    assert row["status"] == "due" and row["account"] == "acme" and row["next_at"]
    stripe.refusal = None
    delivered(admin)
    assert stripe.sum() == settled(server, key)
    assert exports(admin)[0]["attempts"] >= 2
    # A wrong customer is put right, and what waits goes there.
    stripe.refusal = "No such customer"
    spend(server, key)
    export(admin)
    eventually(lambda: [row for row in exports(admin) if row["failure"]], "refusals")
    stripe.refusal = None
    tie(admin, "cus_right").raise_for_status()
    delivered(admin)
    assert stripe.sum() == settled(server, key)
    assert "cus_right" in {event["payload[stripe_customer_id]"] for event in stripe.events.values()}


def test_an_answer_that_was_lost_counts_once(shop, stripe):
    server, admin, key = shop
    stripe.lose_answers = 1
    spend(server, key)
    export(admin)
    delivered(admin)
    assert len(stripe.messages) == len(stripe.events) + 1
    assert stripe.sum() == settled(server, key)


def test_a_server_that_is_killed_while_it_exports_counts_nothing_twice(shop, stripe):
    server, admin, key = shop
    hold = threading.Event()
    meter = stripe.answer
    stripe.answer = lambda message: (meter(message), hold.wait(), None)[2]
    spend(server, key)
    export(admin)
    stripe.wait(1)
    server.kill()
    stripe.answer = meter
    hold.set()
    server.start()
    export(admin)
    delivered(admin)
    assert stripe.sum() == settled(server, key)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_two_servers_export_each_hour_once(shop, stripe, own_server, database):
    server, admin, key = shop
    other = own_server(*server.arguments).start()
    with other.http() as http, httpx.Client(base_url=other.ops_url, headers=http.headers) as second:
        for _ in range(3):
            [spend(one, key) for one in (server, other)]
            threads = [threading.Thread(target=export, args=(one,)) for one in (admin, second) * 3]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
    delivered(admin)
    eventually(lambda: stripe.sum() == settled(server, key), "events of all requests")
    assert len(stripe.messages) == len(stripe.events), "something was sent twice"


def test_the_command_line_shows_what_goes_to_stripe(shop, stripe):
    server, admin, key = shop

    def run(*arguments):
        done = server.cli("exports", *arguments, "--ops-url", server.ops_url, "--base-url", server.url, "--api-key", server.key)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Nothing goes to Stripe yet" in run()
    spend(server, key)
    export(admin)
    delivered(admin)
    rows = [re.split(r" {2,}", line) for line in run("list").splitlines()[1:]]
    assert {(account, customer, status) for _, account, customer, _, _, status, *_ in rows} == {("acme", "cus_acme", "delivered")}
    assert sum(round(float(row[4][1:]) * 1e9) for row in rows) == settled(server, key) > 0
    assert run("retry") == "0 taken up again.\n" == run("retry", rows[0][0]), "what was delivered must not go out again"


def test_who_is_tied_to_which_customer_is_checked(shop, own_server, stripe):
    server, admin, key = shop
    for wrong in ("acme", "cus_a b", 7, "cus_" + "a" * 300):
        assert tie(admin, wrong).json()["error"]["param"] == "stripe_customer"
    now = int(time.time())
    for wrong in (1, now - 35 * 86_400, now + 86_400):
        assert tie(admin, "cus_acme", stripe_since=wrong).json()["error"]["param"] == "stripe_since"
    alone = admin.patch("/admin/v1/accounts/acme", json={"stripe_since": now - 7_200})
    assert alone.status_code == 400 and alone.json()["error"]["param"] == "stripe_since"
    since = tie(admin, "cus_acme", stripe_since=now - 7_200).json()["stripe_since"]
    assert since == (now - 7_200) // 3_600 * 3_600, "the hour in which it began"
    assert tie(admin, "cus_acme").json()["stripe_since"] == since, "the same customer again changed something"
    assert tie(admin, None).json()["stripe_customer"] is None
    spend(server, key)
    assert export(admin)["exported"] == 0
    assert admin.post("/admin/v1/export", json={"retry": 7}).json()["error"]["param"] == "retry"
    assert export(admin, retry=True)["retried"] == 0 and export(admin, retry=["stripe acme 1 1"])["retried"] == 0
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.post(f"{server.ops_url}/admin/v1/export", headers=headers, json={}).status_code == 403
    plain = own_server().start()
    refused = httpx.post(f"{plain.ops_url}/admin/v1/export", headers=admin.headers, json={})
    assert refused.status_code == 409 and "--stripe-key" in refused.text
    with_half = own_server("--stripe-key", KEY)
    with pytest.raises(AssertionError, match="--stripe-key needs --stripe-meter"):
        with_half.start()
