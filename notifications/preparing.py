"""Preparing a batch: decide about each message, and render those that may go."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from django.db import DatabaseError, InterfaceError, transaction

from notifications import due, lifecycle, recording, wording
from notifications.dispatch import bells, ledger
from notifications.dispatch.ledger import Claim
from notifications.due import DueMessage
from notifications.exceptions import CommunicationError
from notifications.lifecycle import Ending
from notifications.models import MessageStatus, OutboxMessage
from notifications.preferences import Decision, Drop, Send, Wait, decide

logger = logging.getLogger(__name__)


def prepare(claim: Claim, messages: Sequence[DueMessage]) -> tuple[list[DueMessage], list[Ending]]:
    """Decide about and render a batch: the messages that may go now, and the endings of the others."""
    now = claim.now()
    suppressed = due.suppressed(messages)
    ready: list[DueMessage] = []
    stopped: list[Ending] = []
    waiting: list[tuple[DueMessage, Wait]] = []
    for message in messages:
        try:
            decision = _decision(message, now, suppressed)
            if isinstance(decision, Send):
                message.subject, message.body_text, message.body_html = content_of(message)
                ready.append(message)
        except (DatabaseError, InterfaceError):
            raise
        except CommunicationError as error:
            stopped.append(recording.failed(message, str(error), now))
            continue
        except Exception as error:
            # One message that cannot be prepared must not keep its neighbours.
            logger.exception("message cannot be prepared", extra={"message_id": str(message.pk)})
            stopped.append(recording.failed(message, f"cannot be prepared: {type(error).__name__}", now))
            continue
        match decision:
            case Drop(reason, expired=True):
                stopped.append(recording.failed(message, reason, now))
            case Drop(reason):
                stopped.append(Ending(message.pk, MessageStatus.SUPPRESSED, now, False, reason))
            case Wait():
                waiting.append((message, decision))
    deferred = [Ending(m.pk, MessageStatus.SCHEDULED, now, False, wait.reason) for m, wait in waiting]
    if stopped or deferred:
        with transaction.atomic():
            ledger.finish(claim, [ending.message_id for ending in stopped])
            ledger.postpone(claim, [m.pk for m, _ in waiting], [wait.until for _, wait in waiting])
            lifecycle.record([*stopped, *deferred])
            bells.plan_all_on_commit(messages[0].priority, [wait.until for _, wait in waiting])
    return ready, [*stopped, *deferred]


def _decision(message: DueMessage, now: datetime, suppressed: Mapping[tuple[str, str], str]) -> Decision:
    return decide(
        now=now,
        expires_at=message.expires_at,
        category=message.category,
        channel=message.channel,
        security=message.security,
        suppressed=suppressed.get((message.channel, message.to_address.lower())) if suppressed else None,
        allows=message.allows,
    )


def content_of(message: OutboxMessage | DueMessage) -> tuple[str, str, str]:
    """Subject, text and HTML: what the message has of its own, else its template's, rendered.

    Raises:
        TemplateRenderError: the template cannot be rendered with the message's context.
        TemplateNotFoundError: the version that it was accepted with is gone.
    """
    own = message.subject, message.body_text, message.body_html
    if message.template_uuid is None or message.template_version is None or all(own):
        return own
    rendered = wording.compiled(message.template_scope, message.template_uuid, message.template_version).render(
        message.context
    )
    return own[0] or rendered.subject, own[1] or rendered.text, own[2] or rendered.html
