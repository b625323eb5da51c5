"""Whom a served page lets in: names of this machine, and the secret that this user's processes share.

The secret lies in a file that only its owner can open: no page can read it, and Prefect's clients send it.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.core.errors import ConfigError
from eridiff.core.leftovers import temporary_path

FILE = "secret"  # in PREFECT_HOME, which all checkouts of a user share
USER = "eridiff:"  # Prefect's credentials are USER:PASSWORD
BYTES = 32
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
NONCE, PROOF = "x-eridiff-nonce", "x-eridiff-proof"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Who is let in: by which names this machine is asked for, the secret, and the password if one is set."""

    names: frozenset[str]
    secret: str
    password: str | None = None

    def fit(self, given: str | None) -> bool:
        """Whether these credentials are ours."""
        if given is None:
            return False
        text = given.encode(errors="surrogatepass")  # JSON's \ud800 is no mistake of ours
        known = (self.secret, *([self.password] if self.password else []))
        return any(hmac.compare_digest(text, one.encode()) for one in known)


def read_names(given: Iterable[str]) -> frozenset[str]:
    """Loopback's names and those that the user gives, as they stand in a Host without its port.

    Raises: ConfigError where one is no name and no address.
    """
    found = set(LOOPBACK)
    for text in given:
        name = text.strip().lower().removeprefix("[").removesuffix("]")
        try:
            name = str(ipaddress.ip_address(name))
        except ValueError:
            if not is_name(name):
                raise ConfigError(
                    f"served_as (local.yaml or ERIDIFF_SERVED_AS): '{text}' is no name of a machine. Write the name or "
                    "address alone, such as studio.local or 192.168.1.5, without scheme, port or *."
                ) from None
        found.add(name)
    return frozenset(found)


def is_name(text: str) -> bool:
    """Whether a text is the name or the address of a machine, alone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return NAME.fullmatch(text.lower()) is not None
    return True


def beyond(names: Iterable[str]) -> bool:
    """Whether any of them may lead here from another machine."""
    return any(name not in LOOPBACK and not _is_loopback(name) for name in names)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def proof(secret: str, port: int, nonce: str) -> str:
    """What shows to one who knows the secret that the server at a port knows it too, and gives nothing away."""
    return hmac.new(secret.encode(), f"eridiff gate {port} {nonce}".encode(), hashlib.sha256).hexdigest()


def local_secret(home: Path) -> str:
    """The secret of a home, made where there is none.

    Raises: ConfigError where another may have read or written it, or it is none.
    """
    path = home / FILE
    if not path.exists():
        _make(path)
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {stat.S_IMODE(state.st_mode):04o}, owner {state.st_uid}), so it is no "
            "secret: stop `make serve`, remove the file, and start again. On a disk without owners and modes, name "
            "another folder: PREFECT_HOME=FOLDER."
        )
    text = path.read_text("ascii", errors="replace").strip()
    if not text.startswith(USER) or len(text) < len(USER) + BYTES:
        raise ConfigError(f"{path} holds no secret of eridiff: stop `make serve`, remove the file, and start again.")
    return text


def _make(path: Path) -> None:
    """Write a new one whole under its name; where another process was first, its own stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(number, "w") as file:
            file.write(f"{USER}{secrets.token_urlsafe(BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
