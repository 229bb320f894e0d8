"""E-mail addresses by the ten thousand: the common form is recognised by a pattern, each domain checked once."""

import re

from notifications.channels.addresses import LONGEST_LOCAL_PART, InvalidAddress, clean_email

# What `clean_email` takes before the @ whatever the domain, and no more.
_PLAIN = re.compile(
    rf"(?=[^@]{{1,{LONGEST_LOCAL_PART}}}@)([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@([A-Za-z0-9.-]{{1,180}})"
)


class PlainEmails:
    """Cleans addresses as `clean_email` does, where it is sure to agree with it; it remembers domains."""

    def __init__(self) -> None:
        self._domains: dict[str, str] = {}

    def clean(self, value: str) -> str | None:
        """The address as `clean_email` gives it, or None: then ask `clean_email`, which may refuse it or not."""
        parts = _PLAIN.fullmatch(value)
        if parts is None:
            return None
        local, domain = parts.groups()
        cleaned = self._domains.get(domain)
        if cleaned is None:
            try:
                cleaned = clean_email(f"a@{domain}").partition("@")[2]
            except InvalidAddress:
                return None
            self._domains[domain] = cleaned
        return f"{local}@{cleaned}"
