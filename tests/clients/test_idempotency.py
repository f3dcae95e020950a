"""Idempotency-Key: the same request again gets the same answer, and is counted once."""

import threading

import pytest

BODY = {"model": "myriad-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 1.0}


def rows(http):
    return [row["request_id"] for row in http.get("/v1/account/requests", params={"limit": 1000}).json()["data"]]


def ask(http, key, body=BODY, path="/v1/chat/completions"):
    return http.post(path, json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeat_is_answered_the_same_and_counted_once(http, stream):
    key, body = f"repeat-{stream}-\u00e9".encode(), BODY | {"stream": stream}
    first = ask(http, key, body)
    assert first.status_code == 200 and "idempotent-replayed" not in first.headers
    second = ask(http, key, body)
    assert second.text == first.text and second.headers["idempotent-replayed"] == "true"
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-request-id"] == first.headers["x-request-id"]
    assert rows(http).count(first.headers["x-request-id"]) == 1
    other = ask(http, b"another-" + key, body)
    assert other.status_code == 200 and other.headers["x-request-id"] != first.headers["x-request-id"]


def test_another_body_or_path_under_the_same_key_is_refused(http):
    assert ask(http, "taken").status_code == 200
    for response in (ask(http, "taken", BODY | {"max_tokens": 3}),
                     ask(http, "taken", {"model": "myriad-mini", "prompt": "hello"}, "/v1/completions")):
        assert response.status_code == 409 and "Idempotency-Key" in response.json()["error"]["message"]
        assert response.headers["x-should-retry"] == "false"


def test_what_failed_can_be_sent_again_under_its_key(http):
    assert ask(http, "failed", BODY | {"max_tokens": -1}).status_code == 400
    assert ask(http, "failed").status_code == 200


def test_a_stream_that_its_client_left_is_not_kept(http):
    body = BODY | {"stream": True, "max_tokens": 1500, "ignore_eos": True}
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"Idempotency-Key": "left"}) as response:
        assert next(response.iter_lines())
    again = ask(http, "left", body)
    while again.status_code == 409:  # the server has not seen yet that we left
        assert "still running" in again.json()["error"]["message"] and int(again.headers["retry-after-ms"]) > 0
        again = ask(http, "left", body)
    assert again.status_code == 200 and again.text.endswith("data: [DONE]\n\n") and "idempotent-replayed" not in again.headers


def test_at_the_same_time_only_one_of_them_runs(http):
    body, answers = BODY | {"max_tokens": 800, "ignore_eos": True}, []
    threads = [threading.Thread(target=lambda: answers.append(ask(http, "at-once", body))) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    done = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(done) == 1 and {answer.status_code for answer in answers} <= {200, 409}


def test_a_key_has_a_bounded_length_and_needs_an_account(http):
    refused = ask(http, "k" * 256)
    assert refused.status_code == 400 and refused.headers["x-request-id"]
    large = http.post("/v1/chat/completions", content=b" " * (17 << 20), headers={"Idempotency-Key": "large"})
    assert large.status_code == 413 and "bytes" in large.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=BODY, headers={"Idempotency-Key": "k", "Authorization": "Bearer no"}).status_code == 401
