"""Every sampling parameter changes what it says, and nothing else."""

import json
import math
from collections import Counter

import pytest

from server import MODEL_FOLDER
from talk import ask, text_of


def content(reply) -> str:
    return reply.choices[0].message.content


def extra(**options) -> dict:
    return {"extra_body": {"ignore_eos": True} | options}


def token_id(text: str) -> int:
    vocabulary = json.loads((MODEL_FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    return vocabulary[text]


def test_a_seed_makes_a_draw_repeatable(client):
    draws = [content(ask(client, temperature=1.5, seed=seed)) for seed in (1, 2, 3, 4)]
    assert draws == [content(ask(client, temperature=1.5, seed=seed)) for seed in (1, 2, 3, 4)]
    assert len(set(draws)) > 1


def test_the_same_seed_draws_the_same_logprobs_streamed_or_not(client):
    options = {"temperature": 1.0, "seed": 11, "logprobs": True, "top_logprobs": 3}
    whole = ask(client, **options).choices[0].logprobs.content
    chunks = ask(client, stream=True, **options)
    streamed = [token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content]
    assert streamed == whole


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0, "top_p": 1e-6},
        {"temperature": 2.0, **extra(top_k=1)},
        {"temperature": 2.0, **extra(min_p=1.0)},
        {"temperature": 0, "seed": 3},
    ],
    ids=["top_p", "top_k", "min_p", "seed"],
)
def test_the_narrowest_choice_is_the_greedy_one(client, options):
    assert content(ask(client, **options)) == content(ask(client))


def test_penalties_decide_how_often_tokens_come_back(client):
    def distinct(**options) -> int:
        tokens = ask(client, max_tokens=60, logprobs=True, **options).choices[0].logprobs.content
        return len({tuple(token.bytes or token.token.encode()) for token in tokens})

    assert distinct(frequency_penalty=2.0) > distinct(frequency_penalty=-2.0)
    assert distinct(presence_penalty=2.0) >= distinct(presence_penalty=-2.0)
    assert distinct(**extra(repetition_penalty=2.0)) > distinct(**extra(repetition_penalty=0.5))


def test_a_bias_forces_or_bans_a_token(client):
    wanted = token_id("a")
    reply = ask(client, logit_bias={str(wanted): 100})
    assert content(reply) == "a" * 24
    banned = ask(client, logit_bias={str(wanted): -100}, temperature=1.5, seed=1, max_tokens=60, logprobs=True)
    assert all(token.token != "a" for token in banned.choices[0].logprobs.content)


def test_logprobs_agree_with_the_text(client):
    choice = ask(client, logprobs=True, top_logprobs=5).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 24
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 5 and token.logprob <= 0
        best = [alternative.logprob for alternative in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        # The end of the answer is reported though `ignore_eos` forbids to draw it; what is drawn is the best of the rest.
        drawn = [top for top in token.top_logprobs if top.bytes == token.bytes and top.token == token.token]
        assert drawn and drawn[0].logprob == token.logprob and token.top_logprobs.index(drawn[0]) <= 1
    without = ask(client, logprobs=True).choices[0].logprobs.content
    assert [token.logprob for token in without] == [token.logprob for token in tokens]
    assert all(token.top_logprobs == [] for token in without)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_count(client, name):
    options = {"max_tokens": None, name: 7}
    reply = ask(client, **options)
    assert reply.usage.completion_tokens == 7 and reply.choices[0].finish_reason == "length"


def test_the_model_stops_by_itself_unless_told_not_to(client):
    hello = [{"role": "user", "content": "Hello!"}]
    natural = ask(client, messages=hello, max_tokens=200, extra_body={})
    assert natural.choices[0].finish_reason == "stop" and natural.usage.completion_tokens < 200
    longer = ask(client, messages=hello, max_tokens=200)
    assert longer.choices[0].finish_reason == "length" and longer.usage.completion_tokens == 200
    fewest = natural.usage.completion_tokens + 5
    assert ask(client, messages=hello, max_tokens=200, extra_body={"min_tokens": fewest}).usage.completion_tokens >= fewest


def stop_in(text: str) -> str:
    """A piece of the text's later half."""
    start = len(text) // 2
    return text[start : start + 5]


def test_a_stop_string_cuts_the_answer_and_never_shows(client):
    text = content(ask(client))
    stop = stop_in(text)
    expected = text[: text.index(stop)]
    whole = ask(client, stop=stop)
    assert content(whole) == expected and whole.choices[0].finish_reason == "stop"
    assert 0 < whole.usage.completion_tokens < 24
    shown = ""
    for chunk in ask(client, stop=["never in it", stop], stream=True):
        shown += text_of([chunk])
        assert expected.startswith(shown), "a prefix of the stop string leaked"
    assert shown == expected


def test_a_stop_string_that_only_begins_is_shown_in_the_end(client):
    text = content(ask(client))
    assert text_of(ask(client, stop=text[-3:] + "\x00", stream=True)) == text


def test_random_draws_follow_the_probabilities(client):
    """64 draws of one token: the most likely one must not be rarer than its probability allows (p below 1e-6)."""
    top = ask(client, max_tokens=1, logprobs=True, top_logprobs=1, temperature=1.0, seed=0).choices[0].logprobs.content[0]
    best = top.top_logprobs[0]
    drawn = Counter(
        choice.logprobs.content[0].token
        for choice in ask(client, max_tokens=1, n=64, temperature=1.0, seed=9, logprobs=True).choices
    )
    share = math.exp(best.logprob)
    assert drawn[best.token] / 64 > share - 5 * (share * (1 - share) / 64) ** 0.5 - 0.02
