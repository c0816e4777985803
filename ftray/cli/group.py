"""Run one command: print its outcome, and turn whatever goes wrong into one screen and an exit code."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from ftray.artifacts import jsonable
from ftray.cli.complaint import complain
from ftray.cli.outcome import Outcome
from ftray.cli.streams import answer_line, chatter_on_stderr
from ftray.errors import FtrayError, InputError, Interrupted

INTERRUPTED = 130


class InternalError(FtrayError):
    """A bug in ftray, as the document that --json prints."""


class CommandLine(TyperGroup):
    """The commands, with one way out for all of them."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command that `args` ask for; end the process with its exit code."""
        given = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in given
        with chatter_on_stderr() if as_json else contextlib.nullcontext():
            outcome = self._outcome(given, lambda: TyperGroup.main(self, given, standalone_mode=False, **_only(extra)))
        if isinstance(outcome, FtrayError):
            if as_json:
                _print_document(outcome.to_record())
            sys.exit(outcome.exit_code)
        if outcome is None:
            sys.exit(0)
        if as_json and outcome.is_line:
            answer_line(outcome.document)
        elif as_json:
            _print_document(outcome.document)
        elif outcome.is_answer or "--quiet" not in given:
            _show(outcome)
        sys.exit(outcome.exit_code)

    def _outcome(self, given: Sequence[str], run: Callable[[], Any]) -> Outcome | FtrayError | None:
        """Return what the command says, or the error that is already on the screen; None after --help."""
        error: FtrayError
        try:
            answer = run()
        except FtrayError as problem:
            error = problem
        except TyperException as problem:
            error = self._usage(given, problem)
        except KeyboardInterrupt:
            error = _interrupted()
        except typer.Abort:
            error = _interrupted()
        # The last line of defence: whatever is no FtrayError is a bug, and scripts still get their document.
        except Exception as problem:
            traceback.print_exc()
            error = _bug(problem)
        else:
            if answer != INTERRUPTED:
                assert answer is None or answer == 0 or isinstance(answer, Outcome), "a command returns an Outcome"
                return answer or None
            error = _interrupted()
        complain(error)
        return error

    def _usage(self, given: Sequence[str], problem: TyperException) -> InputError:
        path, group = self._asked(given)
        return InputError(
            problem.format_message(),
            kind="usage",
            given=shlex.join(["ftray", *given]),
            allowed=sorted(group.commands) if group else None,
            hint=shlex.join(["ftray", *path, "--help"]) + ("" if group else " lists its arguments and options."),
        )

    def _asked(self, given: Sequence[str]) -> tuple[list[str], TyperGroup | None]:
        """Return the words that name the command, as far as there is one, and the group that lacks the next word."""
        path: list[str] = []
        group: Any = self
        for word in given:
            if word in group.commands:
                path.append(word)
                group = group.commands[word]
                if not isinstance(group, TyperGroup):
                    return path, None
        return path, group


def command_group(help: str) -> typer.Typer:
    """Return a command that has commands of its own (`ftray adapters list`); alone it prints its help.

    Add it with `app.add_typer(group, name=...)`. Its commands return an Outcome, as all do.
    """
    group = typer.Typer(help=help, context_settings={"help_option_names": ["-h", "--help"]})

    @group.callback(invoke_without_command=True)
    def start(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit

    return group


def _only(extra: dict[str, Any]) -> dict[str, Any]:
    """Return what typer passes on: everything but what is decided here."""
    return {key: value for key, value in extra.items() if key != "standalone_mode"}


def _interrupted() -> Interrupted:
    return Interrupted("interrupted", kind="interrupted", hint="Run the same command again.")


def _bug(problem: Exception) -> InternalError:
    return InternalError(
        f"this is a bug in ftray, not in what you asked for: {type(problem).__name__}: {problem}",
        kind="internal",
        hint="Please report it with the traceback above and the command you ran.",
    )


def _print_document(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(jsonable(document), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    outcome.show(Console(highlight=False))
