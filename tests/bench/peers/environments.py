"""A Python environment for each peer, made on demand from its pinned requirements."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BENCH = ROOT / "target/bench"
FILES = BENCH / "peers"

# A source distribution that builds llama.cpp here: every instruction of this machine, nothing that is fetched while building.
LLAMA_CPP = {
    "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
    " -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_TOOLS_INSTALL=OFF",
    "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count()),
}


class NotInstalled(Exception):
    """Why a peer cannot be measured, in one line."""


def python(name: str) -> Path:
    """The interpreter of environment `name`, which is made where it is missing or its requirements have changed."""
    folder, requirements = BENCH / name, HERE / f"requirements/{name}.txt"
    stamp = folder / "installed.txt"
    interpreter = folder / "bin/python"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return interpreter
    print(f"installing {name} into {folder.relative_to(ROOT)}", file=sys.stderr)
    started = time.monotonic()
    run([sys.executable, "-m", "venv", folder], folder)
    # Never from pip's cache of built wheels: it does not know for which machine a wheel was built.
    native = ["--no-cache-dir"] if name == "llama.cpp" else []
    run([interpreter, "-m", "pip", "install", *native, "-r", requirements], folder, LLAMA_CPP if native else {})
    stamp.write_text(requirements.read_text())
    print(f"installed {name} in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return interpreter


def run(command: list, folder: Path, variables: dict[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    with log.open("ab") as output:
        ended = subprocess.run([str(part) for part in command], stdout=output, stderr=output, env=os.environ | (variables or {}), check=False)
    if ended.returncode != 0:
        errors = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise NotInstalled(f"cannot be installed: {errors[-1].strip() if errors else 'no output'} (all of it in {log})")


def write_files() -> None:
    """The model, the adapters and their conversions; once."""
    stamp = FILES / "written.txt"
    sources = "".join((HERE / name).read_text() for name in ("shape.py", "write_files.py"))
    if not (stamp.exists() and stamp.read_text() == sources):
        FILES.mkdir(parents=True, exist_ok=True)
        subprocess.run([python("files"), HERE / "write_files.py", FILES], check=True)
        stamp.write_text(sources)


def write_openvino() -> None:
    stamp = FILES / "openvino/written.txt"
    source = (HERE / "write_openvino.py").read_text() + (FILES / "written.txt").read_text()
    if not (stamp.exists() and stamp.read_text() == source):
        log = FILES / "openvino.log"
        with log.open("wb") as output:
            ended = subprocess.run([python("openvino"), HERE / "write_openvino.py", FILES], stdout=output, stderr=output, check=False)
        if ended.returncode != 0:
            raise NotInstalled(f"the model cannot be converted: {log.read_text().splitlines()[-1]}")
        stamp.write_text(source)
