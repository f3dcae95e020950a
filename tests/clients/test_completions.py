"""Text completions: echo, scoring, token prompts, many prompts."""

import json

import openai
import pytest

from server import MODEL, MODEL_FOLDER

TEXT = "Hello, where is my order"


def complete(client: openai.OpenAI, **options):
    defaults = {"model": MODEL, "prompt": TEXT, "temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    return client.completions.create(**defaults | options)


def test_a_reply_has_the_official_shape(client):
    reply = complete(client)
    assert reply.object == "text_completion" and reply.model == MODEL and reply.id and reply.created
    [choice] = reply.choices
    assert choice.text and choice.finish_reason == "length" and choice.logprobs is None
    assert reply.usage.completion_tokens == 12


def test_a_stream_says_the_same(lenient_client):
    chunks = list(complete(lenient_client, stream=True, stream_options={"include_usage": True}))
    *texts, usage = chunks
    assert usage.choices == [] and usage.usage.completion_tokens == 12
    assert "".join(chunk.choices[0].text for chunk in texts) == complete(lenient_client).choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in texts if chunk.choices[0].finish_reason] == ["length"]


def test_logprobs_cover_every_token(client):
    logprobs = complete(client, logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 12
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert 1 <= len(top) <= 4 and token in top and value <= max(top.values())


def test_echo_scores_the_prompt(lenient_client):
    reply = complete(lenient_client, echo=True, logprobs=2)
    [choice] = reply.choices
    assert choice.text.startswith(TEXT) and choice.text == TEXT + complete(lenient_client).choices[0].text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == reply.usage.prompt_tokens + 12
    generated = complete(lenient_client, logprobs=2).choices[0].logprobs
    assert choice.logprobs.token_logprobs[-12:] == generated.token_logprobs


def test_a_prompt_can_be_scored_without_an_answer(lenient_client):
    reply = complete(lenient_client, echo=True, logprobs=1, max_tokens=0)
    assert reply.usage.completion_tokens == 0
    assert reply.choices[0].text == TEXT
    assert len(reply.choices[0].logprobs.tokens) == reply.usage.prompt_tokens


def test_scoring_gives_the_bits_that_generation_gave(lenient_client):
    """What a prompt's tokens score does not depend on whether they were generated, prefilled at once or read from the cache."""
    first = complete(lenient_client, echo=True, logprobs=0).choices[0]
    again = complete(lenient_client, prompt=first.text, echo=True, logprobs=0, max_tokens=0).choices[0]
    if again.logprobs.tokens == first.logprobs.tokens:
        assert again.logprobs.token_logprobs == first.logprobs.token_logprobs
    else:  # generation need not tokenise as the tokenizer does; the common beginning still agrees
        same = next(i for i, pair in enumerate(zip(again.logprobs.tokens, first.logprobs.tokens)) if pair[0] != pair[1])
        assert again.logprobs.token_logprobs[:same] == first.logprobs.token_logprobs[:same]


def test_prompts_may_be_tokens(client):
    tokens = [5, 9, 14, 20, 5, 7]
    one = complete(client, prompt=tokens)
    assert one.usage.prompt_tokens == 6
    other = complete(client, prompt=[[8, 6, 4], tokens])
    assert [choice.index for choice in other.choices] == [0, 1]
    assert other.choices[1].text == one.choices[0].text and other.usage.prompt_tokens == 9


def test_many_prompts_are_answered_in_order(client):
    prompts = [TEXT, "A refund for", "The parcel is"]
    together = complete(client, prompt=prompts, n=2)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3, 4, 5]
    alone = [complete(client, prompt=prompt) for prompt in prompts]
    assert [choice.text for choice in together.choices[::2]] == [reply.choices[0].text for reply in alone]
    assert together.usage.prompt_tokens == sum(reply.usage.prompt_tokens for reply in alone)
    assert together.usage.completion_tokens == 72


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_lie_in_the_echoed_text(lenient_client, stream):
    """Special tokens that the prompt names are shown, and so take their place."""
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    reply = complete(lenient_client, prompt=prompt, echo=True, logprobs=1, stream=stream)
    choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
    text = "".join(choice.text for choice in choices)
    scores = [choice.logprobs for choice in choices if choice.logprobs]
    pairs = [pair for score in scores for pair in zip(score.tokens, score.text_offset, strict=True)]
    assert text.startswith(prompt) and [offset for _, offset in pairs] == sorted(offset for _, offset in pairs)
    plain = [(token, offset) for token, offset in pairs if not token.startswith("bytes:")]
    named = [(token, offset) for token, offset in plain if offset < len(prompt) or not token.startswith("<|")]
    assert all(text[offset:].startswith(token) for token, offset in named), pairs
    assert pairs[0] == ("<|im_start|>", 0) and pairs[1][1] == len("<|im_start|>")


def test_a_prompt_of_one_special_token_is_scored(lenient_client):
    choice = complete(lenient_client, prompt="<|im_end|>", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert choice.text == "<|im_end|>"
    assert choice.logprobs.tokens == ["<|im_end|>"] and choice.logprobs.text_offset == [0]
    assert choice.logprobs.token_logprobs == [None] and choice.logprobs.top_logprobs == [None]


@pytest.mark.parametrize(
    "options", [{"prompt": []}, {"prompt": [10**6]}, {"prompt": [[]]}, {"logprobs": 1000}, {"max_tokens": -1}]
)
def test_what_cannot_be_completed_is_refused(client, options):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **options)
    assert caught.value.param == next(iter(options))


def test_pieces_of_a_character_are_told_apart(lenient_client):
    vocabulary = json.loads((MODEL_FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    emoji = "\N{SMILING FACE WITH SUNGLASSES}".encode()
    # The byte-level alphabet shows bytes from 0xa1 as themselves and 0x80 to 0xa0 from U+0122 on.
    ids = [vocabulary[chr(byte) if byte > 0xa0 else chr(0x122 + byte - 0x80)] for byte in emoji]
    for id, byte in zip(ids, emoji):
        choice = complete(lenient_client, max_tokens=1, logprobs=2, logit_bias={str(id): 100}).choices[0]
        [token], [top] = choice.logprobs.tokens, choice.logprobs.top_logprobs
        assert token == f"bytes:\\x{byte:02x}" and token in top
    prompt = complete(lenient_client, prompt=ids, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert prompt.text == emoji.decode() and prompt.logprobs.text_offset == [0, 1, 1, 1]
