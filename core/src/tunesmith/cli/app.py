"""`tune`: the commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, TunesmithError
from .cache import app as cache_app
from .commands import WithPlugins
from .screen import fail, nesting, plugin_table

if TYPE_CHECKING:
    from ..progress import Mode

app = typer.Typer(
    name="tune",
    cls=WithPlugins,
    help="Fine-tune image and video diffusion models; every feature is a plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache_app)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file that describes the run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as run.steps=10; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]


def main() -> None:
    """Run the command line; what went wrong is told in a message, and a traceback means a bug."""
    try:
        app(prog_name="tune")
    except TunesmithError as error:
        fail(error)
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from ..discovery import DISTRIBUTION

        print(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def tune(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune image and video diffusion models; every feature is a plugin."""


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(metavar="latest|never|PATH", help="Go on from the newest checkpoint, start anew, or go on from a given one.")
    ] = "latest",
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result and errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write every event as a line of JSON to stdout, and nothing else.")] = False,
) -> None:
    """Train what CONFIG describes."""
    if quiet and as_json:
        raise InputError("--quiet and --json exclude each other; --json is quiet besides its events")
    mode: Mode = "quiet" if quiet else "json" if as_json else "auto"
    from ..config import load_config

    checked = load_config(config, overrides or ())
    from ..progress import Progress
    from ..session import run as carry_out

    with Progress(mode) as progress:
        carry_out(checked, resume=resume, progress=progress)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw samples of every bucket, as they are trained on, into this file.")
    ] = None,
    vram: Annotated[
        float | None,
        typer.Option(metavar="GB", min=2, max=10**4, help="Tell what saves memory, and what makes the run fit."),
    ] = None,
    no_forecast: Annotated[
        bool, typer.Option("--no-forecast", help="Leave out what the run takes of memory, which takes seconds.")
    ] = False,
) -> None:
    """Look at config, data and model without loading weights, and tell what a run would do."""
    if no_forecast and vram is not None:
        raise InputError("--vram and --no-forecast exclude each other; what fits is told by forecasts")
    from ..config import load_config

    checked = load_config(config, overrides or ())
    from rich.console import Console
    from rich.markup import escape

    from ..plan import make_plan

    with Console(stderr=True, highlight=False).status("data and model") as status:  # it shows on a terminal alone
        limit = None if vram is None else round(vram * 2**30)
        made = make_plan(checked, sheet, limit, lambda text: status.update(escape(text)), forecasts=not no_forecast)
    if as_json:
        print(json.dumps(made.as_json(), indent=2, default=str))
    if made.problems or not as_json:
        stream = sys.stderr if made.problems else sys.stdout
        Console(file=stream, highlight=False, soft_wrap=not stream.isatty()).print(made.render())
    if made.problems:
        raise typer.Exit(2)


@app.command()
def explain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Show for each hook who takes part, from the outermost inwards."""
    from ..config import load_config

    checked = load_config(config, overrides or ())
    from ..session import explain as who_wraps_what

    print(nesting(who_wraps_what(checked)))


@app.command()
def plugins(
    check: Annotated[bool, typer.Option("--check", help="Import each plugin and check that it keeps the contract.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins; nothing of them is imported unless checked."""
    from ..discovery import installed
    from .listing import describe

    found = describe(installed(), check)
    print(json.dumps(found, indent=2) if as_json else plugin_table(found))
    if any(plugin["problems"] for plugin in found):
        raise typer.Exit(1 if check else 0)


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file instead of stdout.")] = None,
) -> None:
    """Write the JSON schema of config files with the installed plugins, for editors."""
    from ..config import schema as make_schema
    from ..discovery import installed
    from .listing import describe

    found = describe(installed(), check=True)
    for plugin in found:
        if plugin["problems"]:
            print(f"left out: {'; '.join(plugin['problems'])}", file=sys.stderr)
    text = json.dumps(make_schema(plugin["name"] for plugin in found if not plugin["problems"]), indent=2)
    if output is None:
        print(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Try what a run needs - python, torch, libraries, plugins, disk, Hub - and say what to do about what is broken."""
    from dataclasses import asdict

    from ..doctor import examine

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            print(check, flush=True)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)
