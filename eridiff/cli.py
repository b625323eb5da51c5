"""The command line: `eridiff why`, `eridiff new`, `eridiff base add`, `eridiff inspect`, `eridiff store`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eridiff.core.errors import ConfigError, run_main
from eridiff.core.printable import printable
from eridiff.core.progress import say
from eridiff.store.commands import store_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="LoRA training that recomputes only what changed. In a checkout, "
    "`python -m eridiff setup | check | test | repro` are the four words that run everything.",
)
base_app = typer.Typer(no_args_is_help=True, help="Bases: pointers to model weights.")
app.add_typer(base_app, name="base")
app.add_typer(store_app, name="store")


def show_version(asked: bool) -> None:
    """Print which eridiff this is."""
    from eridiff import __version__

    if asked:
        say(f"eridiff {__version__}")
        raise typer.Exit


@app.callback()
def before(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show which eridiff this is.")
    ] = False,
) -> None:
    """LoRA training that recomputes only what changed."""
    # What a killed process left of DVC's files is mended before any command.
    from eridiff.core.progress import warn
    from eridiff.dvc.repair import mend
    from eridiff.machine.local import find_upward

    project = find_upward(".dvc")
    for line in mend(project) if project else []:
        warn(line)


@base_app.command("add")
def base_add(
    name: Annotated[str, typer.Argument(help="Name of the base, as in model.base.")],
    sources: Annotated[
        list[str],
        typer.Argument(help="A model folder in diffusers' layout, OWNER/NAME of the hub, or weight files."),
    ],
    config: Annotated[
        Path | None, typer.Option(help="Folder in diffusers' layout whose configs and tokenizers the files have.")
    ] = None,
    weights: Annotated[
        str | None,  # --variant: its earlier name, and diffusers' own
        typer.Option("--weights", "--variant", help="Which weights of a folder with several, such as fp16."),
    ] = None,
) -> None:
    """Make the pointers of a base: digests of its weights, wherever they are."""
    from eridiff.bases.add import add_base

    for path in add_base(name, sources, config, weights):
        say(f"written: {path}")


@base_app.command("want")
def base_want(name: Annotated[str, typer.Argument(help="A published model, as presets name it.")]) -> None:
    """Name a base whose weights are not here yet: captions, buckets and plan run without them."""
    from eridiff.bases.listing import want

    for line in want(name):
        say(line)


@base_app.command("list")
def base_list() -> None:
    """Every base, and whether its weights are on this machine."""
    from eridiff.bases.listing import list_bases

    for line in list_bases():
        say(line)


@base_app.command("find")
def base_find(
    name: Annotated[str | None, typer.Argument(help="A base; none: every model file that this machine has.")] = None,
) -> None:
    """Where the weights of a base lie, their content checked; or which models this machine has."""
    from eridiff.bases.listing import find_base, find_models

    for line in find_base(name) if name else find_models():
        say(line)


@base_app.command("verify")
def base_verify(
    name: Annotated[str | None, typer.Argument(help="With --deep: a base; none: the one of this project.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of the weights again instead.")] = False,
) -> None:
    """Was the base of this project loaded right? Its denoiser and its VAE on cached samples. Or: is no byte damaged?"""
    from eridiff.bases.listing import verify_deep
    from eridiff.training.job import verify_project

    for line in verify_deep(name) if deep else verify_project():
        say(line)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A weight file, one of its shards, a pointer of a base, or a folder.")],
) -> None:
    """Show what a weight file is, from its header; or a pointer, and whether its files are on this machine."""
    from eridiff.bases.inspect import inspect_path

    for line in inspect_path(path):
        say(line)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of a project of this checkout, or the folder of one anywhere.")],
    images: Annotated[Path, typer.Option(help="Folder of pictures, with captions beside them.")],
    trigger: Annotated[str | None, typer.Option(help="Word that will call what is trained, with --preset.")] = None,
    preset: Annotated[str | None, typer.Option(help="Name of a preset, such as those in presets/.")] = None,
    params: Annotated[Path | None, typer.Option(help="Params file to copy as it is, in place of a preset.")] = None,
    push_pictures: Annotated[
        bool, typer.Option("--push-pictures", help="Let `dvc push` send the pictures and captions too.")
    ] = False,
) -> None:
    """Make a project of your own pictures: projects/NAME in a checkout, or a folder anywhere, with git and DVC."""
    from contextlib import chdir

    from eridiff.dvc.pushing import what_stays
    from eridiff.machine.gpus import find_gpus
    from eridiff.projects.new import offer_presets, settle_base, start_project
    from eridiff.projects.presets import find_preset
    from eridiff.projects.projects import make_project, run_command

    if params is not None:
        if preset or trigger:
            raise ConfigError("--params copies a file as it is: leave --preset and --trigger out, or --params.")
        folder = make_project(name, images, params, push=push_pictures)
        say(f"made {folder}: edit its params.yaml, then run `{run_command(folder)}` there")
    else:
        if preset is None:
            raise ConfigError(offer_presets(find_gpus()))
        if trigger is None:
            raise ConfigError("--trigger is missing: the word that will call what is trained, such as zwxcat.")
        folder = start_project(name, images, trigger, find_preset(preset), push=push_pictures)
        with chdir(folder):  # whose bases are meant
            say(settle_base(Path("params.yaml")))
        say(f"made {folder}: look through its params.yaml, then run `{run_command(folder)}` there")
    for line in what_stays(folder):
        say(line)


@app.command("import-config")
def import_config(
    path: Annotated[Path, typer.Argument(help="A YAML file of EriDiffusion.")],
    out: Annotated[Path, typer.Option(help="Where the params file goes.")] = Path("imported.yaml"),
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, whose number turns epochs to steps.")] = None,
) -> None:
    """Make a params file out of a configuration of EriDiffusion; say what became of every key."""
    from eridiff.projects.import_eridiffusion import write_imported

    imported = write_imported(path, out, images)
    for line in imported.lines:
        say(f"  {line}")
    say(f"written: {out}. Next:")
    for line in imported.next_steps:
        say(f"  {line.replace('PARAMS', shlex.quote(str(out)))}")


@app.command()
def plan(
    memory: Annotated[
        float | None,
        typer.Option(min=1, max=100_000, help="Plan for a card of so many GiB instead of this machine's."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the changes that make it fit into params.yaml.")] = False,
) -> None:
    """Show the memory and time of each stage before it runs, and which params would make it fit."""
    from eridiff.memory.plan import plan_project

    for line in plan_project(Path.cwd(), memory, write=write):
        say(line)


@app.command()
def upgrade(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run again, and why.")] = False,
) -> None:
    """After an update of eridiff: bring this project, or the checkout's pipeline, up to it. Runs nothing.

    It shows first which stages will run again, and why. Then it renews dvc.yaml, dvc.lock (code has versions now) and,
    outside a checkout, the copies of the versions; the kind of links; pictures that are links into DVC's cache; objects
    there that an edit altered.
    """
    from eridiff.projects.upgrade import find_behind, foresee_upgrade, upgrade

    folder, same = Path.cwd(), ["all is as this eridiff makes it already"]
    for line in foresee_upgrade(folder):
        say(line)
    for line in (find_behind(folder) if dry_run else upgrade(folder)) or same:
        say(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def repro(context: typer.Context) -> None:
    """Run the pipeline of this project: `dvc repro`, with this Python's stages; arguments go to it.

    As `make repro` does: DVC's files are mended before it, and nothing of it is left running after it.
    """
    scripts = str(Path(sys.executable).parent)  # of this environment, activated or not: dvc.yaml says `python`
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])}
    os.execve(sys.executable, [sys.executable, "-m", "eridiff.reproduce", *context.args], environment)


@app.command()
def why(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    rehash: Annotated[bool, typer.Option(help="Read every file again, also those that look unchanged.")] = False,
) -> None:
    """Show what the next `dvc repro` will do, and why."""
    import contextlib

    from eridiff.core.progress import warn
    from eridiff.dvc.before_versions import refuse_early
    from eridiff.dvc.outs import read_outs
    from eridiff.machine.local import store_root
    from eridiff.projects.upgrade import find_behind
    from eridiff.store.dedupe import dedupe_outs
    from eridiff.why.prediction import render
    from eridiff.why.why import explain

    refuse_early(Path.cwd())
    for reason in find_behind(Path.cwd()):
        warn(f"this project is one of before: {reason}. `eridiff upgrade` brings it up.")

    with contextlib.redirect_stdout(sys.stderr) if json_output else contextlib.nullcontext():  # progress
        prediction = explain(Path.cwd(), rehash=rehash)
    for line in [prediction.to_json()] if json_output else render(prediction):
        say(line)
    dedupe_outs(store_root(), read_outs())  # what `dvc checkout` and runs without training copied
    if prediction.error:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 1."""

    def run() -> None:
        refuse_bytes(sys.argv[1:])
        app(standalone_mode=True)

    run_main(run)


def refuse_bytes(arguments: list[str]) -> None:
    """Refuse arguments that are no UTF-8: names in params, pointers and messages are texts.

    `inspect` writes nothing, and takes any path. Raises: ConfigError that names the argument.
    """
    for argument in arguments if arguments[:1] != ["inspect"] else ():
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigError(f"{printable(argument)} is no UTF-8: rename that file or folder.")
