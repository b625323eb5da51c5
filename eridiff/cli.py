"""The command line: `eridiff why`, `eridiff new`, `eridiff base add`, `eridiff inspect`, `eridiff store`."""

from pathlib import Path
from typing import Annotated

import typer

from eridiff.errors import run_main
from eridiff.storecommands import store_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="LoRA training that recomputes only what changed. `python -m eridiff setup | check | test | repro` are the "
    "four words that run everything.",
)
base_app = typer.Typer(no_args_is_help=True, help="Bases: pointers to model weights.")
app.add_typer(base_app, name="base")
app.add_typer(store_app, name="store")


@base_app.command("add")
def base_add(
    name: Annotated[str, typer.Argument(help="Name of the base, as in model.base.")],
    folder: Annotated[Path, typer.Argument(help="Model folder in diffusers' layout.")],
) -> None:
    """Make the pointers of a base: what its weights are, wherever they lie."""
    from eridiff.bases import add_base

    for path in add_base(name, folder):
        typer.echo(f"written: {path}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A weight file, one of its shards, or a model folder.")],
) -> None:
    """Say what a weight file is, from its header alone."""
    from eridiff.inspect import inspect_path

    for line in inspect_path(path):
        typer.echo(line)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the project: a folder of projects/.")],
    images: Annotated[Path, typer.Option(help="Folder of pictures, with captions beside them.")],
    params: Annotated[Path, typer.Option(help="Params file to start from.")] = Path("params.yaml"),
) -> None:
    """Make a project of your own pictures: projects/NAME, beside any number of others."""
    from eridiff.projects import make_project

    folder = make_project(name, images, params)
    typer.echo(f"made {folder}: edit its params.yaml, then run `dvc repro` there")


@app.command()
def why(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    rehash: Annotated[bool, typer.Option(help="Read every file again, also those that look unchanged.")] = False,
) -> None:
    """Say what the next `dvc repro` would run, because of what, and what it would encode."""
    import contextlib
    import sys

    from eridiff.prediction import render
    from eridiff.why import explain

    with contextlib.redirect_stdout(sys.stderr) if json_output else contextlib.nullcontext():  # progress
        prediction = explain(Path.cwd(), rehash=rehash)
    typer.echo(prediction.to_json() if json_output else render(prediction))


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 1."""
    run_main(lambda: app(standalone_mode=True))
