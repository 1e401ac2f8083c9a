"""Real servers of databases, on ports of their own; without them a test is skipped"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "pears'n\\apples"  # what an address, SQL and a connection string each quote in their way


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _as_user(name: str) -> dict:
    "How a process is started that refuses to run as root"
    if os.geteuid():
        return {}
    user = pwd.getpwnam(name)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def _folder(user: str):
    "A folder of the server's user, which pytest's are not: it closes them to all others"
    with tempfile.TemporaryDirectory(prefix="scalai-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "data").mkdir()
        if not os.geteuid():
            shutil.chown(folder / "data", user, user)
        yield folder


@dataclass
class Server:
    "A server that a test may stop and start"

    command: list[str]
    folder: Path
    port: int
    user: str  # whom it runs as
    ready: list[str]  # command that succeeds when it listens
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with open(self.folder.parent / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd="/", **_as_user(self.user)
            )
        for _ in range(600):
            assert self.process.poll() is None, (self.folder.parent / "log").read_text()[-2000:]
            if not subprocess.run(self.ready, capture_output=True).returncode:
                return
            time.sleep(0.1)
        raise AssertionError("the server does not listen")

    def stop(self, signum: int = signal.SIGINT) -> None:
        "SIGINT: PostgreSQL ends all sessions; SIGKILL: the machine has failed"
        self.process.send_signal(signum)
        self.process.wait(60)


@contextmanager
def postgresql():
    "PostgreSQL with a role `reader` that has a password, and logical decoding"
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    binary = str(found[-1]) if found else shutil.which("postgres")
    if not binary:
        pytest.skip("no PostgreSQL; make test-services installs it")
    with _folder("postgres") as folder:
        data, port = folder / "data", free_port()
        (folder / "password").write_text(PASSWORD)
        tools = Path(os.path.realpath(binary)).parent
        ready = [str(tools / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        initdb = [str(tools / "initdb"), "-D", str(data)]
        initdb += ["-U", "reader", "--pwfile", str(folder / "password"), "-A", "scram-sha-256"]
        initdb += ["-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **_as_user("postgres"))
        command = [binary, "-D", str(data), "-p", str(port)]
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        settings |= {"wal_level": "logical", "fsync": "off", "max_replication_slots": "10"}
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        yield from _served(Server(command, data, port, "postgres", ready))


@contextmanager
def mariadb():
    "MariaDB with a user `reader` that has a password, and a database `shop`"
    binary = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if not binary:
        pytest.skip("no MariaDB; make test-services installs it")
    with _folder("mysql") as folder:
        data, port = folder / "data", free_port()
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, capture_output=True, cwd="/", **_as_user("mysql"))
        setup = folder / "setup.sql"
        password = PASSWORD.replace("\\", "\\\\").replace("'", "''")
        setup.write_text(
            "CREATE DATABASE IF NOT EXISTS shop;\n"
            f"CREATE USER IF NOT EXISTS reader@127.0.0.1 IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON *.* TO reader@127.0.0.1;\n"
        )
        command = [binary, "--no-defaults", f"--datadir={data}", f"--port={port}"]
        command += ["--bind-address=127.0.0.1", f"--socket={data}/socket", f"--pid-file={data}/pid"]
        command += [f"--init-file={setup}", "--skip-name-resolve"]
        ready = ["mariadb-admin", "--no-defaults", "-h127.0.0.1", f"-P{port}", "ping"]
        yield from _served(Server(command, data, port, "mysql", ready))


def _served(server: Server):
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
