"""What is measured of Myriad alone: a prompt that is in the prefix cache, and the time from start to the first answer."""

import time
from pathlib import Path

from engines import FILES, Myriad
from shape import prompts

CACHED_TOKENS = 2000
REPEATS = 3


def prefix_hit() -> dict:
    """Time to the one token of a prompt that is new, and of the same prompt again."""
    engine = Myriad("bf16")
    try:
        engine.start([])
        engine.generate(prompts(1, CACHED_TOKENS, seed=98), [None], 1)
        miss, hit = [], []
        for repeat in range(REPEATS):
            prompt = prompts(1, CACHED_TOKENS, seed=2000 + repeat)
            miss.append(engine.generate(prompt, [None], 1).seconds)
            hit.append(engine.generate(prompt, [None], 1).seconds)
        return {"miss_ms": milliseconds(miss), "hit_ms": milliseconds(hit), "ratio": round(sum(hit) / sum(miss), 4)}
    finally:
        engine.stop()


def start_to_answer() -> dict:
    """From the binary's start to its first answer, with a model of half a billion parameters that is in the page cache."""
    taken = []
    for _ in range(REPEATS):
        read_once(FILES / "large/model.safetensors")
        engine = Myriad("bf16")
        engine.model = "large"
        try:
            started = time.monotonic()
            engine.start([])
            engine.generate(prompts(1, 4, seed=1), [None], 1)
            taken.append(time.monotonic() - started)
        finally:
            engine.stop()
    return {"seconds": round(sorted(taken)[REPEATS // 2], 3)}


def read_once(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def milliseconds(seconds: list[float]) -> float:
    return round(sorted(seconds)[len(seconds) // 2] * 1e3, 2)
