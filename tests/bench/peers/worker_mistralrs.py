"""mistral.rs: prompts as text, which its tokenizer cuts into the same tokens.

Its completion call blocks its runner, so that requests at the same time are streams of its chat call (a template that adds nothing), all
opened before the first is read; its engine runs them in one batch meanwhile.
"""

import json
from pathlib import Path

import mistralrs
from shape import text, tokens_of
from worker import serve


class Engine:
    def __init__(self, files: str, adapters: list[str], threads: int, dtype: str) -> None:
        del threads  # by RAYON_NUM_THREADS
        folder = Path(files) / "model"
        tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        self.vocabulary = sorted(tokens, key=tokens.get)
        kind = getattr(mistralrs.ModelDType, dtype)
        if adapters:
            loras = [mistralrs.LoraAdapter(name, str(Path(files) / "adapters" / name)) for name in adapters]
            which = mistralrs.Which.Lora(str(folder), loras, arch=mistralrs.Architecture.Llama, dtype=kind, max_adapters=len(adapters), max_rank=64)
        else:
            which = mistralrs.Which.Plain(str(folder), arch=mistralrs.Architecture.Llama, dtype=kind)
        self.runner = mistralrs.Runner(which, max_seqs=32, prefix_cache_n=0, token_source="none")

    def stream(self, prompt: list[int], adapter: str | None, tokens: int):
        messages = [{"role": "user", "content": text(prompt)}]
        how = {"max_tokens": tokens, "temperature": 0.0, "top_k": 1, "ignore_eos": True, "stream": True}
        return self.runner.send_chat_completion_request(
            mistralrs.ChatCompletionRequest(messages, "default", **how, **({"adapter": adapter} if adapter else {}))
        )

    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> list[list[int]]:
        streams = [self.stream(prompt, adapter, tokens) for prompt, adapter in zip(prompts, adapters, strict=True)]
        return [self.read(stream, prompt, tokens) for stream, prompt in zip(streams, prompts, strict=True)]

    def read(self, stream, prompt: list[int], tokens: int) -> list[int]:
        answer, usage = "", None
        for chunk in stream:
            answer += chunk.choices[0].delta.content or ""
            usage = chunk.usage or usage
        if usage is None or (usage.prompt_tokens, usage.completion_tokens) != (len(prompt), tokens):
            raise RuntimeError(f"asked for {len(prompt)} tokens in and {tokens} out, got {usage and (usage.prompt_tokens, usage.completion_tokens)}")
        return tokens_of(answer, self.vocabulary)


if __name__ == "__main__":
    serve(Engine)
