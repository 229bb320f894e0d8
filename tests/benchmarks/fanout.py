"""A process that makes one large call: `python -m tests.benchmarks.fanout TENANT COUNT`. It prints what that took."""

import json
import sys
import time
from pathlib import Path

from services.start import configure

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from tenants.models import Tenant  # noqa: E402
from tests.benchmarks.backlog import accept_many  # noqa: E402


def peak_megabytes() -> float:
    """The most memory that this program ever had; what getrusage(2) tells began with the process it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main() -> None:
    """Make the call and print its cost as one JSON line."""
    tenant = Tenant.objects.get(name=sys.argv[1])
    accept_many(tenant, 1)
    before = peak_megabytes()
    began = time.perf_counter()
    accept_many(tenant, int(sys.argv[2]), first=1)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": peak_megabytes(), "before_mb": before}))


if __name__ == "__main__":
    main()
