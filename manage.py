#!/usr/bin/env python
"""Django's command line, for operators and developers."""

import sys

from services.start import configure, fail

if __name__ == "__main__":
    if sys.argv[1:2] == ["test"]:
        from services import testing

        raise SystemExit(testing.run(sys.argv[2:]))
    configure()
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        fail(f"the database does not answer: {str(error).strip().splitlines()[0]} (DATABASE_URL)")
