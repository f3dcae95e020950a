"""The loop of an engine that lives in a Python process of its own: a line of JSON in, a line of JSON out.

An engine is a class with `generate(prompts, adapters, tokens)`: all requests at once, greedy, exactly so many tokens each, whatever
the end token says; it returns the tokens of each request. Loading is done in its constructor. What libraries print goes to standard error.
"""

import json
import os
import sys
import time


def serve(engine_class) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    started = time.monotonic()
    try:
        engine = engine_class(**json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever a peer throws is the reason that stands in the report
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready_s": time.monotonic() - started})
    for line in sys.stdin:
        call = json.loads(line)
        started = time.monotonic()
        try:
            tokens = engine.generate(call["prompts"], call["adapters"], call["tokens"])
        except Exception as error:  # noqa: BLE001
            answer({"error": f"{type(error).__name__}: {error}"})
            continue
        answer({"seconds": time.monotonic() - started, "tokens": tokens})
