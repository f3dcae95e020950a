"""Which machine this is, and what it can do at most."""

import json
import os
import re
import subprocess
from pathlib import Path

from environments import FILES, HERE

INSTRUCTIONS = ["avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"]


def describe() -> dict:
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)$", information, re.MULTILINE)
    numbers = [re.search(rf"^{field}\s*: (\d+)$", information, re.MULTILINE) for field in ("cpu family", "model")]
    flags = set((re.search(r"^flags\s*: (.*)$", information, re.MULTILINE) or re.match("()", "")).group(1).split())
    family = " family {} model {}".format(*(number.group(1) for number in numbers)) if all(numbers) else ""
    return {
        "cpu": (name.group(1) if name else "unknown") + family,
        "cores": os.cpu_count(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in flags],
    }


def limits(threads: int) -> dict:
    """By `limits.c`; empty where there is no C compiler."""
    program = FILES / "limits"
    try:
        subprocess.run(["cc", "-O3", "-march=native", "-pthread", HERE / "limits.c", "-o", program], check=True, capture_output=True)
        return json.loads(subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return {}
