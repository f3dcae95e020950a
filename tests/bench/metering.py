#!/usr/bin/env python3
"""What metering costs: requests per second and time to first token without it, on SQLite and on PostgreSQL, in one run.

    tests/bench/metering.py --help        needs target/release/myriad and the PostgreSQL server programs

Three servers serve the same model, priced and prepaid where metering is on. Each round measures all three, one after the other: first
how many requests per second it does at most (64 at once), then, at half of what the slowest did, the time to first token of requests
that come evenly spaced. The table has the medians of the rounds, and the share of the answers whose first token, computed, waited for
the request's row for at most a millisecond (the servers' own `myriad_row_wait_seconds`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/myriad"
KEY = "sk-myriad-key-of-the-metering-bench"
PORTS = {"off": (18600, 19600), "SQLite": (18601, 19601), "PostgreSQL": (18602, 19602)}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="requests of each measurement")
    parser.add_argument("--prompt-tokens", default="8")
    parser.add_argument("--output-tokens", default="2")
    parser.add_argument("--rate", type=float, help="requests per second of the second measurement; the first one is left out")
    parser.add_argument("--model", help="folder of a base model (default: the built-in one)")
    return parser.parse_args()


def call(url: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    method = "PATCH" if url.endswith("/accounts/local") else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as reply:
        return json.load(reply)


def start(mode: str, folder: Path, arguments: list) -> subprocess.Popen:
    port, ops = PORTS[mode]
    command = [BINARY, "serve", "--listen", f"127.0.0.1:{port}", "--ops-listen", f"127.0.0.1:{ops}", "--data", folder / mode, *arguments]
    server = subprocess.Popen(command, env=os.environ | {"MYRIAD_BOOTSTRAP_KEY": KEY, "HOME": str(folder)}, stdout=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    if mode != "off":
        call(f"http://127.0.0.1:{ops}/admin/v1/prices", {"input": 0.5, "output": 2})
        call(f"http://127.0.0.1:{ops}/admin/v1/accounts/local", {"credit": "prepaid"})
        call(f"http://127.0.0.1:{ops}/admin/v1/credits", {"account": "local", "amount": 100000})
    return server


def row_waits(mode: str) -> tuple[int, int]:
    """Answers so far, and those whose beginning waited for their row at most a millisecond."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORTS[mode][1]}/metrics", timeout=10) as reply:
        lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line.startswith("myriad_row_wait_seconds"))
    return int(lines["myriad_row_wait_seconds_count"]), int(lines['myriad_row_wait_seconds_bucket{le="0.001"}'])


def bench(mode: str, asked: argparse.Namespace, out: Path, *arguments: str) -> dict:
    shape = ["--prompt-tokens", asked.prompt_tokens, "--output-tokens", asked.output_tokens]
    server = ["--base-url", f"http://127.0.0.1:{PORTS[mode][0]}", "--api-key", KEY]
    subprocess.run([BINARY, "bench", *shape, "--out", out, *arguments, *server], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(out.with_suffix(".json").read_text())


def main() -> None:
    asked = options()
    model = ["--model", asked.model] if asked.model else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = folder / "postgres"
        subprocess.run([ROOT / "tests/postgres", "start", postgres], check=True, stdout=subprocess.DEVNULL)
        database = subprocess.run([ROOT / "tests/postgres", "database", postgres], check=True, capture_output=True, text=True).stdout.strip()
        arguments = {"off": ["--without-metering"], "SQLite": [], "PostgreSQL": ["--database", database]}
        servers = [start(mode, folder, [*arguments[mode], *model]) for mode in PORTS]
        try:
            measure(asked, folder / "out")
        finally:
            for server in servers:
                server.terminate()
                server.wait()
            subprocess.run([ROOT / "tests/postgres", "stop", postgres], check=True)


def measure(asked: argparse.Namespace, out: Path) -> None:
    most: dict[str, list[float]] = {mode: [] for mode in PORTS}
    first: dict[str, list[dict]] = {mode: [] for mode in PORTS}
    waits = {mode: [0, 0] for mode in PORTS}
    for mode in PORTS:
        bench(mode, asked, out, "--requests", str(asked.requests // 10), "--concurrency", "64")
    for number in range(asked.rounds):
        same = ["--requests", str(asked.requests), "--seed", str(number)]
        for mode in PORTS:
            run = {"requests_per_s": asked.rate * 2} if asked.rate else bench(mode, asked, out, *same, "--concurrency", "64")
            most[mode].append(run["requests_per_s"])
        half = min(statistics.median(rates) for rates in most.values()) / 2
        for mode in PORTS:
            before = row_waits(mode)
            run = bench(mode, asked, out, *same, "--concurrency", "256", "--rate", f"{half:.1f}")
            waits[mode] = [total + now - then for total, now, then in zip(waits[mode], row_waits(mode), before)]
            first[mode].append(run["latencies"]["time_to_first_token_ms"])
        print(f"round {number + 1} of {asked.rounds}: {most}", file=sys.stderr)
    print("| metering | requests/s at most | of that without | first token p50, ms | p90 | p99 | added p99 | waited <= 1 ms for the row |")
    print("|---|---|---|---|---|---|---|---|")
    median = lambda values: statistics.median(values)  # noqa: E731
    for mode in PORTS:
        rate, base = median(most[mode]), median(most["off"])
        quantiles = {name: median([run[name] for run in first[mode]]) for name in ("p50", "p90", "p99")}
        added = median([run["p99"] - off["p99"] for run, off in zip(first[mode], first["off"])])
        print(f"| {mode} | {'-' if asked.rate else f'{rate:.0f}'} | {rate / base:.2f} | {quantiles['p50']:.2f} | {quantiles['p90']:.2f} | {quantiles['p99']:.2f} | {added:+.2f} | {waits[mode][1] / waits[mode][0]:.2%} |")


if __name__ == "__main__":
    main()
