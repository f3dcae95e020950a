"""Whether something else computed while we measured: on a shared machine a spinning engine loses nine tenths of its speed to one build."""

import os
import time
from pathlib import Path

MOST_SHARE = 0.06  # of one core's time


class Watch:
    """Core-seconds that neither this process nor the measured one has used, since the watch was made."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.started, self.all, self.own = time.monotonic(), busy_s(), self.own_s()

    def own_s(self) -> float:
        return time.process_time() + process_s(self.process)

    def share(self) -> float:
        """Of one core, on average; 0 where the system does not tell."""
        if self.all == 0:
            return 0.0
        return max(0.0, (busy_s() - self.all - (self.own_s() - self.own)) / (time.monotonic() - self.started))


def busy_s() -> float:
    """What all cores computed, with what the host took away (steal); https://docs.kernel.org/filesystems/proc.html#proc-stat"""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def process_s(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
