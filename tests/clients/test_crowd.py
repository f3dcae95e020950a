"""An answer does not depend on the neighbours: bit-identical alone and in a crowd."""

import asyncio

from server import MODEL
from talk import ask, connect, connect_async

QUESTIONS = [
    "Where is my order?",
    "I want my money back. " * 6,
    "Hello",
    "Extract the name and the city: Anna Berg lives in Oslo. " * 4,
]


def request(number: int, models: list[str]) -> dict:
    """Greedy and drawn, short and long, streamed by another test; the seed is the number."""
    return {
        "model": models[number % len(models)],
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)] + f" ({number})"}],
        "max_tokens": 8 + number % 5 * 8,
        "temperature": 0.0 if number % 3 else 0.9,
        "seed": number,
        "logprobs": True,
        "top_logprobs": 2,
    }


def essence(reply) -> tuple:
    choice = reply.choices[0]
    bits = [(token.token, token.logprob, [top.logprob for top in token.top_logprobs]) for token in choice.logprobs.content]
    return choice.message.content, choice.finish_reason, bits, reply.usage.prompt_tokens, reply.usage.completion_tokens


async def together(server, requests: list[dict]) -> list:
    async with connect_async(server) as client:
        return await asyncio.gather(*(ask(client, **request) for request in requests))


def test_32_requests_on_8_adapters_answer_as_they_do_alone(server, client, random_adapters):
    models = [MODEL, *random_adapters]
    requests = [request(number, models) for number in range(32)]
    crowd = [essence(reply) for reply in asyncio.run(together(server, requests))]
    alone = [essence(ask(client, **request)) for request in requests]
    assert crowd == alone
    assert len({text for text, *_ in alone}) > 20, "the adapters answer differently"


def test_threads_prefill_chunks_and_a_cold_cache_change_nothing(own_server, server, client):
    requests = [request(number, [MODEL, "support", "extract"]) for number in range(6)]
    expected = [essence(ask(client, **request)) for request in requests]
    other = own_server("--threads", "1", "--step-tokens", "7").start()
    replies = [ask(connect(other), **request) for request in requests]
    assert [essence(reply) for reply in replies] == expected
    fingerprint = ask(client, max_tokens=1).system_fingerprint
    assert {reply.system_fingerprint for reply in replies} == {fingerprint}
