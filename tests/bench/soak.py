#!/usr/bin/env python3
"""Twice as many requests as the server can answer, for long: memory must not grow, and what is taken in must still be answered.

    tests/bench/soak.py [--minutes 20] [--model FOLDER]        needs target/release/myriad

First the capacity is measured, with as many requests at once as the server runs. Then requests come evenly at twice that rate, whatever
becomes of them, from the first account. Refused ones (429, 503) must say when to come back and are not sent again. Fails where memory after
the warm-up grows by more than --growth-mib, where an accepted request is not answered in full, or where none was refused.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server import Reply, Server, prompt

RUNNING, QUEUE, KV_MIB = 16, 64, 64
WARM_UP = 0.3


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--model", help="folder of a base model (default: the built-in one)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--growth-mib", type=float, default=16, help="how far memory may grow after the warm-up")
    return parser.parse_args()


def capacity(server: Server, asked: argparse.Namespace) -> float:
    """Requests per second with as many at once as the server runs."""
    began = time.monotonic()
    ended = []

    def work(worker: int) -> None:
        number = 0
        while time.monotonic() - began < 10:
            server.complete(prompt(worker << 32 | number, asked.prompt_tokens), asked.output_tokens)
            ended.append(time.monotonic())
            number += 1

    with ThreadPoolExecutor(RUNNING) as pool:
        list(pool.map(work, range(1, RUNNING + 1)))
    return len(ended) / (max(ended) - began)


class Soak:
    def __init__(self, server: Server, asked: argparse.Namespace, rate: float):
        self.server, self.asked, self.rate = server, asked, rate
        self.began = time.monotonic()
        self.seconds = asked.minutes * 60
        self.replies: list[Reply] = []
        self.errors: list[str] = []
        self.memory: list[tuple[float, float]] = []

    def send(self, number: int) -> None:
        try:
            self.replies.append(self.server.complete(prompt(number, self.asked.prompt_tokens), self.asked.output_tokens))
        except OSError as error:
            self.errors.append(str(error))

    def watch(self) -> None:
        every = max(self.seconds / 60, 1)
        while (now := time.monotonic() - self.began) < self.seconds:
            self.memory.append((now, self.server.rss_mib()))
            print(f"{now:6.0f} s  {self.memory[-1][1]:8.1f} MiB  {len(self.replies)} replies", flush=True)
            time.sleep(every)

    def run(self) -> None:
        watcher = threading.Thread(target=self.watch)
        watcher.start()
        with ThreadPoolExecutor(RUNNING + QUEUE + 32) as pool:
            number = 0
            while (due := number / self.rate) < self.seconds:
                time.sleep(max(0, self.began + due - time.monotonic()))
                pool.submit(self.send, number)
                number += 1
        watcher.join()

    def report(self) -> list[str]:
        accepted = [reply for reply in self.replies if reply.status == 200]
        refused = [reply for reply in self.replies if reply.status in (429, 503)]
        warm = max(mib for at, mib in self.memory if at <= self.seconds * WARM_UP)
        last = max(mib for at, mib in self.memory if at > self.seconds * WARM_UP)
        print(f"sent {len(self.replies)} at {self.rate:.1f}/s, refused {len(refused) / max(len(self.replies), 1):.1%}")
        if len(accepted) > 1:
            for what, values in {"first token": [r.first_s for r in accepted], "whole answer": [r.total_s for r in accepted]}.items():
                quantiles = statistics.quantiles(values, n=100)
                print(f"accepted, {what}: p50 {quantiles[49]:.2f} s, p99 {quantiles[98]:.2f} s")
        if refused:
            hints = sorted(int(reply.retry_after or 0) for reply in refused)
            print(f"Retry-After: {hints[0]} to {hints[-1]} s")
        print(f"memory: {warm:.1f} MiB at most in the warm-up, {last:.1f} MiB after it")
        faults = {
            f"memory grew by {last - warm:.1f} MiB": last - warm > self.asked.growth_mib,
            "nobody was refused: this was no overload": not refused,
            "a refusal did not say when to come back": any(not reply.retry_after for reply in refused),
            "an accepted request was not answered in full": any(r.tokens != self.asked.output_tokens for r in accepted),
            f"{len(self.replies) - len(accepted) - len(refused)} other replies": len(accepted) + len(refused) != len(self.replies),
            f"{len(self.errors)} requests failed: {self.errors[:1]}": bool(self.errors),
        }
        return [fault for fault, found in faults.items() if found]


def main() -> None:
    asked = options()
    limits = ["--max-running", str(RUNNING), "--queue", str(QUEUE), "--kv-memory-mib", str(KV_MIB)]
    model = ["--model", asked.model] if asked.model else []
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), [*limits, *model]) as server:
        rate = capacity(server, asked)
        print(f"capacity: {rate:.1f} requests/s of {asked.prompt_tokens} + {asked.output_tokens} tokens", flush=True)
        soak = Soak(server, asked, 2 * rate)
        soak.run()
        faults = soak.report()
    for fault in faults:
        print(f"FAILED: {fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
