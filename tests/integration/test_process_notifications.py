"""`process_notifications`: everything that is due, of all tenants, without workers: once, or again and again."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from urllib.parse import quote

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from notifications.channels import Accepted, Outgoing, Rejected, Unavailable
from notifications.channels.fake import Fake
from notifications.exceptions import CommunicationError
from notifications.models import OutboxMessage, Suppression
from notifications.processing import Pass
from tenants.context import tenant_context
from tenants.models import Tenant
from tests import factories
from tests.factories import accepted, fresh, make_due, turn
from tests.mail import Catcher


@pytest.fixture
def both(acme: Tenant, globex: Tenant, provider: Fake) -> Fake:
    """Acme and globex send by e-mail; nothing is entered."""
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox(address=f"hello@{tenant.name}.test")
    return provider


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("process_notifications", *arguments, stdout=out)
    return out.getvalue().strip()


def statuses(tenant: Tenant) -> list[str]:
    with tenant_context(tenant):
        return sorted(OutboxMessage.objects.values_list("status", flat=True))


# Once


def test_everything_that_is_due_is_delivered_once_and_said_in_one_line(
    acme: Tenant, globex: Tenant, both: Fake
) -> None:
    """The line that cron mails, word for word: one on standard output, and nothing on standard error."""
    both.script("bob@example.com", Rejected("no such mailbox"))
    both.script("carol@example.com", Unavailable("greylisted"))
    for name in ("ada", "bob", "carol", "dora", "eve"):
        accepted(f"{name}@example.com", tenant=acme)
    with tenant_context(acme):
        for name in ("dora", "eve"):
            Suppression.objects.create(channel="email", address=f"{name}@example.com")
    accepted("grace@example.com", tenant=globex)
    accepted("heidi@example.com", tenant=globex)
    later = timezone.now() + timedelta(days=1)
    accepted("later@example.com", tenant=acme, scheduled_at=later)
    out, complaints = StringIO(), StringIO()
    call_command("process_notifications", stdout=out, stderr=complaints)
    assert out.getvalue() == "3 sent, 1 later, 1 failed, 2 suppressed, 0 received in 2 tenants\n"
    assert complaints.getvalue() == ""
    assert statuses(acme) == ["failed", "scheduled", "scheduled", "sent", "suppressed", "suppressed"]
    assert run() == "0 sent, 0 later, 0 failed, 0 suppressed, 0 received in 0 tenants"
    assert len(both.received) == 5


def test_what_is_kept_for_commands_is_taken(acme: Tenant, both: Fake, settings) -> None:
    settings.NOTIFY_SEND_IMMEDIATELY = False
    accepted(tenant=acme)
    run()
    assert statuses(acme) == ["sent"]


def test_all_of_a_backlog_goes_in_turns_of_a_batch_so_that_no_tenant_waits_for_anothers(
    acme: Tenant, globex: Tenant, both: Fake, settings
) -> None:
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 2}
    both.connections = 1
    for tenant in (acme, globex):
        for number in range(5):
            accepted(f"{tenant.name}{number}@example.com", tenant=tenant)
    assert run().startswith("10 sent")
    owners = "".join(outgoing.to[0] for outgoing in both.received)
    assert owners in {"aaggaaggag", "ggaaggaaga"}


def test_urgent_messages_of_one_tenant_go_before_the_bulk_of_another(acme: Tenant, globex: Tenant, both: Fake) -> None:
    both.connections = 1
    for tenant in (acme, globex):
        accepted(f"{tenant.name}-bulk@example.com", tenant=tenant, priority="bulk")
        accepted(f"{tenant.name}-high@example.com", tenant=tenant, priority="high")
    run()
    assert [outgoing.to.partition("-")[2][:4] for outgoing in both.received] == ["high", "high", "bulk", "bulk"]


def test_a_limit_is_what_each_tenant_gets_of_a_pass(acme: Tenant, globex: Tenant, both: Fake) -> None:
    for tenant in (acme, globex):
        for number in range(3):
            accepted(f"ada{number}@example.com", tenant=tenant, priority=["bulk", "default", "high"][number])
    assert run("--limit=2").startswith("4 sent")
    assert statuses(acme) == statuses(globex) == ["pending", "sent", "sent"]


def test_a_limit_above_a_batch_holds_too(acme: Tenant, both: Fake, settings) -> None:
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 2}
    for number in range(6):
        accepted(f"ada{number}@example.com", tenant=acme)
    assert run("--limit=5").startswith("5 sent")


def test_a_pass_takes_all_that_was_due_when_it_began_however_long_that_takes(
    acme: Tenant, both: Fake, settings, monkeypatch
) -> None:
    monkeypatch.setattr("notifications.processing.PASS_SECONDS", 0)
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 2}
    for number in range(6):
        accepted(f"ada{number}@example.com", tenant=acme)
    assert run().startswith("6 sent")


@pytest.mark.django_db(transaction=True)
def test_what_lands_after_its_turn_counts_too_against_the_limit_and_in_the_line(
    acme: Tenant, both: Fake, monkeypatch
) -> None:
    monkeypatch.setattr("notifications.processing.TURN_SECONDS", 0)
    turned = threading.Event()
    both.connections = 2
    for number in range(4):
        accepted(f"ada{number}@example.com", tenant=acme)
        both.script(f"ada{number}@example.com", lambda _: Accepted() if turned.wait(30) else None)
    threading.Timer(1.5, turned.set).start()
    assert run("--limit=2").startswith("2 sent, 0 later, 0 failed, 0 suppressed, 0 received")
    assert statuses(acme) == ["pending", "pending", "sent", "sent"]


def test_only_one_kind_is_taken_when_asked_for_also_from_the_platforms_sender(
    acme: Tenant, globex: Tenant, both: Fake
) -> None:
    with tenant_context(acme):
        factories.Outbox(account__kind="sms", address="+12025550123", name="")
    for tenant in (acme, globex):
        # Globex has no sender of its own for text messages.
        accepted("+12025550188", tenant=tenant, channel="sms")
        accepted("ada@example.com", tenant=tenant)
    assert run("--kind=sms").startswith("2 sent")
    for tenant in (acme, globex):
        with tenant_context(tenant):
            assert dict(OutboxMessage.objects.values_list("channel", "status")) == {"sms": "sent", "email": "pending"}
    assert run("--kind", "email").startswith("2 sent")


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CommandError, match="--kind: invalid choice: 'pigeon'"):
        run("--kind=pigeon")
    with pytest.raises(CommunicationError, match="kind='pigeon' is none of email, sms"):
        Pass(kind="pigeon")


def test_what_goes_out_and_what_comes_in_may_be_had_alone(acme: Tenant, both: Fake) -> None:
    accepted(tenant=acme)
    assert run("--inbox-only") == "0 received in 0 tenants"
    assert statuses(acme) == ["pending"]
    assert run("--outbox-only") == "1 sent, 0 later, 0 failed, 0 suppressed in 1 tenants"
    with pytest.raises(CommandError, match="not allowed with"):
        run("--inbox-only", "--outbox-only")
    with pytest.raises(CommandError, match="leave out --inbox-only"):
        run("--inbox-only", "--retry-failed")


def test_one_tenant_alone_can_be_served_by_schema_or_host(acme: Tenant, globex: Tenant, both: Fake) -> None:
    for tenant in (acme, globex):
        accepted(tenant=tenant)
    assert run("--schema", acme.schema_name).startswith("1 sent")
    assert statuses(globex) == ["pending"]
    assert run("--schema", "globex").startswith("1 sent")
    for tenant in (acme, globex):
        accepted(tenant=tenant)
    assert run("--all-schemas").startswith("2 sent")
    with pytest.raises(CommandError, match="not allowed with argument"):
        run("--all-schemas", "--schema", "globex")
    with pytest.raises(CommandError, match="no tenant is known as 'nobody'"):
        run("--schema", "nobody")


def test_a_suspended_tenants_messages_wait(acme: Tenant, globex: Tenant, both: Fake) -> None:
    for tenant in (acme, globex):
        accepted(tenant=tenant)
    Tenant.objects.filter(pk=acme.pk).update(status="suspended")
    assert run().startswith("1 sent")
    assert statuses(acme) == ["pending"]


def test_the_worker_id_is_kept_with_each_attempt(acme: Tenant, both: Fake) -> None:
    message = accepted(tenant=acme)
    run("--worker-id", "cron-7")
    with tenant_context(acme):
        assert fresh(message).attempts.get().worker == "cron-7"


@pytest.mark.parametrize("option", ["--limit=0", "--interval=0", "--max-age-hours=-1"])
def test_a_number_that_makes_no_sense_is_refused(option: str) -> None:
    with pytest.raises(CommandError, match=f"{option.partition('=')[0]} must be"):
        run(option)


def test_what_is_tried_again_later_is_not_waited_for(acme: Tenant, both: Fake) -> None:
    both.script("ada@example.com", Unavailable("greylisted"))
    accepted(tenant=acme)
    assert run().startswith("0 sent, 1 later")


def test_failed_messages_are_taken_up_again_first_when_asked_for(acme: Tenant, both: Fake, settings) -> None:
    settings.NOTIFY_RETRY_BACKOFF_SECONDS = [60]
    settings.NOTIFY_MAX_ATTEMPTS = 1
    both.script("ada@example.com", Unavailable("down"))
    message = accepted(tenant=acme)
    assert run().startswith("0 sent, 0 later, 1 failed")
    with tenant_context(acme):
        OutboxMessage.objects.update(failed_at=timezone.now() - timedelta(hours=11))
    assert run().startswith("0 sent")
    assert run("--retry-failed", "--max-age-hours=10").startswith("0 taken up again, 0 sent")
    assert run("--retry-failed", "--kind=sms").startswith("0 taken up again, 0 sent")
    assert run("--retry-failed") == (
        "1 taken up again, 1 sent, 0 later, 0 failed, 0 suppressed, 0 received in 1 tenants"
    )
    with tenant_context(acme):
        assert (fresh(message).status, fresh(message).retry_count) == ("sent", 1)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is_and_then_the_one_line(acme: Tenant, both: Fake, monkeypatch) -> None:
    monkeypatch.setattr("notifications.management.passes.SHOWN_SECONDS", 0)
    accepted(tenant=acme, priority="high")
    accepted(tenant=acme)
    out = Terminal()
    call_command("process_notifications", stdout=out, no_color=True)
    shown = [part.removeprefix("\033[K") for part in out.getvalue().split("\r") if part]
    assert shown[0].startswith("1 sent")
    assert {line.partition(",")[0] for line in shown[1:]} == {"2 sent"}
    assert [line for line in shown if line.endswith("\n")] == [shown[-1]]
    accepted(tenant=acme, priority="high")
    accepted(tenant=acme)
    pipe = StringIO()
    call_command("process_notifications", stdout=pipe)
    assert pipe.getvalue() == "2 sent, 0 later, 0 failed, 0 suppressed, 0 received in 1 tenants\n"


@pytest.mark.django_db(transaction=True)
def test_what_breaks_in_one_tenant_keeps_nothing_from_the_others_and_fails_the_command(
    acme: Tenant, globex: Tenant, both: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    for tenant in (acme, globex):
        accepted(tenant=tenant)
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{acme.schema_name}" CASCADE')
    out = StringIO()
    with pytest.raises(CommandError, match=f"the log says what broke in {acme.schema_name}"):
        call_command("process_notifications", "--retry-failed", stdout=out)
    assert out.getvalue().startswith("0 taken up again, 1 sent")
    assert statuses(globex) == ["sent"]
    assert f"the schema {acme.schema_name} of 'acme' does not exist" in caplog.text
    # Once for taking up again, once for delivering.
    assert [record.message for record in caplog.records].count("a tenant's turn broke") == 2


@pytest.mark.django_db(transaction=True)
def test_a_slow_providers_messages_are_waited_for_and_the_rest_follows(acme: Tenant, both: Fake, monkeypatch) -> None:
    """The turn ends while the provider's only connection is taken, and a later turn goes on."""
    monkeypatch.setattr("notifications.processing.TURN_SECONDS", 0.05)
    monkeypatch.setattr("notifications.processing.LATE_SECONDS", 0.2)
    both.connections = 1

    def slowly(outgoing: Outgoing) -> Accepted:
        threading.Event().wait(0.6)
        return Accepted()

    for number in range(3):
        accepted(f"ada{number}@example.com", tenant=acme)
        both.script(f"ada{number}@example.com", slowly)
    run()
    assert statuses(acme) == ["sent"] * 3


# Again and again


@pytest.mark.django_db(transaction=True)
def test_a_daemon_keeps_its_connections_over_passes_and_ends_with_the_turn_in_which_it_is_told_to(
    acme: Tenant, both: Fake
) -> None:
    closed = []

    def first(outgoing: Outgoing) -> Accepted:
        closed.append(both.closed)
        return Accepted()

    def second(outgoing: Outgoing) -> Accepted:
        closed.append(both.closed)
        os.kill(os.getpid(), signal.SIGTERM)
        return Accepted()

    before = signal.getsignal(signal.SIGTERM)
    both.script("first@example.com", first)
    both.script("second@example.com", second)
    accepted("first@example.com", tenant=acme)
    soon = timezone.now() + timedelta(seconds=0.5)
    accepted("second@example.com", tenant=acme, scheduled_at=soon, priority="high")
    last = accepted("last@example.com", tenant=acme, scheduled_at=soon, priority="bulk")
    lines = run("--daemon", "--interval=0.1").splitlines()
    assert [line.partition(",")[0] for line in lines] == ["a pass every 0.1 s", "1 sent", "1 sent"]
    assert closed == [0, 0]
    assert both.closed == 1
    with tenant_context(acme):
        assert fresh(last).status == "scheduled"
    assert signal.getsignal(signal.SIGTERM) == before


def database_url() -> str:
    """The test's own database, as an address."""
    found = connection.settings_dict
    user = quote(found["USER"]) + (f":{quote(found['PASSWORD'])}" if found["PASSWORD"] else "")
    port = f"&port={found['PORT']}" if found["PORT"] else ""
    return f"postgresql://{user}@/{found['NAME']}?host={quote(str(found['HOST']), safe='')}{port}"


class Daemon:
    """The command as a process of its own."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "manage.py", "process_notifications", "--daemon", "--interval=0.2", *options],
            env={**os.environ, "DATABASE_URL": database_url()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr:
            self._lines.put(line.strip())

    def complaint(self) -> str:
        """The next line that it says on standard error."""
        return self._lines.get(timeout=60)

    def end(self, number: signal.Signals) -> tuple[int, list[str]]:
        """Its exit code, and what else it said, once it has ended."""
        self._process.send_signal(number)
        try:
            code = self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stderr.close()
        return code, list(self._lines.queue)


@contextmanager
def daemon(*options: str, stop: signal.Signals = signal.SIGTERM) -> Iterator[Daemon]:
    """A daemon that must end well when told to, without a word."""
    process = Daemon(*options)
    try:
        yield process
    except BaseException:
        process.end(signal.SIGKILL)
        raise
    assert process.end(stop) == (0, [])


@pytest.fixture
def send(acme: Tenant, mail: Catcher) -> Callable[[str], OutboxMessage]:
    """Accepts a message of acme, whose mail goes to the test's server."""
    with tenant_context(acme):
        factories.Outbox(account=factories.Account(provider="smtp", settings=mail.settings()))
    return lambda subject: accepted(tenant=acme, subject=subject)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_takes_what_comes_between_passes_and_ends_when_told_to(
    send: Callable[[str], OutboxMessage], mail: Catcher, number: signal.Signals
) -> None:
    send("first")
    with daemon(stop=number):
        mail.wait_for(1, 60)
        send("second")
        assert [caught.subject for caught in mail.wait_for(2, 60)] == ["first", "second"]


@contextmanager
def database_away(*spared: int) -> Iterator[None]:
    """Nobody can connect to the test's database, and who was connected is not any more, but for those spared."""
    name = connection.settings_dict["NAME"]
    url = database_url().replace(f"/{name}?", "/postgres?")
    with psycopg.connect(url, autocommit=True) as other:
        allow = f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS'
        other.execute(f"{allow} false")
        try:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> ALL(%s)",
                [name, list(spared)],
            )
            yield
        finally:
            other.execute(f"{allow} true")


def wait_for_record_of(tenant: Tenant, message: OutboxMessage) -> None:
    """Wait until the message is written down as sent."""
    deadline = time.monotonic() + 60
    with tenant_context(tenant):
        while fresh(message).status != "sent":
            assert time.monotonic() < deadline, "not recorded"
            time.sleep(0.02)


def own_backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
def test_a_daemon_says_once_that_the_database_is_away_and_goes_on_when_it_is_back(
    acme: Tenant, send: Callable[[str], OutboxMessage], mail: Catcher
) -> None:
    before = send("before")
    with daemon() as process:
        mail.wait_for(1, 60)
        # It is between two passes then; in a turn it would first say what broke there.
        wait_for_record_of(acme, before)
        with database_away(own_backend()):
            assert process.complaint().startswith("the database does not answer, it is tried again: ")
            threading.Event().wait(1)
        assert process.complaint().startswith("the database answers again, after")
        send("after")
        assert mail.wait_for(2, 60)[1].subject == "after"


@pytest.mark.django_db(transaction=True)
def test_a_database_that_goes_away_in_a_turn_ends_the_pass_and_what_the_provider_said_is_written_down_when_it_is_back(
    acme: Tenant, globex: Tenant, both: Fake
) -> None:
    back = threading.Event()

    def take(outgoing: Outgoing) -> Accepted:
        gone = threading.Event()

        def leave() -> None:
            with database_away():
                gone.set()
                back.wait(2)

        threading.Thread(target=leave).start()
        assert gone.wait(30)
        return Accepted(provider_id="p-1")

    both.script("ada@example.com", take)
    message = accepted(tenant=acme)
    with pytest.raises(OperationalError):
        run()
    with tenant_context(acme):
        assert (fresh(message).status, fresh(message).external_id) == ("sent", "p-1")


# In a caller's own transaction nothing else is needed: the tests above without their own are such callers.


def test_a_pass_inside_a_transaction_leaves_it_usable(acme: Tenant, both: Fake) -> None:
    with transaction.atomic():
        message = accepted(tenant=acme)
        run()
    with tenant_context(acme):
        assert fresh(message).status == "sent"
        make_due()
        assert turn().total == 0
