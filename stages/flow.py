"""The pipeline under Prefect: a task a stage, what a run's page shows, and the served form.

The only file that imports prefect. `make flow` and `make serve` start it beside a server (eridiff/flow/server.py).
"""

import asyncio
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runner import Runner
from prefect.runtime import flow_run, task_run
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Cancelled, Completed, Failed
from prefect.types.entrypoint import EntrypointType

from eridiff.core.errors import ConfigError, EridiffError, run_main
from eridiff.core.locks import hold_file
from eridiff.core.progress import say
from eridiff.dataset.unbounded import refuse_unbounded
from eridiff.dvc.before_versions import refuse_early
from eridiff.dvc.experiments import refuse_uncommitted, results
from eridiff.dvc.repair import mend
from eridiff.flow.allowed import FlowPage
from eridiff.flow.deployment import close_books, keep_form
from eridiff.flow.form import CHECKOUT, MAX_MINUTES, Request, read_request, read_sets
from eridiff.flow.gate import Gate
from eridiff.flow.gpu_slots import hold_slot, slot_names
from eridiff.flow.nodes import Node, may_run, read_nodes, up_to
from eridiff.flow.outcomes import CACHED, Outcome
from eridiff.flow.page import pages
from eridiff.flow.retry_busy import RepeatBusy
from eridiff.flow.run import Place, Turn, read_status, run_experiment, run_stage
from eridiff.flow.server import read_keys
from eridiff.flow.supervise import Crew
from eridiff.machine.local import checkout_root, load_local

LOCK = ".dvc/tmp/eridiff-flow.lock"  # held by the one run that works in the checkout
RETRY_SECONDS = (10.0, 60.0)  # between the attempts of a stage that touches a network, and their number


class StageError(EridiffError):
    """A stage failed and is tried again."""


class Run:
    """One run of a project: what its tasks share."""

    def __init__(self, request: Request, crew: Crew, lock: int) -> None:
        self.request, self.crew, self.lock = request, crew, lock
        self.nodes = up_to(read_nodes(request.folder), request.stop_at)
        self.outcomes: dict[str, Outcome] = {}
        self.lines: dict[str, list[str]] = {}
        self.futures: dict[str, PrefectFuture[Any]] = {}

    @contextmanager
    def place(self, *, gpu: bool, keep: bool) -> Iterator[Place]:
        """Where this run's commands run, with a GPU held meanwhile where they need one and this machine has some."""
        names = slot_names(os.environ) if gpu else {}
        environment: dict[str, str] = dict(os.environ)
        prefix: tuple[str, ...] = ()
        with ExitStack() as held:
            if names:
                slot = held.enter_context(hold_slot(names, self.crew.stopped, get_run_logger().info))
                device = os.environ.get("ERIDIFF_DEVICE") or load_local().device
                environment, prefix = {**environment, **slot.environment(device)}, ("--release", slot.lease)
            lock = self.lock if keep else -1
            folder = self.request.folder
            yield Place(crew=self.crew, folder=folder, environment=environment, prefix=prefix, keep=lock)

    def seconds(self, node: Node) -> float | None:
        """How long a stage may take."""
        return self.request.minutes * 60 if self.request.minutes else node.timeout

    def submit(self, node: Node, work: Task[..., Any], *arguments: Any) -> None:
        """Start a stage's task, to run after those that it reads from."""
        after = [self.futures[name] for name in node.upstream if name in self.futures]
        named = work.with_options(name=node.name, task_run_name=node.name)
        self.futures[node.name] = named.submit(self, node, *arguments, wait_for=after)

    def note(self, node: Node, outcome: Outcome, lines: list[str]) -> State[Any]:
        """Keep what came of a stage; its task's state."""
        self.outcomes[node.name], self.lines[node.name] = outcome, lines
        make = Completed if outcome.well else Failed
        return make(name=outcome.state, message=outcome.message)


@task(cache_policy=NO_CACHE)
def stage_task(run: Run, node: Node, changed: bool) -> State[Any]:
    """One stage in place."""
    if not changed:
        return run.note(node, CACHED, [])
    try:
        with run.place(gpu=node.gpu, keep=True) as place:
            outcome, lines = run_stage(place, node, run.seconds(node), get_run_logger().info)
    except InterruptedError as error:
        return Cancelled(message=str(error))
    if not outcome.well and node.network and (task_run.run_count or 1) <= len(RETRY_SECONDS):
        raise StageError(outcome.message)
    return run.note(node, outcome, lines)


@task(cache_policy=NO_CACHE)
def turn_task(run: Run, node: Node, turn: Turn) -> State[Any]:
    """One stage's turn in an experiment."""
    try:
        return run.note(node, *turn.follow(run.seconds(node), get_run_logger().info))
    except InterruptedError as error:
        return Cancelled(message=str(error))


@task(cache_policy=NO_CACHE)
def skipped_task(run: Run, node: Node) -> None:
    """A stage that reads from one that failed. It never starts, and the page shows that."""


@flow(name="eridiff", validate_parameters=False)
def train_lora(
    project: str = CHECKOUT,
    preset: str | None = None,
    stop_at: str | None = None,
    minutes: float | None = None,
    overrides: dict[str, Any] | None = None,
) -> State[Any]:
    """Run a project's pipeline: in place, or, with a preset or overrides, as an experiment beside it."""
    root = checkout_root()
    try:
        request = read_request(root, project, preset, overrides, stop_at, minutes)
        if request.changes:
            refuse_uncommitted(request.folder, project)
        with Crew() as crew, ExitStack() as held:
            lock = held.enter_context(hold_file(root / LOCK, crew.stopped, get_run_logger().info))
            refuse_unbounded(request.folder)
            for line in mend(request.folder):
                get_run_logger().warning(line)
            refuse_early(request.folder)
            run = Run(request, crew, lock)
            experiment = None
            if request.changes:
                experiment = as_experiment(run, held)
            else:
                in_place(run)
            for future in run.futures.values():
                future.wait()
            show(run, experiment)
            return final_state(run, experiment)
    except EridiffError as error:
        get_run_logger().error("%s", error)
        return Failed(message=str(error))


def in_place(run: Run) -> None:
    """Submit a task a stage, each after those that it reads from."""
    with run.place(gpu=False, keep=True) as place:
        changed = may_run(run.nodes, read_status(place))
    for node in run.nodes:
        delays = list(RETRY_SECONDS) if node.network else []
        work = stage_task.with_options(retries=len(delays), retry_delay_seconds=delays)
        run.submit(node, work, node.name in changed)


def as_experiment(run: Run, held: ExitStack) -> str:
    """Follow one `dvc exp run --temp`, and give each stage its task when its turn comes; the experiment's name."""
    again = f"-{flow_run.run_count}" if (flow_run.run_count or 1) > 1 else ""
    name = f"{slug(flow_run.name or 'run')}-{str(flow_run.id)[-4:]}{again}"
    nodes = {node.name: node for node in run.nodes}
    for change in run.request.changes:
        get_run_logger().info("%s", change)
    with run.place(gpu=any(node.gpu for node in run.nodes), keep=False) as place:
        changes, stop_at = run.request.changes, run.request.stop_at
        for turn in run_experiment(place, name, changes, stop_at, held.close, get_run_logger().info):
            run.submit(nodes[turn.name], turn_task, turn)
        for future in run.futures.values():
            future.wait()
    lost = {name for name, outcome in run.outcomes.items() if not outcome.well}
    for node in run.nodes:
        if node.name not in run.futures and lost & set(node.upstream):
            lost.add(node.name)
            run.submit(node, skipped_task)
    return name


def slug(text: str) -> str:
    """Letters, digits and dashes: what names of artifacts and experiments are made of."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def show(run: Run, experiment: str | None) -> None:
    """Put pictures, cache line and digests on the run's page."""
    well = len(run.outcomes) == len(run.nodes) and all(outcome.well for outcome in run.outcomes.values())
    files = results(run.request.folder, experiment) if well else {}
    for key, markdown in pages(run.outcomes, run.lines, files).items():
        name = f"{slug(run.request.project)}-{key}"
        create_markdown_artifact(markdown, key=name, description=f"{run.request.project}: {key}")


def final_state(run: Run, experiment: str | None) -> State[Any]:
    """The run's own state: the first failure's message, or how many stages ran."""
    for node in run.nodes:
        outcome = run.outcomes.get(node.name)
        if outcome and not outcome.well:
            return Failed(name=outcome.state, message=f"{node.name}: {outcome.message}")
    if len(run.outcomes) < len(run.nodes):
        return Cancelled(message="the run was stopped")
    states = [outcome.state for outcome in run.outcomes.values()]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    place = f"; experiment {experiment}: `dvc exp apply {experiment}`" if experiment else ""
    return Completed(name="Cached" if set(states) == {"Cached"} else "Completed", message=f"stages: {counts}{place}")


async def serve_form(root: Path, schedules: list[Schedule]) -> None:
    """Register this checkout's form and run what is asked for until stopped."""
    runner = Runner(name=f"eridiff-{root.name}", limit=2 + len(slot_names(os.environ)), pause_on_shutdown=False)
    deployment = await train_lora.ato_deployment(
        f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}",
        schedules=schedules or None,
        description=f"Runs the pipeline of {root}, or of one of its projects.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    number = await runner.aadd_deployment(deployment)
    await asyncio.to_thread(close_books, str(number))
    threading.Thread(target=keep_form, args=(root, str(number)), daemon=True).start()
    await runner.start()


def server() -> Gate:
    """Prefect's server behind its gate, for uvicorn."""
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    keys = read_keys(os.environ, PREFECT_SERVER_API_AUTH_STRING.value())
    return Gate(RepeatBusy(create_app()), keys, FlowPage(), say)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="`make flow` and `make serve`.")
Project = Annotated[str, typer.Option(help="A folder of projects/; the checkout's own pipeline without it.")]
Preset = Annotated[str | None, typer.Option(help="A params file of presets/, by name: the run is an experiment.")]
StopAt = Annotated[str | None, typer.Option(help="The last stage to run.")]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, max=MAX_MINUTES, help="Minutes after which any one stage is stopped."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value: the run is an experiment.")]


@app.command("flow")
def flow_word(
    project: Project = CHECKOUT,
    preset: Preset = None,
    stop_at: StopAt = None,
    minutes: Minutes = None,
    sets: Set = None,
) -> None:
    """Run a project's pipeline once."""
    state = train_lora(project, preset, stop_at, minutes, read_sets(sets or []), return_state=True)
    say(f"flow: {state.name}: {state.message}")
    raise typer.Exit(0 if state.is_completed() else 1)


@app.command("serve")
def serve_word(
    cron: Annotated[str | None, typer.Option(help="Times to run at, such as '0 22 * * *', in local time.")] = None,
    every: Annotated[float | None, typer.Option(min=1, max=1e6, help="Minutes between two runs.")] = None,
    project: Project = CHECKOUT,
    preset: Preset = None,
    stop_at: StopAt = None,
    minutes: Minutes = None,
    sets: Set = None,
) -> None:
    """Show the form and run what is asked for; --cron and --every run the project of the other options."""
    from tzlocal import get_localzone_name

    root, overrides = checkout_root(), read_sets(sets or [])
    read_request(root, project, preset, overrides, stop_at, minutes)
    chosen = {"project": project, "preset": preset, "stop_at": stop_at, "minutes": minutes, "overrides": overrides}
    parameters = {name: value for name, value in chosen.items() if value}
    schedules = [Cron(cron, timezone=get_localzone_name(), parameters=parameters)] if cron else []
    schedules += [Interval(timedelta(minutes=every), parameters=parameters)] if every else []
    try:
        with hold_file(root / ".dvc/tmp/eridiff-serve.lock"):
            asyncio.run(serve_form(root, schedules))
    except BlockingIOError:
        raise ConfigError(f"{root} is being served already: stop that `make serve` first, or use it.") from None


if __name__ == "__main__":
    from stages.flow import app as named  # not __main__'s: a run finds the flow by the name of its module

    run_main(lambda: named(standalone_mode=True))
