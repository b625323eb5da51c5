"""A Prefect server beside a command, both of which end with this process; nothing here imports prefect.

`python -m eridiff.flow.server serve|once COMMAND...`: `serve` starts the server at its usual address, `once` at a free
port for as long as the command runs. A server that answers already, or that PREFECT_API_URL names, is used instead.
"""

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from eridiff.core.errors import ConfigError, run_main
from eridiff.core.progress import say
from eridiff.core.stopping import STOPPED_WORDS, end_with_make, last_words
from eridiff.core.value_limits import shown
from eridiff.flow.access import FILE, NONCE, PROOF, Keys, beyond, is_name, local_secret, proof, read_names
from eridiff.flow.supervise import STOPPED, Crew, Supervised, stopped_by_signals
from eridiff.machine.local import load_local

HOST, PORT = "127.0.0.1", 4200  # loopback only, unless there is a password
EVERYWHERE = {"0.0.0.0": HOST, "::": "::1"}  # addresses to listen at that are none to ask
REFUSED = "refused: "  # how the gate's lines begin
START_SECONDS = 120.0  # the first start makes the database
# What `prefect server start` does, with a header that keeps the browser from asking any other server: Prefect's pages
# else ask amplitude.com each time, analytics or not. No other site may show them in a frame, and so guide a click.
ONLY_THIS_SERVER = (
    "content-security-policy:default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
)
SERVER = ("stages.flow:server", "--factory", "--log-level", "warning", "--header", ONLY_THIS_SERVER)
# Each can be set otherwise in the environment, under the same name.
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_API_URL": "/api",  # as the browser names this machine, which may be the end of a tunnel
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_API_HOST": HOST,
    "PREFECT_SERVER_API_PORT": str(PORT),
    # On disk, so that a slot whose holder and server were both killed is still freed; looked at every 2 s.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT__SERVER_FINAL": "1",
    "PYTHONUNBUFFERED": "1",  # a stage's lines come as they are written
}


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server and of all that talk to it: no telemetry, loopback, a home of its own.

    Raises: ConfigError where an address in it is none.
    """
    given = {name: text for name, text in given.items() if text or not name.startswith("PREFECT_")}  # '' is no password
    found = {**SETTINGS, "PREFECT_HOME": str(home(given)), **given}
    found["PREFECT_PROFILES_PATH"] = given.get("PREFECT_PROFILES_PATH", f"{found['PREFECT_HOME']}/profiles.toml")
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = ",".join(filter(None, [given.get(name), f"{HOST},localhost"]))
    scripts = str(Path(sys.executable).parent)  # experiments start `dvc` by its name
    found["PATH"] = f"{scripts}{os.pathsep}{found.get('PATH', '')}"
    _check_addresses(found)
    return found


def _check_addresses(settings: Mapping[str, str]) -> None:
    port, host, url = (
        settings.get(f"PREFECT_{name}", "") for name in ("SERVER_API_PORT", "SERVER_API_HOST", "API_URL")
    )
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"PREFECT_SERVER_API_PORT is {shown(port)}: a port is a number from 1 to 65535.")
    if not is_name(host):
        raise ConfigError(f"PREFECT_SERVER_API_HOST is {shown(host)}: write an address to listen at, such as 0.0.0.0.")
    if url and not re.fullmatch(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::[0-9]{1,5})?(?:/[!-~]*)?", url, re.ASCII):
        raise ConfigError(f"PREFECT_API_URL is {shown(url)}: write an address such as http://127.0.0.1:4200/api.")


def home(given: Mapping[str, str]) -> Path:
    """Where the server keeps runs and schedules: one for all checkouts of a user."""
    data = Path(given.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "eridiff" / "prefect"


def answers(url: str) -> bool:
    """Whether a Prefect server answers at an address (.../api)."""
    return _healthy(url, {}) is not None


def is_ours(url: str, secret: str) -> bool:
    """Whether the server there knows this user's secret: then it has the gate, and may be told the secret."""
    nonce = secrets.token_hex(16)
    port = urllib.parse.urlsplit(url).port or 80
    return _healthy(url, {NONCE: nonce}) == proof(secret, port, nonce)


def _healthy(url: str, headers: dict[str, str]) -> str | None:
    """The proof that a Prefect server answers with, empty where it has none; None where no such server answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(f"{url}/health", headers=headers), timeout=3) as reply:
            return reply.headers.get(PROOF, "") if json.loads(reply.read()) is True else None
    except (OSError, ValueError):
        return None


def api_url(settings: Mapping[str, str]) -> str:
    """The address of the API on this machine."""
    host = settings["PREFECT_SERVER_API_HOST"]
    host = EVERYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings['PREFECT_SERVER_API_PORT']}/api"


def read_keys(settings: Mapping[str, str], password: str | None) -> Keys:
    """Whom the server lets in: by its own names, and others where there is a password.

    Raises: ConfigError where other machines could ask without one, or Prefect could not compare it.
    """
    host = settings["PREFECT_SERVER_API_HOST"]
    given = settings.get("ERIDIFF_SERVED_AS")
    more = load_local().served_as if given is None else tuple(filter(None, given.split(",")))
    names = read_names([*more, *([] if host in EVERYWHERE else [host])])
    if not password and (beyond(names) or host in EVERYWHERE):
        raise ConfigError(
            f"other machines could ask this server (PREFECT_SERVER_API_HOST={host}, served_as: "
            f"{', '.join(more) or 'nothing'}), and there is no password: set PREFECT_SERVER_API_AUTH_STRING="
            "NAME:PASSWORD, or leave both as they are."
        )
    if password and not (password.isascii() and password.isprintable()):  # else Prefect answers 500 to everything
        raise ConfigError(
            "PREFECT_SERVER_API_AUTH_STRING holds characters that Prefect cannot compare: write NAME:PASSWORD in ASCII "
            "letters, digits and signs, without control characters."
        )
    return Keys(names=names, secret=local_secret(Path(settings["PREFECT_HOME"])), password=password or None)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start_server(crew: Crew, settings: Mapping[str, str], stopped: threading.Event | None = None) -> Supervised:
    """Start a server and wait until it answers.

    Raises: ConfigError with the server's last lines where it ends instead, or does not answer in time; InterruptedError
    where `stopped` is set meanwhile.
    """
    command = [sys.executable, "-m", "uvicorn", *SERVER]
    command += ["--host", settings["PREFECT_SERVER_API_HOST"], "--port", settings["PREFECT_SERVER_API_PORT"]]
    server = crew.start(command, Path.cwd(), settings)
    said: list[str] = []

    def listen() -> None:  # its lines are kept for an error, and are not the run's; but what it refuses is told
        for line in server.lines():
            if line.startswith(REFUSED):
                say(f"serve: {line}")
            del said[:-20]
            said.append(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    url, deadline = api_url(settings), time.monotonic() + START_SECONDS
    while not answers(url):
        if stopped is not None and stopped.is_set():
            server.stop()
            server.wait()
            raise InterruptedError("stopped before the server answered")
        if not listener.is_alive() or time.monotonic() > deadline:
            server.stop()
            raise ConfigError("Prefect's server did not start:\n" + "\n".join(said))
        time.sleep(0.2)
    return server


def find_server(settings: dict[str, str], *, once: bool) -> str | None:
    """The address of a running server to use, None where one must be started; what it asks for is set.

    Only a server that shows that it knows this user's secret is told it.

    Raises: ConfigError where none answers at PREFECT_API_URL, or a stranger's at our own address.
    """
    secret = local_secret(Path(settings["PREFECT_HOME"]))
    if named := settings.get("PREFECT_API_URL"):
        if not answers(named):
            raise ConfigError(
                f"PREFECT_API_URL is {named}, where no server answers, or one that is not served under that name "
                "(served_as in its local.yaml)."
            )
        if is_ours(named, secret):
            settings.setdefault("PREFECT_API_AUTH_STRING", secret)
        return named
    settings["PREFECT_API_AUTH_STRING"] = secret
    url = api_url(settings)
    if is_ours(url, secret):
        return url
    read_keys(settings, settings.get("PREFECT_SERVER_API_AUTH_STRING"))
    if once:
        settings["PREFECT_SERVER_API_PORT"] = str(free_port())
    elif answers(url):
        raise ConfigError(
            f"at {url} answers a Prefect server that does not know {settings['PREFECT_HOME']}/{FILE}: one of an "
            "earlier eridiff, of another user, or started by hand. Stop it, choose another port "
            f"(PREFECT_SERVER_API_PORT=4300), or name it if you trust it (PREFECT_API_URL={url})."
        )
    return None


def run_beside(command: list[str], settings: dict[str, str], *, once: bool) -> int:
    """Run a command with a server to talk to; its exit code, 1 where the server ended first, 0 or 130 after Ctrl-C."""
    Path(settings["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    url = find_server(settings, once=once)
    server, servers = None, Crew()  # not in the crew that signals stop: the server hears how its runs ended
    with Crew() as crew, stopped_by_signals(crew):
        try:
            if url is None:
                server, url = start_server(servers, settings, crew.stopped), api_url(settings)
            member = crew.start(command, Path.cwd(), {**settings, "PREFECT_API_URL": url})
            if "PREFECT_API_URL" not in settings:
                threading.Thread(target=_stop_after, args=(server, url, member), daemon=True).start()
            for line in member.lines():
                say(line)
            code = member.wait()
            if crew.stopped.is_set():  # by Ctrl-C: the way to end `serve`
                return 130 if once else 0
            return 1 if code == STOPPED else code
        except InterruptedError:  # Ctrl-C while the server started
            return 130 if once else 0
        finally:
            servers.stop()
            if server is not None:
                server.wait()


def _stop_after(server: Supervised | None, url: str, member: Supervised) -> None:
    """When the server ends, stop what talks to it: its runs could no longer be seen nor cancelled."""
    if server is not None:
        server.wait()  # its lines are read elsewhere
    else:  # another checkout's
        silent = 0
        while silent < 3:
            time.sleep(3)
            silent = 0 if answers(url) else silent + 1
    if member.running():
        say("serve: the server ended, so all is stopped. Start it again: what was finished is kept.")
        member.stop()


def main() -> None:
    """`serve` or `once`, then the command."""
    kind, *command = sys.argv[1:]
    end_with_make()
    settings = environment(os.environ)
    if kind != "once":
        sys.exit(run_beside(command, settings, once=False))
    with last_words() as words:
        code = run_beside(command, {**settings, **words.environment}, once=True)
        sys.exit(0 if words.say(STOPPED_WORDS if code == 130 else "") else code)


if __name__ == "__main__":
    run_main(main)
