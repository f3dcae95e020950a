#!/usr/bin/env python3
"""Myriad against llama.cpp's server, OpenVINO GenAI, transformers + peft and mistral.rs on this machine's CPU, in one run.

    tests/bench/peers/compare.py                       all: about 25 minutes, and 15 more the first time (installing, writing files)
    tests/bench/peers/compare.py --quick               the short rows in one round: about 5 minutes
    tests/bench/peers/compare.py --peers llama.cpp-bf16 --rows decode-8-distinct --add     one figure into the last run's results
    tests/bench/peers/compare.py --report              the tables of the last run again

needs target/release/myriad, a C++ compiler, and for the installations 15 GB under target/bench and the package registry. Every peer
gets the same random model (the shape of SmolLM-135M) in its own format, the same prompts and as many threads as there are cores.
A row is measured in rounds, one peer after the other within a round; a table has the medians. Before it is measured, each peer's
greedy tokens are compared with those of transformers in f32. What cannot be measured stands in the report with its reason.
"""

import argparse
import fcntl
import json
import sys
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import engines
import own
import report
import rows
from environments import FILES, NotInstalled, write_files
from http_load import Failed as RequestFailed
from machine import describe, limits
from others import MOST_SHARE, Watch
from shape import ADAPTERS, prompts

FAILURES = (engines.Failed, NotInstalled, RequestFailed, OSError)
CHECK_TOKENS = 8
# Measurements that something else disturbed are made again so often, then they count: a busy machine still gives a table.
DISTURBED_REPEATS = 2
# A lock that is held for longer than this is given back before the next measurement.
LOCK_HELD_S = 90.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", metavar="PEER", default=list(engines.MAKERS), choices=engines.MAKERS, help=", ".join(engines.MAKERS))
    parser.add_argument("--rows", nargs="+", metavar="ROW", choices=[row.name for row in rows.ROWS], help=", ".join(row.name for row in rows.ROWS))
    parser.add_argument("--rounds", type=int, help="rounds; 0 only checks the tokens [default: 3; 1 with --quick]")
    parser.add_argument("--quick", action="store_true", help="one round, without the plot's and the slowest rows")
    parser.add_argument("--add", action="store_true", help="keep the figures that are in the results file")
    parser.add_argument("--no-check", action="store_true", help="do not compare tokens with transformers in f32")
    parser.add_argument("--limits", type=Path, metavar="FILE", help="take the machine's limits from this JSON instead of measuring them")
    parser.add_argument("--results", type=Path, metavar="FILE", default=FILES / "results.json", help="[default: %(default)s]")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the plot is written [default: beside the results]")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="hold an exclusive lock on FILE while measuring, where others use the machine")
    parser.add_argument("--install", action="store_true", help="only install the peers and write the files")
    parser.add_argument("--report", action="store_true", help="only print what is in the results file")
    return parser.parse_args()


class Quiet:
    """The machine for ourselves, where its users agree on a lock; given back now and then."""

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("a") if path else None
        self.since: float | None = None

    def take(self) -> None:
        if self.file is None:
            return
        if self.since is not None and time.monotonic() - self.since > LOCK_HELD_S:
            self.give_back()
        if self.since is None:
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since = time.monotonic()

    def give_back(self) -> None:
        if self.since is not None:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.since = None
            time.sleep(0.5)


@contextmanager
def running(maker, adapters: list[str]):
    engine = maker()
    try:
        engine.start(adapters)
        yield engine
    finally:
        engine.stop()


def answers(maker) -> list[list[int]]:
    """Greedy tokens of the base alone and then, at the same time, of two adapters and the base: a mix-up shows."""
    base, *mixed = prompts(4, 12, seed=7)
    with running(maker, ADAPTERS[:2]) as engine:
        alone = engine.generate([base], [None], CHECK_TOKENS, with_tokens=True).tokens
        return alone + engine.generate(mixed, [ADAPTERS[0], None, ADAPTERS[1]], CHECK_TOKENS, with_tokens=True).tokens


def agreeing(tokens: list[int], expected: list[int]) -> int:
    """How many of the first tokens are the same."""
    return next((place for place, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), len(expected))


def check(peers: list[str], results: dict, quiet: Quiet) -> None:
    cached = FILES / "expected.json"
    source = (FILES / "written.txt").read_text()
    kept = json.loads(cached.read_text()) if cached.exists() else {}
    if kept.get("source") != source:
        kept = {"source": source, "tokens": answers(engines.MAKERS_OF_REFERENCE[engines.REFERENCE])}
        cached.write_text(json.dumps(kept))
    for peer in peers:
        quiet.take()
        try:
            found = [agreeing(*pair) for pair in zip(answers(engines.MAKERS[peer]), kept["tokens"], strict=True)]
        except FAILURES as error:
            results["unmeasured"][peer] = str(error)
            continue
        results["agreement"][peer] = found
        print(f"{peer}: {found} of {CHECK_TOKENS} tokens as {engines.REFERENCE}", file=sys.stderr)


def measure(engine, row: rows.Row, round_number: int) -> float:
    """Tokens per second."""
    runs = []
    for repeat in range(row.repeats):
        batch = prompts(row.requests, row.prompt_tokens, seed=1000 * round_number + repeat)
        runs.append(engine.generate(batch, row.assigned(), row.output_tokens).seconds)
    return row.tokens() * row.repeats / sum(runs)


def undisturbed(engine, row: rows.Row, round_number: int, results: dict) -> float:
    """The rate, measured again while other processes take more than a few percent of a core."""
    for attempt in range(DISTURBED_REPEATS + 1):
        watch = Watch(engine.process.pid)
        rate = measure(engine, row, round_number + 100 * attempt)
        share = watch.share()
        if share <= MOST_SHARE:
            return rate
        print(f"disturbed: others took {share:.0%} of a core ({rate:.1f} tokens/s)", file=sys.stderr)
        if attempt < DISTURBED_REPEATS:
            time.sleep(3)
    results["disturbed"] = results.get("disturbed", 0) + 1
    return rate


def warm_up(engine, row: rows.Row) -> None:
    length = row.prompt_tokens if row.prefill else 4
    engine.generate(prompts(row.requests, length, seed=99), row.assigned(), 1 if row.prefill else 2)


def round_of(peer: str, wanted: list[rows.Row], round_number: int, results: dict, quiet: Quiet, save) -> None:
    """All rows of a peer, one process for those that load the same adapters."""
    sets: dict[tuple, list[rows.Row]] = {}
    for row in wanted:
        sets.setdefault(tuple(engines.loaded(row.assigned())), []).append(row)
    for adapters, together in sets.items():
        quiet.take()
        with running(engines.MAKERS[peer], list(adapters)) as engine:
            for row in together:
                quiet.take()
                warm_up(engine, row)
                rate = undisturbed(engine, row, round_number, results)
                results["figures"].setdefault(peer, {}).setdefault(row.name, []).append(round(rate, 2))
                print(f"round {round_number + 1}  {peer:18} {row.name:20} {rate:9.1f} tokens/s", file=sys.stderr)
                save()


def main() -> None:
    options = arguments()
    path: Path = options.results
    if not options.report:
        run(options, path)
    results = json.loads(path.read_text())
    plot = options.plot or path.with_suffix(".svg")
    print(report.text(results))
    if report.write_plot(results, plot):
        print(f"\nplot: {plot}", file=sys.stderr)


def run(options: argparse.Namespace, path: Path) -> None:
    write_files()
    fresh = {"date": "", "machine": {}, "limits": {}, "versions": {}, "agreement": {}, "unmeasured": {}, "figures": {}, "own": {}}
    results = fresh | (json.loads(path.read_text()) if options.add and path.exists() else {})
    results |= {"date": date.today().isoformat(), "machine": describe()}

    def save() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")

    peers = installed(options.peers, results)
    save()
    if options.install:
        return
    quiet = Quiet(options.lock)
    quiet.take()
    if not options.no_check:
        check(peers, results, quiet)
    if options.limits or not results["limits"]:
        results["limits"] = json.loads(options.limits.read_text()) if options.limits else limits(engines.THREADS)
    for round_number in range((1 if options.quick else 3) if options.rounds is None else options.rounds):
        for peer in peers:
            if peer in results["unmeasured"] or (round_number > 0 and peer in rows.ONCE):
                continue
            wanted = [row for row in rows.ROWS if row.name in options.rows] if options.rows else rows.of(peer, options.quick)
            try:
                round_of(peer, wanted, round_number, results, quiet, save)
            except FAILURES as error:
                results["unmeasured"][peer] = str(error)
                print(f"{peer}: {error}", file=sys.stderr)
    if "myriad-bf16" in peers and not options.rows and not options.quick and options.rounds != 0:
        measure_own(results, quiet)
    quiet.give_back()
    save()


def measure_own(results: dict, quiet: Quiet) -> None:
    for name, measurement in (("prefix_hit", own.prefix_hit), ("start_to_answer", own.start_to_answer)):
        quiet.take()
        try:
            results["own"][name] = measurement()
        except FAILURES as error:
            results["unmeasured"][f"myriad-bf16 {name}"] = str(error)


def installed(names: list[str], results: dict) -> list[str]:
    """Installs what is missing; what cannot be is a line of the report."""
    found = []
    for name in names:
        results["unmeasured"].pop(name, None)
        try:
            engines.MAKERS[name]().stop()
            results["versions"][name] = engines.version(name)
            found.append(name)
        except NotInstalled as reason:
            results["unmeasured"][name] = str(reason)
        print(f"{name:18} {results['unmeasured'].get(name) or results['versions'][name]}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
