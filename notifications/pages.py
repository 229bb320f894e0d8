"""A page of a bulk call: recipients are read and checked as a set, and stored with their work in one transaction.

What costs a query costs it once a page: earlier messages of the same key, known recipients, the set insert, the
ledger. Nothing is rendered but one sample of each template.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b, sha256
from typing import Any
from uuid import UUID

from notifications import sending, sets
from notifications.channels.plain_emails import PlainEmails
from notifications.exceptions import (
    CommunicationError,
    IdempotencyConflict,
    InvalidRecipientError,
    TemplateNotFoundError,
)
from notifications.models import MessageStatus, NotificationChannel, OutboxMessage, Priority
from notifications.models.fields import new_id
from notifications.quotas import Quota
from notifications.recipients import To, resolve_recipient
from notifications.rendering import freeze
from notifications.sending import Terms
from notifications.wanted import Wanted, check_text
from tenants.scoping import guard

MOST = 10_000
"""So many recipients are checked together and stored in one transaction."""
_NAMED = 5
_KEY_SHOWN = 160
_encoded = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode
# A NUL as JSON writes it, or half a character; a typed backslash before u0000 looks the same, so findings are checked.
_SUSPICIOUS = re.compile("\\\\u0000|[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Refused:
    """A recipient for whom nothing was accepted."""

    position: int
    """Its place among the recipients as they were given, from 0."""
    error: CommunicationError

    def __str__(self) -> str:
        return f"recipients[{self.position}]: {str(self.error).rstrip('.')}"


class RecipientsRefused(InvalidRecipientError):
    """Recipients of a bulk call cannot be written to; nothing of their page was stored."""

    def __init__(self, refused: Sequence[Refused]) -> None:
        self.refused = refused
        named = "; ".join(map(str, refused[:_NAMED]))
        more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        super().__init__(f"{named}{more}. Correct them or leave them out, or give skip_invalid=True")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What a bulk call asks for, beside its recipients."""

    wanted: Wanted
    crossed: bool
    idempotency_key: str | None = None
    batch_size: int = 1_000
    skip_invalid: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a page."""

    ids: Sequence[UUID]
    """The message of each recipient that was not refused, in their order."""
    new: int
    """So many of them were stored now, and not by an earlier call."""
    refused: Sequence[Refused]


@dataclass(slots=True)
class Entry:
    """One recipient, read."""

    position: int
    to: To
    address: str
    context: Mapping[str, Any]
    context_json: str
    request_hash: str
    key: str
    id: UUID
    name: str = ""
    recipient_id: UUID | None = None
    language: str = ""
    wording: Mapping[str, Any] = field(default_factory=dict)


class Call:
    """What the pages of one call share: the sender and the wordings are looked up once for all of them."""

    def __init__(self, letter: Letter) -> None:
        """Begin in the tenant's context.

        Raises:
            CommunicationError: the channel does not exist.
        """
        self.letter = letter
        self.terms = Terms(letter.wanted, otherwise=Priority.BULK)
        self.shared = letter.wanted.context
        self.shared_json = _encoded(self.shared)
        self.emails = PlainEmails()
        self.sampled: set[UUID | None] = set()
        self._hash = sha256(_encoded(asdict(replace(letter.wanted, context={}))).encode())
        key = letter.idempotency_key or ""
        self._prefix = key if len(key) <= _KEY_SHOWN else sha256(key.encode()).hexdigest()

    @property
    def security(self) -> bool:
        """Whether these are security messages."""
        return bool(self.terms.event and self.terms.event.security)

    def fingerprint(self, to_json: str, context_json: str) -> str:
        """What tells a repeated call from another one, for one recipient: SHA-256 in hex."""
        whole = self._hash.copy()
        whole.update(f"{to_json}\n{context_json}".encode())
        return whole.hexdigest()

    def key_of(self, to: To, address: str) -> str:
        """The idempotency key for one recipient, who is not named in it: keys outlive what is erased."""
        if not self._prefix:
            return ""
        if to.recipient_id:
            who = f"recipient {to.recipient_id}"
        elif to.external_id:
            who = f"external {to.external_id}"
        elif to.user_id:
            who = f"user {to.user_id}"
        else:
            who = f"address {address.lower() if self.terms.channel == NotificationChannel.EMAIL else address}"
        return f"{self._prefix}:{blake2b(f'{self.terms.channel} {who}'.encode(), digest_size=16).hexdigest()}"


class Page:
    """Some recipients of a call, all of which are accepted or none."""

    def __init__(self, call: Call, given: Iterable[Any], first: int) -> None:
        """Read recipients, at most `MOST`, the first of which has this position."""
        self._call = call
        self._letter = call.letter
        self._terms = call.terms
        self._refused: list[Refused] = []
        self._entries = [entry for position, one in enumerate(given, first) if (entry := self._entry(position, one))]

    def store(self, quota: Quota | None) -> Stored:
        """Check everything, then store it.

        Args:
            quota: what the messages count against.

        Raises:
            RecipientsRefused: some cannot be written to, and are not to be skipped.
            IdempotencyConflict: the key was used for one of them before, with other arguments.
            RateLimitExceeded: too little of the daily quota is left.
            CommunicationError: the call itself cannot be accepted.
        """
        unread = list(self._refused)
        while True:
            self._refused = list(unread)
            new = self._once(self._fitting(self._unmet()))
            if self._refused and not self._letter.skip_invalid:
                raise RecipientsRefused(sorted(self._refused, key=lambda one: one.position))
            try:
                self._insert(new, quota)
            except _Overtaken:
                # Another call has stored some of them meanwhile; they are met now.
                continue
            without = {one.position for one in self._refused}
            ids = [entry.id for entry in self._entries if entry.position not in without]
            return Stored(ids, len(new), sorted(self._refused, key=lambda one: one.position))

    # Reading

    def _entry(self, position: int, given: Any) -> Entry | None:
        try:
            given, own = _parted(given)
            guard(given)
            to = resolve_recipient(given)
            if to.user_id and self._letter.crossed:
                to = replace(to, user_id=None)
            address = self._address(to)
            to_json = _encoded([getattr(to, name) for name in To.__slots__])
            context, context_json = self._context(own)
            if _SUSPICIOUS.search(to_json) or _SUSPICIOUS.search(context_json):
                check_text(asdict(to), "to")
                check_text(context, "context")
        except CommunicationError as error:
            self._refused.append(Refused(position, error))
            return None
        request_hash = self._call.fingerprint(to_json, context_json)
        key = self._call.key_of(to, address)
        return Entry(position, to, address, context, context_json, request_hash, key, new_id())

    def _address(self, to: To) -> str:
        if self._terms.channel == NotificationChannel.EMAIL and (
            plain := self._call.emails.clean(to.email or to.address)
        ):
            return plain
        return to.for_channel(self._terms.channel, region=self._terms.defaults.phone_region)

    def _context(self, own: Any) -> tuple[Mapping[str, Any], str]:
        if own is None:
            return self._call.shared, self._call.shared_json
        context = freeze({**self._call.shared, **own} if isinstance(own, Mapping) else own)
        return context, _encoded(context)

    # Checking

    def _unmet(self) -> Sequence[Entry]:
        """Those whose message is not stored yet; the others take their message's id."""
        if not self._letter.idempotency_key:
            return self._entries
        earlier = sets.stored_under([entry.key for entry in self._entries])
        unmet = []
        for entry in self._entries:
            found = earlier.get(entry.key)
            if found is None:
                unmet.append(entry)
            elif found.request_hash == entry.request_hash:
                entry.id = found.id
            else:
                self._conflict(entry, "before")
        return unmet

    def _once(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Each key once; whoever is given again shares the first one's message."""
        if not self._letter.idempotency_key:
            return entries
        first: dict[str, Entry] = {}
        for entry in entries:
            other = first.setdefault(entry.key, entry)
            if other.request_hash == entry.request_hash:
                entry.id = other.id
            else:
                self._conflict(entry, f"by recipients[{other.position}]")
        # In the order of their keys, so that two calls which store the same do not wait for each other crosswise.
        return [first[key] for key in sorted(first)]

    def _conflict(self, entry: Entry, how: str) -> None:
        key = self._letter.idempotency_key
        error = IdempotencyConflict(f"idempotency_key={key!r} was used {how}, for other arguments: use a new key")
        refused = Refused(entry.position, error)
        if not self._letter.skip_invalid:
            raise IdempotencyConflict(str(refused))
        self._refused.append(refused)

    def _fitting(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Those for whom there is wording, and all that it needs."""
        if not entries:
            return entries
        # What is the same for all of them is nobody's own fault, and raised as it is.
        _ = self._terms.columns
        if not self._letter.wanted.event_key:
            self._sample(entries[0], {})
        self._look_up(entries)
        return [entry for entry in entries if self._fits(entry)]

    def _look_up(self, entries: Sequence[Entry]) -> None:
        """Find out who is known, what they are called, and which language they read."""
        channel = self._terms.channel
        others = [entry for entry in entries if not entry.to.recipient_id]
        by_id = sets.recipients_by_id(entry.to.recipient_id for entry in entries if entry.to.recipient_id)
        by_name = sets.recipients_by_external_id(entry.to.external_id for entry in others if entry.to.external_id)
        by_address = sets.recipients_at(channel, (entry.address for entry in others))
        for entry in entries:
            to = entry.to
            if to.recipient_id:
                known = by_id.get(to.recipient_id)
            else:
                known = by_name.get(to.external_id) or by_address.get(entry.address)
            if known:
                entry.recipient_id, entry.name, entry.language = known
            entry.name = to.name or entry.name
            entry.language = self._letter.wanted.language or to.language or entry.language

    def _fits(self, entry: Entry) -> bool:
        try:
            if entry.to.recipient_id or entry.name != entry.to.name:
                # It comes from the table, where names are as somebody typed them.
                entry.name = sending.clean_name(entry.name)
            entry.wording = self._terms.wording(entry.language)
            self._terms.check_placeholders(entry.context)
            if entry.wording and entry.wording["template_uuid"] not in self._call.sampled:
                self._sample(entry, entry.wording)
                self._call.sampled.add(entry.wording["template_uuid"])
        except CommunicationError as error:
            if isinstance(error, TemplateNotFoundError) and not self._letter.skip_invalid:
                raise
            self._refused.append(Refused(entry.position, error))
            return False
        return True

    def _sample(self, entry: Entry, wording: Mapping[str, Any]) -> None:
        sending.check_content(OutboxMessage(**{**self._terms.columns, **wording, "context": entry.context}))

    # Storing

    def _insert(self, new: Sequence[Entry], quota: Quota | None) -> None:
        if not new:
            return
        common = OutboxMessage(**self._terms.columns)
        own = _columns(new, common)
        going = [entry.id for entry in new if entry.wording.get("status") != MessageStatus.SUPPRESSED]
        with sending.one_transaction():
            used = sending.admit(common, len(going), quota) if going else 0
            inserted = sets.insert(common, own, size=self._letter.batch_size)
            if len(inserted) < len(new):
                raise _Overtaken
            if going:
                sending.count(common, len(going), quota, used)
                sending.write_down(going, common)


class _Overtaken(Exception):
    """Another call stored messages under some of the keys after they were looked for."""


def _columns(new: Sequence[Entry], common: OutboxMessage) -> dict[str, list[Any]]:
    """The columns in which messages differ; where they do not, the value goes to `common`."""
    own: dict[str, list[Any]] = {
        "id": [entry.id for entry in new],
        "request_hash": [entry.request_hash for entry in new],
        "to_address": [entry.address for entry in new],
        "to_name": [entry.name for entry in new],
        "recipient_id": [entry.recipient_id for entry in new],
        "user_id": [entry.to.user_id for entry in new],
        "context": [entry.context_json for entry in new],
    }
    if new[0].key:
        own["idempotency_key"] = [entry.key for entry in new]
    for name in {name for wording in {id(entry.wording): entry.wording for entry in new}.values() for name in wording}:
        own[name] = [entry.wording.get(name, getattr(common, name)) for entry in new]
    for name in own.keys() - {"id", "idempotency_key"}:
        if len(set(own[name])) == 1:
            (value,) = {*own.pop(name)}
            setattr(common, name, new[0].context if name == "context" else value)
    return own


def _parted(given: Any) -> tuple[Any, Any]:
    """A recipient and its own context, from (recipient, context), a dict with `context`, or a recipient alone."""
    if isinstance(given, tuple) and len(given) == 2:
        return given
    if isinstance(given, Mapping) and "context" in given:
        alone = dict(given)
        return alone, alone.pop("context")
    return given, None
