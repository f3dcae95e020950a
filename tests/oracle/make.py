"""Makes tests/oracle/fixtures: models, adapters and what the reference implementations answer. See README.md."""

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers.utils import logging

import adapters
import families
import measure
import refused

FIXTURES = Path(__file__).parent / "fixtures"
PACKAGES = ["torch", "transformers", "peft", "safetensors", "tokenizers"]
# Adapters of each model. `llama` carries every kind; the others show that a kind works with what is special in the family.
ADAPTERS = {
    "llama": ["plain", "attention", "rslora", "patterns", "layers", "wide"],
    "llama3": ["plain"],
    "llama-linear": [],
    "llama-yarn": [],
    "mistral": ["attention"],
    "qwen2": ["patterns"],
    "qwen3": ["plain"],
}


def main() -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, so that a second run writes the same bytes
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or ADAPTERS:
        make_model(name)
    refused.make(FIXTURES / "models/llama", FIXTURES / "refused")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    models = {name: summary(FIXTURES / "models" / name) for name in ADAPTERS}
    (FIXTURES / "index.json").write_text(json.dumps({"versions": versions, "models": models}, indent=2) + "\n")


def make_model(name: str) -> None:
    print(name, flush=True)
    folder = FIXTURES / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    families.write(name, folder)
    expect(folder, None)
    for kind in ADAPTERS[name]:
        adapters.write(kind, folder, folder / "adapters" / kind)
        expect(folder, kind)
    write_json(folder / "expected/bf16.json", measure.bf16(folder, ADAPTERS[name][:1]))
    measure.check_spelling_4(folder)


def expect(folder: Path, adapter: str | None) -> None:
    case, logits = measure.case(folder, adapter)
    name = adapter or "base"
    (folder / "expected").mkdir(exist_ok=True)
    write_json(folder / f"expected/{name}.json", case)
    measure.save_logits(logits, folder / f"expected/{name}.safetensors")


def summary(folder: Path) -> dict:
    cases = ["base", *ADAPTERS[folder.name]]
    read = {case: json.loads((folder / f"expected/{case}.json").read_text()) for case in [*cases, "bf16"]}
    return {
        "smallest_gaps": {case: min(read[case]["gaps"]) for case in cases},
        "bf16_mean_kl": {case: value["mean_kl"] for case, value in read["bf16"]["cases"].items()},
    }


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
