"""Usage and costs as the OpenAI API shows them, read with its own client; the sums are those of /v1/account/usage."""

import time

import httpx
import openai
import pytest

from server import PATIENCE_S, Server, postgres_database
from talk import ask, connect


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shop(request, tmp_path_factory):
    """A server with prices where two keys, one of them a member's, have used a model and an adapter."""
    arguments = ("--database", postgres_database()) if request.param == "postgres" else ()
    server = Server(tmp_path_factory.mktemp("organization"), arguments).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": 0.1, "cached_input": 0.01, "output": 0.4}).raise_for_status()
        http.put("/v1/account/members/ann", json={"role": "owner"}).raise_for_status()
        key = http.post("/v1/account/keys", json={"name": "ann's", "member": "ann"}).json()
        for secret, models in ((None, ["myriad-mini", "support", "support@1"]), (key["key"], ["support", "extract"])):
            with connect(server, **({"api_key": secret} if secret else {})) as client:
                for model in models:
                    ask(client, model=model)
        yield server, http, key["id"]
    assert server.stop() == 0, server.output


@pytest.fixture
def organization(shop):
    server, http, _ = shop
    key = http.headers["authorization"].removeprefix("Bearer ")
    client = openai.OpenAI(base_url=server.base_url, api_key="none", admin_api_key=key, max_retries=0, timeout=PATIENCE_S,
                           _strict_response_validation=True)
    with client:
        yield client.admin.organization.usage


def pages(call, **query):
    """Every bucket, read page by page."""
    buckets, page = [], {}
    while True:
        answer = call(**query, **page)
        assert answer.object == "page" and all(bucket.object == "bucket" for bucket in answer.data)
        buckets += answer.data
        if not answer.has_more:
            assert answer.next_page is None
            return buckets
        page = {"page": answer.next_page}


def results(buckets):
    return [result for bucket in buckets for result in bucket.results]


@pytest.mark.parametrize("width, limit", [("1d", 31), ("1d", 1), ("1h", 168), ("1h", 5), ("1m", 1440), ("1m", 500)])
def test_buckets_follow_each_other_and_sum_to_the_accounts_usage(shop, organization, width, limit):
    _, http, _ = shop
    start = int(time.time()) - 86_400 - 12_345
    (usage,) = http.get("/v1/account/usage").json()["data"]
    buckets = pages(organization.completions, start_time=start, bucket_width=width, limit=limit)
    assert buckets[0].start_time == start and abs(buckets[-1].end_time - time.time()) < PATIENCE_S
    assert all(one.end_time == next.start_time for one, next in zip(buckets, buckets[1:]))
    assert all(bucket.start_time % {"1d": 86_400, "1h": 3_600, "1m": 60}[width] == 0 for bucket in buckets[1:])
    found = results(buckets)
    assert {result.object for result in found} == {"organization.usage.completions.result"}
    assert sum(result.num_model_requests for result in found) == usage["requests"] == 5
    assert sum(result.input_tokens for result in found) == usage["prompt_tokens"]
    assert sum(result.input_cached_tokens for result in found) == usage["cached_tokens"]
    assert sum(result.output_tokens for result in found) == usage["completion_tokens"]
    assert all(result.model is result.api_key_id is result.user_id is result.project_id is result.batch is None for result in found)


def test_costs_sum_to_the_accounts_usage_however_they_are_grouped(shop, organization):
    _, http, key = shop
    start = int(time.time()) - 40 * 86_400
    (usage,) = http.get("/v1/account/usage").json()["data"]
    for group_by in ([], ["line_item"], ["line_item", "api_key_id"], ["user_id", "project_id"]):
        found = results(pages(organization.costs, start_time=start, limit=7, **({"group_by": group_by} if group_by else {})))
        assert sum(result.amount.value_nano_usd for result in found) == usage["cost_nano_usd"] > 0
        assert abs(sum(result.amount.value for result in found) - usage["cost"]) < 1e-12
        assert {result.amount.currency for result in found} == {"usd"}
    by_adapter = {row["adapter"]: row["cost_nano_usd"] for row in http.get("/v1/account/usage?group_by=adapter").json()["data"]}
    found = results(pages(organization.costs, start_time=start, limit=180, group_by=["line_item"]))
    costs = {result.line_item: result.amount.value_nano_usd for result in found}
    assert costs == {adapter or "myriad-mini": cost for adapter, cost in by_adapter.items()}


def test_groups_and_filters(shop, organization):
    _, http, key = shop
    start = int(time.time()) - 86_400
    found = results(pages(organization.completions, start_time=start, group_by=["model", "api_key_id", "user_id", "batch"]))
    requests = {}
    for result in found:
        group = (result.model, result.api_key_id == key, result.user_id)
        requests[group] = requests.get(group, 0) + result.num_model_requests
        assert result.batch is False
    assert requests == {("myriad-mini", False, None): 1, ("local/support", False, None): 2,
                        ("local/support", True, "ann"): 1, ("local/extract", True, "ann"): 1}
    for only, count in (({"api_key_ids": [key]}, 2), ({"models": ["local/support"]}, 3), ({"user_ids": ["ann", "bob"]}, 2),
                        ({"models": ["local/support", "myriad-mini"], "api_key_ids": [key]}, 1), ({"models": ["other"]}, 0),
                        ({"project_ids": ["p"]}, 0), ({"batch": True}, 0), ({"batch": False}, 5)):
        found = results(pages(organization.completions, start_time=start, **only))
        assert sum(result.num_model_requests for result in found) == count, only
    # As a person types it.
    query = f"start_time={start}&group_by=models,api_key_ids&models=local/support&models=myriad-mini"
    data = http.get(f"/v1/organization/usage/completions?{query}").json()["data"]
    assert sum(result["num_model_requests"] for bucket in data for result in bucket["results"]) == 4


def test_what_cannot_be_asked_is_refused_by_name(shop):
    server, http, _ = shop
    now = int(time.time())
    for path, query, param in (
        ("usage/completions", {}, "start_time"),
        ("usage/completions", {"start_time": "yesterday"}, "start_time"),
        ("usage/completions", {"start_time": now, "end_time": now}, "end_time"),
        ("usage/completions", {"start_time": 0, "bucket_width": "1w"}, "bucket_width"),
        ("costs", {"start_time": 0, "bucket_width": "1h"}, "bucket_width"),
        ("usage/completions", {"start_time": 0, "limit": 32}, "limit"),
        ("costs", {"start_time": 0, "limit": 181}, "limit"),
        ("usage/completions", {"start_time": 0, "group_by": "colour"}, "group_by"),
        ("usage/completions", {"start_time": 0, "page": "elsewhere"}, "page"),
        ("usage/completions", {"start_time": 0, "models": ",".join("m" * 101)}, "models"),
    ):
        refused = http.get(f"/v1/organization/{path}", params=query)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param, (path, query, refused.text)
    scoped = http.post("/v1/account/keys", json={"scopes": ["inference"]}).json()["key"]
    answer = httpx.get(f"{server.base_url}/organization/costs?start_time=0", headers={"authorization": f"Bearer {scoped}"})
    assert answer.status_code == 403
