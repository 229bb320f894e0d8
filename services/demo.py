"""The whole service on this machine: `make demo`.

Starts PostgreSQL and Valkey (unless `DATABASE_URL` and `REDIS_URL` name others), a mail catcher, the web process,
a worker for each queue and the scheduler, sends a few messages for two tenants, and says what became of them.
Everything it keeps is under `.demo/`.
"""

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from services.embedded import ServerError, Servers, data_folders
from services.env import SettingsError, integer
from services.start import configure, fail, require_servers

if TYPE_CHECKING:
    from notifications.models import OutboxMessage
    from tenants.models import Tenant

FOLDER = Path(".demo")
QUEUES = ("urgent", "high", "default", "bulk", "inbound", "maintenance")
DELIVERED_WITHIN = 60.0
TENANTS = {"acme": "Acme Rooms", "globex": "Globex Travel"}


def main() -> None:
    """Run the demo; with --once, exit 0 when all messages were delivered and 1 when not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="end when the messages have arrived")
    parser.add_argument("--clean", action="store_true", help="remove the demo's data")
    options = parser.parse_args()
    if options.clean:
        clean()
        return
    # A terminal's Ctrl-C reaches every process; only this one acts on it, and ends the others in order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with demo() as delivered:
            if options.once:
                raise SystemExit(0 if delivered else 1)
            say("\nRunning. Ctrl-C stops everything.")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("\nStopped.")
    except (ServerError, SettingsError) as error:
        fail(str(error))


def clean() -> None:
    """Remove everything that the demo keeps."""
    with alone():
        pass
    for folder in [*data_folders(FOLDER.absolute() / "servers"), FOLDER]:
        shutil.rmtree(folder, ignore_errors=True)
    say("The demo's data is removed.")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the folder: one demo runs in it at a time, and nobody removes it meanwhile."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail("a demo is running in this folder: stop it with Ctrl-C first")
        end_leftovers()
        yield


def end_leftovers() -> None:
    """End what a demo that was killed left running: processes of ours, and none that took their numbers since."""
    import psutil

    kept = FOLDER / "processes"
    if not kept.exists():
        return
    for line in kept.read_text(encoding="utf-8").splitlines():
        number, _, started = line.partition(" ")
        with suppress(psutil.Error):
            process = psutil.Process(int(number))
            if f"{process.create_time():.2f}" == started:
                process.terminate()
                with suppress(psutil.TimeoutExpired):
                    process.wait(10)
    kept.unlink()


def remember(process_id: int) -> None:
    """Note a process that must not outlive the demo."""
    import psutil

    with (FOLDER / "processes").open("a", encoding="utf-8") as kept:
        kept.write(f"{process_id} {psutil.Process(process_id).create_time():.2f}\n")


@contextmanager
def demo() -> Iterator[bool]:
    """Everything running; whether the first messages were delivered."""
    with ExitStack() as stack:
        stack.enter_context(alone())
        web_port, smtp_port = port("DEMO_WEB_PORT", 8000), port("DEMO_SMTP_PORT", 8025)
        secret_values(web_port)
        if "DATABASE_URL" not in os.environ or "REDIS_URL" not in os.environ:
            say("Starting PostgreSQL and Valkey …")
            servers = Servers(FOLDER / "servers")
            stack.callback(servers.stop)
            remember(servers.valkey.process_id)
            for name, value in servers.environment.items():
                os.environ.setdefault(name, value)
        say("Starting the mail catcher …")
        stack.enter_context(mail_catcher(smtp_port))
        configure()
        note_servers()
        import django

        django.setup()
        require_servers()
        tenants = prepare(smtp_port)
        say("Starting web, workers and scheduler …")
        stack.enter_context(processes())
        wait_for_web(web_port)
        delivered = send_and_watch(tenants)
        introduce(web_port)
        yield delivered


def port(name: str, default: int) -> int:
    """A port from the environment that nobody listens on; a busy one ends the demo with one line."""
    number = integer(name, default)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            fail(f"port {number} is busy: stop what listens there, or set {name} to another")
    return number


def secret_values(web_port: int) -> None:
    """The demo's settings; keys and passwords are made at the first start and kept in `.demo/environment`."""
    from cryptography.fernet import Fernet

    (FOLDER / "static").mkdir(exist_ok=True)
    kept = FOLDER / "environment"
    if not kept.exists():
        made = {
            "SECRET_KEY": secrets.token_urlsafe(50),
            "FIELD_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            **{f"DEMO_PASSWORD_{name.upper()}": secrets.token_urlsafe(9) for name in [*TENANTS, "operator"]},
        }
        kept.touch(mode=0o600)
        kept.write_text("".join(f"{name}={value}\n" for name, value in made.items()), encoding="utf-8")
    for line in kept.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        os.environ.setdefault(name, value)
    for name, value in {
        "BASE_DOMAIN": "localhost",
        "HTTPS": "0",
        "WEB_BIND": f"127.0.0.1:{web_port}",
        # The demo's own mail catcher listens on loopback, where tenants' accounts otherwise must not reach.
        "NOTIFY_PRIVATE_NETWORKS": "127.0.0.0/8",
        "NOTIFY_EMAIL_PROVIDER": "console",
        "NOTIFY_SMS_PROVIDER": "console",
        "STATIC_ROOT": str(FOLDER / "static"),
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "console",
    }.items():
        os.environ.setdefault(name, value)


def note_servers() -> None:
    """Write down where the servers are, for `make demo-shell`."""
    kept = FOLDER / "running"
    kept.touch(mode=0o600)
    names = ("DATABASE_URL", "REDIS_URL", "BASE_DOMAIN", "HTTPS", "NOTIFY_PRIVATE_NETWORKS", "LOG_LEVEL", "LOG_FORMAT")
    kept.write_text("".join(f"{name}='{os.environ[name]}'\n" for name in names), encoding="utf-8")


@contextmanager
def mail_catcher(smtp_port: int) -> Iterator[None]:
    """An SMTP server that puts every mail into the Maildir `.demo/mail`."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.handlers import Mailbox

    controller = Controller(Mailbox(FOLDER / "mail"), hostname="127.0.0.1", port=smtp_port)
    controller.start()
    try:
        yield
    finally:
        controller.stop()


def prepare(smtp_port: int) -> list["Tenant"]:
    """Migrate, and make the tenants with all that they need; what is there already is kept."""
    from django.core.management import call_command

    say("Migrating …")
    call_command("migrate_schemas", verbosity=0)
    from services import demo_content

    demo_content.make_operator(os.environ["DEMO_PASSWORD_OPERATOR"])
    demo_content.make_platform_templates()
    made = []
    for key, name in TENANTS.items():
        began = time.monotonic()
        tenant = demo_content.make_tenant(key, name, os.environ[f"DEMO_PASSWORD_{key.upper()}"], smtp_port)
        say(f"Tenant {name}: ready in {time.monotonic() - began:.1f} s")
        made.append(tenant)
    return made


@contextmanager
def processes() -> Iterator[None]:
    """Web, one worker a queue and the scheduler, each with a log under `.demo/logs`."""
    logs = FOLDER / "logs"
    logs.mkdir(exist_ok=True)
    commands = {"web": ["services.web"], "scheduler": ["services.scheduler"]}
    commands |= {f"worker-{queue}": ["services.worker", queue] for queue in QUEUES}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in commands.items():
            with (logs / f"{name}.log").open("ab") as log:
                running.append(
                    subprocess.Popen(  # noqa: S603 (our own modules)
                        [sys.executable, "-m", *arguments], stdout=log, stderr=log, start_new_session=True
                    )
                )
            remember(running[-1].pid)
        yield
    finally:
        stop(running)


def stop(running: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End processes: asked first, then made to."""
    for process in running:
        process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def wait_for_web(web_port: int) -> None:
    """Wait until the web process is ready; end the demo with one line when it is not within a minute."""
    from http.client import HTTPConnection, HTTPException

    deadline = time.monotonic() + DELIVERED_WITHIN
    while time.monotonic() < deadline:
        with suppress(OSError, HTTPException):
            asked = HTTPConnection("127.0.0.1", web_port, timeout=2)
            asked.request("GET", "/readyz")
            if asked.getresponse().status == 200:
                return
        time.sleep(0.1)
    fail(f"the web process did not start: see {FOLDER / 'logs' / 'web.log'}")


COLUMNS = "{:<14} {:<22} {:<9} {:<26} {:<10} {:>7}"


def send_and_watch(tenants: Sequence["Tenant"]) -> bool:
    """Send a few messages for each tenant and print each as it arrives; whether all did in time."""
    from services import demo_content

    say("\n" + COLUMNS.format("TENANT", "EVENT", "TEMPLATE", "RECIPIENT", "STATUS", "SECONDS"))
    waiting = [(tenant, message) for tenant in tenants for message in demo_content.send_messages(tenant)]
    deadline = time.monotonic() + DELIVERED_WITHIN
    delivered = 0
    total = len(waiting)
    while waiting and time.monotonic() < deadline:
        for tenant, message in list(waiting):
            if demo_content.refresh(tenant, message).status not in {"pending", "scheduled", "sending"}:
                waiting.remove((tenant, message))
                delivered += message.is_sent
                say(line(tenant, message))
        time.sleep(0.05)
    for tenant, message in waiting:
        say(line(tenant, message))
    say(f"\n{delivered} of {total} messages delivered to {FOLDER / 'mail'}")
    return delivered == total


def line(tenant: "Tenant", message: "OutboxMessage") -> str:
    """One message as a row of the table."""
    seconds = f"{(message.sent_at - message.created_at).total_seconds():.2f}" if message.sent_at else "–"
    return COLUMNS.format(
        tenant.name, message.event_key, message.template_scope, message.to_address, message.status, seconds
    )


def introduce(web_port: int) -> None:
    """Say where to look, and as whom."""
    say("\nWhere to look                             log in as              password")
    for key in TENANTS:
        password = os.environ[f"DEMO_PASSWORD_{key.upper()}"]
        say(f"http://{key}.localhost:{web_port}/".ljust(42) + f"owner@{key}.example".ljust(23) + password)
    say(f"http://localhost:{web_port}/".ljust(42) + f"{'operator':<22} {os.environ['DEMO_PASSWORD_OPERATOR']}")


if __name__ == "__main__":
    main()
