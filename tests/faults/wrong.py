"""A caller that asks for what nobody may send: `python -m tests.faults.wrong SCHEMA`.

It prints a line of JSON for each: what is wrong with it, `refused`, `accepted` or `broke`, and why.
"""

import json
import sys
from typing import Any

from services.start import configure

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from notifications.services import CommunicationError, send  # noqa: E402

WRONG: dict[str, dict[str, Any]] = {
    "a lone surrogate": {"body_text": "half \ud800"},
    "NUL": {"body_text": "a\0b"},
    "a line break in the subject": {"subject": "a\r\nBcc: x@example.com"},
    "a header of the service": {"headers": {"Bcc": "x@example.com"}},
    "an unknown channel": {"channel": "pigeon"},
    "an unknown priority": {"priority": "yesterday"},
}


def main() -> None:
    """Ask for each."""
    for name, more in WRONG.items():
        options = {"channel": "email", "subject": "Hi", "body_text": "Hello", **more}
        try:
            message = send(to="bad@example.com", tenant=sys.argv[1], **options)
            answer = ("accepted", str(message.pk))
        except CommunicationError as error:
            answer = ("refused", str(error))
        except Exception as error:  # noqa: BLE001 (that is what is looked for)
            answer = ("broke", repr(error))
        print(json.dumps([name, *answer]))


if __name__ == "__main__":
    main()
