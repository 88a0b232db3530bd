"""Subcommands of a typer application: grouped help, one example each, errors as exit codes.

Exit codes: 0 done (or the command's own code); 1 a job on a cluster failed; 2 bad input or usage,
or a fault of the machine (one message, nothing half-written); 130 interrupted; 141 the reader of
the output is gone.

Help is plain text: with rich's boxes ``possam --help`` takes three times as long (measured: 0.38
instead of 0.12 s of CPU time).
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from possam.runtime.errors import JobFailedError, PossamError
from possam.runtime.extras import missing_extra
from possam.runtime.faults import explain
from possam.runtime.version import __version__


class _Group(TyperGroup):
    """Lists its subcommands panel by panel, and lists all of them after an unknown command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = (name, command.get_short_help_str(limit=100))
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Others", []).append(row)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; valid choices: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def application(help: str) -> typer.Typer:
    """A typer application with ``--version`` and shell completion, but no subcommands yet."""
    app = typer.Typer(cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False)

    def show(asked: bool) -> None:
        if asked:
            print(f"possam {__version__}")
            raise typer.Exit

    @app.callback(help=help)
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=show, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    return app


def command(app: typer.Typer, panel: str, example: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function the subcommand of its name; what it returns is the exit code (None: 0).

    Help lists it in the group ``panel`` and ends with the command line ``example``.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")

        @functools.wraps(function)
        def call(**arguments: Any) -> None:
            try:
                code = function(**arguments) or 0
                sys.stdout.flush()
            except PossamError as error:
                print(f"possam {name}: {error}", file=sys.stderr)
                code = 1 if isinstance(error, JobFailedError) else 2
            except KeyboardInterrupt:
                print(f"possam {name}: interrupted", file=sys.stderr)
                code = 130
            except BrokenPipeError:
                # The reader of the output is gone (`| head`): nothing may be written to it at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 141
            except Exception as error:
                if (reason := missing_extra(error) or explain(error)) is None:
                    raise
                print(f"possam {name}: {reason}", file=sys.stderr)
                code = 2
            raise typer.Exit(code)

        app.command(name, rich_help_panel=panel, epilog=f"Example:\n\n\b\n  {example}")(call)
        return call

    return register
