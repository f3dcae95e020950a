"""Chat completions, whole and streamed: the shapes that clients depend on."""

import pytest

from server import MODEL
from talk import PROMPT, ask, text_of


def test_a_reply_has_the_official_shape(client):
    reply = ask(client, extra_body={})
    assert reply.object == "chat.completion" and reply.model == MODEL and reply.created > 0
    assert reply.id and reply.system_fingerprint
    [choice] = reply.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None and not choice.message.tool_calls
    usage = reply.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert usage.cost == 0 and usage.cost_nano_usd == 0


def test_headers_carry_the_request_id(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=PROMPT, max_tokens=1)
    assert raw.headers["x-request-id"] == raw.parse().id
    assert float(raw.headers["openai-processing-ms"]) >= 0


def test_a_stream_keeps_the_contract(client):
    chunks = list(ask(client, stream=True))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" and len(chunk.choices) == 1 for chunk in chunks)
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert last.finish_reason == "length" and last.delta.model_dump(exclude_none=True) == {}
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert all(chunk.usage is None for chunk in chunks)
    assert text_of(chunks) == ask(client).choices[0].message.content


def test_guesses_from_the_text_change_nothing_but_their_count(client):
    words = [{"role": "user", "content": "Say this again:" + " the lamp is on the table." * 2}]
    with_guesses = ask(client, messages=words, max_tokens=96)
    without = ask(client, messages=words, max_tokens=96, extra_body={"ignore_eos": True, "speculation": False})
    assert with_guesses.choices[0].message.content == without.choices[0].message.content
    assert with_guesses.usage.completion_tokens_details.accepted_prediction_tokens > 0
    none = without.usage.completion_tokens_details
    assert (none.accepted_prediction_tokens, none.rejected_prediction_tokens) == (0, 0)


def test_usage_comes_last_and_only_when_asked(client):
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks)
    assert last.usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_the_wire_is_server_sent_events(http):
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 3, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode()
    frames = text.split("\n\n")
    assert frames[-1] == "" and frames[-2] == "data: [DONE]"
    assert all(frame.startswith(("data: {", ": ")) for frame in frames[:-2])


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_whole_and_in_order(client, stream):
    options = {"n": 3, "temperature": 1.0, "seed": 5}
    if not stream:
        reply = ask(client, **options)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage.completion_tokens == 72
        return
    texts, finished, order = {0: "", 1: "", 2: ""}, [], []
    for chunk in ask(client, stream=True, **options):
        for choice in chunk.choices:
            if choice.index not in order:
                order.append(choice.index)
            texts[choice.index] += choice.delta.content or ""
            assert choice.index not in finished
            if choice.finish_reason:
                finished.append(choice.index)
    assert order == [0, 1, 2] and sorted(finished) == [0, 1, 2]
    assert list(texts.values()) == [choice.message.content for choice in ask(client, **options).choices]


def test_null_for_every_optional_is_as_if_left_out(http, client):
    names = (
        "frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata n presence_penalty response_format seed "
        "service_tier stop store stream_options temperature tool_choice tools top_logprobs top_p user parallel_tool_calls stream"
    )
    body = {"model": MODEL, "messages": PROMPT} | dict.fromkeys(names.split())
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text


def test_content_may_come_in_parts(client):
    whole = ask(client, messages=[{"role": "system", "content": "Be brief."}, *PROMPT])
    text = PROMPT[0]["content"]
    parts = [{"type": "text", "text": text}]
    split = ask(client, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert whole.choices[0].message.content == split.choices[0].message.content


def test_characters_are_never_split(client):
    """Random draws at a high temperature give bytes in any order; the joined stream is what the whole reply says."""
    options = {"temperature": 2.0, "max_tokens": 200}
    for seed in range(4):
        whole = ask(client, seed=seed, **options).choices[0].message.content
        streamed = list(ask(client, seed=seed, stream=True, **options))
        assert text_of(streamed) == whole


def test_a_repeated_prompt_is_read_from_the_cache(client):
    messages = [{"role": "user", "content": "Where is my parcel? " * 12}]
    first = ask(client, messages=messages)
    again = ask(client, messages=messages)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert again.choices[0].message.content == first.choices[0].message.content
