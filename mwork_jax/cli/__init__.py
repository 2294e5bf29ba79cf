"""The command `mwork`. Results go to stdout and to files, progress to stderr.

What the user got wrong is one line on stderr and exit status 2. Each command has a module of its own, whose `add`
declares it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from mwork_jax.cli import (
    detect,
    enhance,
    evaluate,
    lens,
    models,
    neurons,
    paper,
    plan,
    report,
    run,
    select,
    steer,
    tables,
)
from mwork_jax.cli.options import CommandParser, Parser, joining_options, log
from mwork_jax.errors import InputError, InputWarning
from mwork_jax.report import printable
from mwork_jax.runtime.distributed import end_all, several
from mwork_jax.runtime.jax_process import check_flags_of_xla, plain_jax, skip_search_for_absent_chips

_INTERRUPTED = 130
_PIPE_CLOSED = 141  # as the shell has it for a process that SIGPIPE ended
_PLATFORM = ("JAX_PLATFORM_NAME", "JAX_PLATFORMS")  # where a shell says which devices to use
_GOES_ON = "what was finished is kept, the same command goes on from there"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 2 bad input, 130 interrupted, 1 where other processes of
    the run are lost. One of several processes that ends early ends the others too."""
    # A shell may close them, as with >&-: Python then has none.
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    skip_search_for_absent_chips()
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = joining_options(arguments)
    try:
        _check_unicode(arguments)
        args = _parser().parse_args(arguments)
        args.typed = arguments
        check_flags_of_xla()
        if changed := plain_jax():
            log(f"without {', '.join(changed)}, which would break or change what is computed")
        with warnings.catch_warnings():
            warnings.simplefilter("once", InputWarning)
            warnings.showwarning = _show_warning
            args.command(args)
        sys.stdout.flush()
    except InputError as error:
        return _end(2, str(error), args)
    except BrokenPipeError:  # as in `mwork run | head`: nobody reads on, and all files are written
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  what is left in it must not fail again at the end
        return _PIPE_CLOSED
    except OSError as error:  # a full disk, a folder taken away: the files written so far are whole
        return _end(2, f"{error.filename or 'standard output'}: {error.strerror or error}", args)
    except Exception as error:
        wanted = next((f"{name}={os.environ[name]}" for name in _PLATFORM if os.environ.get(name)), None)
        if wanted and ("Unable to initialize backend" in str(error) or not _has_devices()):
            return _end(2, f"{wanted}: no such device here, or JAX has no support for it installed", args)
        if not several():
            raise
        reason = " ".join(str(error).split())[:200]
        # Where another process is lost, communication fails, with one kind of error or another.
        if isinstance(error, JaxRuntimeError) or "Gloo" in str(error):
            reason = f"cannot go on without the other processes ({reason}); {_GOES_ON}, with any number of processes"
            return _end(1, reason, args)
        traceback.print_exc()
        return _end(1, f"{type(error).__name__}: {reason}", args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        line = f"interrupted; {_GOES_ON}"
        return _end(_INTERRUPTED, line, args) if several() else _fail(line, _INTERRUPTED)
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Ours as one line; those of libraries as Python has them."""
    if issubclass(category, InputWarning):
        log(f"warning: {message}")
    else:
        print(warnings.formatwarning(message, category, *where[:2]), end="", file=sys.stderr)


def _has_devices() -> bool:
    try:
        return bool(jax.devices())
    except Exception:  # several kinds, by what is missing
        return False


def _check_unicode(arguments: Sequence[str]) -> None:
    """Raises InputError for a name that is no text: results hold the command, and no JSON could hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise InputError(f"{shown}: a name that is not UTF-8; rename the file or folder") from None


def _end(status: int, message: str, args: argparse.Namespace) -> int:
    """Prints why the command ends; the other processes of the run, where there are any, end with the same line."""
    _fail(message, status)
    if not hasattr(args, "coordinator"):
        return status
    return end_all(status, " ".join(message.split()), args.coordinator, args.processes, args.process_id)


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(printable(f"mwork: {line}", getattr(sys.stderr, "encoding", None)), file=sys.stderr, flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mwork", description="Find, switch off and measure the language-specific neurons of a language model."
    )
    commands = parser.add_subparsers(title="commands", required=True, parser_class=CommandParser, metavar="COMMAND")
    for module in (run, paper, detect, select, evaluate, enhance, steer, lens, neurons, models, tables, plan, report):
        module.add(commands)
    return parser
