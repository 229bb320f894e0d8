"""A process whose clock is wrong: `python -m tests.faults.skewed SECONDS MODULE [ARGUMENT …]`.

The module runs with a clock that is so many seconds ahead (behind, when negative) and goes on from there. Time that is
measured (`time.monotonic`) is as it was: a wrong clock makes no process slower. libfaketime would do the same without
Python's help, but fails `time.sleep` (0.9.10 with Python 3.13), which harms more than the clock.
"""

import runpy
import sys
from datetime import timedelta

import time_machine


def main() -> None:
    """Set the clock, then be the module."""
    seconds, module, *arguments = sys.argv[1:]
    time_machine.travel(timedelta(seconds=float(seconds))).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
