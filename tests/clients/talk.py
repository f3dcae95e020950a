"""The official client, connected, and the question that most tests ask."""

import openai

from server import KEY, MODEL, PATIENCE_S, Server

PROMPT = [{"role": "user", "content": "Hello! I ordered a lamp last week and it has not arrived."}]


def connect(server: Server, **options) -> openai.OpenAI:
    options = {"api_key": KEY, "max_retries": 0, "timeout": PATIENCE_S, "_strict_response_validation": True} | options
    return openai.OpenAI(base_url=server.base_url, **options)


def connect_async(server: Server, **options) -> openai.AsyncOpenAI:
    options = {"api_key": KEY, "max_retries": 0, "timeout": PATIENCE_S, "_strict_response_validation": True} | options
    return openai.AsyncOpenAI(base_url=server.base_url, **options)


def ask(client: openai.OpenAI, **options):
    """A chat completion; greedy and 24 tokens long whatever the model says, unless told otherwise."""
    defaults = {"model": MODEL, "messages": PROMPT, "temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    return client.chat.completions.create(**defaults | options)


def text_of(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
