#!/usr/bin/env python3
"""How long a user waits for the first token: after a start, for a short prompt, and for a long one that the cache knows.

    tests/bench/first_token.py [--model FOLDER]        needs target/release/myriad

All on a server that does nothing else, through the public API. The model's files are read once before the server starts, so that they are in
the page cache. `from disk` is a long prompt that memory has forgotten and that comes back from `--kv-disk-mib`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from server import Server, prompt


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder of a base model (default: the built-in one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", type=int, default=16, help="tokens of the short prompt")
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--small-kv-mib", type=int, default=128, help="memory for the cache where the disk is measured")
    return parser.parse_args()


def first_ms(server: Server, tokens: list[int]) -> tuple[float, int]:
    reply = server.complete(tokens, 1)
    if reply.status != 200:
        raise SystemExit(f"a request was answered with {reply.status}")
    return reply.first_s * 1e3, reply.cached


def start_ms(model: list[str], folder: Path) -> float:
    """From the start of the process to the first token of a short prompt."""
    with Server(folder, model) as server:
        server.complete(prompt(0, 16), 1)
        return (time.monotonic() - server.started) * 1e3


def measure(server: Server, asked: argparse.Namespace) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"short": [], "miss": [], "hit": []}
    first_ms(server, prompt(0, asked.short))
    for number in range(1, asked.rounds + 1):
        found["short"].append(first_ms(server, prompt(number, asked.short))[0])
        long = prompt(1000 + number, asked.long)
        found["miss"].append(first_ms(server, long)[0])
        ms, cached = first_ms(server, long)
        if cached < asked.long - 32:
            raise SystemExit(f"only {cached} of {asked.long} tokens were cached")
        found["hit"].append(ms)
    return found


def from_disk(server: Server, asked: argparse.Namespace) -> list[float]:
    """Long prompts until the first ones are forgotten; then those again."""
    count = 0
    while server.metric("myriad_kv_disk_written_total") * 16 < asked.rounds * asked.long and count < 1000:
        first_ms(server, prompt(2000 + count, asked.long))
        count += 1
    again = [first_ms(server, prompt(2000 + number, asked.long)) for number in range(asked.rounds)]
    return [ms for ms, cached in again if cached >= asked.long - 32]


def main() -> None:
    asked = options()
    model = ["--model", asked.model] if asked.model else []
    for file in Path(asked.model).glob("*") if asked.model else []:
        file.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("start to first answer", [start_ms(model, folder / f"start-{number}") for number in range(3)])
        with Server(folder / "memory", model) as server:
            found = measure(server, asked)
        miss = statistics.median(found["miss"])
        report(f"{asked.short} tokens", found["short"])
        report(f"{asked.long} tokens, new", found["miss"])
        report(f"{asked.long} tokens, cached", found["hit"], miss)
        small = ["--kv-memory-mib", str(asked.small_kv_mib), "--kv-disk-mib", "4096"]
        with Server(folder / "disk", [*model, *small]) as server:
            report(f"{asked.long} tokens, from disk", from_disk(server, asked), miss)


def report(what: str, values: list[float], miss: float | None = None) -> None:
    if not values:
        print(f"{what}: never")
        return
    of = f", {statistics.median(values) / miss:.1%} of new" if miss else ""
    print(f"{what}: {statistics.median(values):.1f} ms ({min(values):.1f} to {max(values):.1f}){of}", flush=True)


if __name__ == "__main__":
    main()
