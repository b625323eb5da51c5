"""A Prefect server beside a command, both of which end with this process; nothing here imports prefect.

`python -m eridiff.flowserver serve|once COMMAND...`: `serve` starts the server at its usual address, `once` at a free
port for as long as the command runs. A server that answers already, or that PREFECT_API_URL names, is used instead.
"""

import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from eridiff.errors import ConfigError, run_main
from eridiff.progress import say
from eridiff.stopping import last_words
from eridiff.supervise import STOPPED, Crew, Supervised, stopped_by_signals

HOST, PORT = "127.0.0.1", 4200  # loopback only: the server asks for no password
START_SECONDS = 120.0  # the first start makes the database
# What `prefect server start` does, with a header that keeps the browser from asking any other server: Prefect's pages
# else ask amplitude.com each time, analytics or not.
ONLY_THIS_SERVER = "content-security-policy:default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
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
    """The environment of the server and of all that talk to it: no telemetry, loopback, a home of its own."""
    found = {**SETTINGS, "PREFECT_HOME": str(home(given)), **given}
    found["PREFECT_PROFILES_PATH"] = given.get("PREFECT_PROFILES_PATH", f"{found['PREFECT_HOME']}/profiles.toml")
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = ",".join(filter(None, [given.get(name), f"{HOST},localhost"]))
    scripts = str(Path(sys.executable).parent)  # experiments start `dvc` by its name
    found["PATH"] = f"{scripts}{os.pathsep}{found.get('PATH', '')}"
    return found


def home(given: Mapping[str, str]) -> Path:
    """Where the server keeps runs and schedules: one for all checkouts of a user."""
    data = Path(given.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "eridiff" / "prefect"


def answers(url: str) -> bool:
    """Whether a Prefect server answers at an address (.../api)."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=3) as reply:
            return json.loads(reply.read()) is True
    except (OSError, ValueError):
        return False


def api_url(settings: Mapping[str, str]) -> str:
    """The address of the API on this machine."""
    return f"http://{settings['PREFECT_SERVER_API_HOST']}:{settings['PREFECT_SERVER_API_PORT']}/api"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start_server(crew: Crew, settings: Mapping[str, str]) -> Supervised:
    """Start a server and wait until it answers.

    Raises: ConfigError with the server's last lines where it ends instead, or does not answer in time.
    """
    command = [sys.executable, "-m", "uvicorn", *SERVER]
    command += ["--host", settings["PREFECT_SERVER_API_HOST"], "--port", settings["PREFECT_SERVER_API_PORT"]]
    server = crew.start(command, Path.cwd(), settings)
    said: list[str] = []

    def listen() -> None:  # its lines are kept for an error, and are not the run's
        for line in server.lines():
            del said[:-20]
            said.append(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    url, deadline = api_url(settings), time.monotonic() + START_SECONDS
    while not answers(url):
        if not listener.is_alive() or time.monotonic() > deadline:
            server.stop()
            raise ConfigError("Prefect's server did not start:\n" + "\n".join(said))
        time.sleep(0.2)
    return server


def run_beside(command: list[str], settings: dict[str, str], *, once: bool) -> int:
    """Run a command with a server to talk to; its exit code, 1 where the server ended first, 0 or 130 after Ctrl-C."""
    Path(settings["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    named = settings.get("PREFECT_API_URL")
    url = named or api_url(settings)
    server, servers = None, Crew()  # not in the crew that signals stop: the server hears how its runs ended
    with Crew() as crew, stopped_by_signals(crew):
        try:
            if not answers(url):
                if named:
                    raise ConfigError(f"PREFECT_API_URL is {named}, where no server answers.")
                if once:
                    settings["PREFECT_SERVER_API_PORT"] = str(free_port())
                server = start_server(servers, settings)
                url = api_url(settings)
            member = crew.start(command, Path.cwd(), {**settings, "PREFECT_API_URL": url})
            if not named:
                threading.Thread(target=_stop_after, args=(server, url, member), daemon=True).start()
            for line in member.lines():
                say(line)
            code = member.wait()
            if crew.stopped.is_set():  # by Ctrl-C: the way to end `serve`
                return 130 if once else 0
            return 1 if code == STOPPED else code
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
    settings = environment(os.environ)
    if kind != "once":
        sys.exit(run_beside(command, settings, once=False))
    with last_words() as words:
        code = run_beside(command, {**settings, **words.environment}, once=True)
        sys.exit(0 if words.say() else code)


if __name__ == "__main__":
    run_main(main)
