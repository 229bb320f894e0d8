#!/usr/bin/env python
"""Django's command line, for operators and developers."""

import sys

from services.start import configure

if __name__ == "__main__":
    if sys.argv[1:2] == ["test"]:
        from services import testing

        raise SystemExit(testing.run(sys.argv[2:]))
    configure()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
