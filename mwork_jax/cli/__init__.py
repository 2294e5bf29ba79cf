"""The command `mwork`. Results go to stdout and to files, progress to stderr.

What the user got wrong is one line on stderr and exit status 2. Each command has a module of its own, whose `add`
declares it.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from jax.errors import JaxRuntimeError

from mwork_jax.cli import detect, enhance, evaluate, lens, plan, report, run, select
from mwork_jax.cli.options import Parser
from mwork_jax.errors import InputError
from mwork_jax.report import printable
from mwork_jax.runtime.distributed import leave, several

_INTERRUPTED = 130
_GOES_ON = "what was finished is kept, the same command goes on from there"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 2 bad input, 130 interrupted. Where other processes of the
    run are lost, this one ends with 1."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser().parse_args(arguments)
        args.typed = arguments
        args.command(args)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder taken away: the files written so far are whole
        status = _fail(f"{error.filename or 'file'}: {error.strerror or error}")
        return status if not several() else leave()
    except Exception as error:
        if not several():
            raise
        # Where another process is lost, communication fails, with one kind of error or another.
        if isinstance(error, JaxRuntimeError) or "Gloo" in str(error):
            reason = " ".join(str(error).split())[:200]
            _fail(f"cannot go on without the other processes ({reason}); {_GOES_ON}, with any number of processes")
        else:
            traceback.print_exc()
        return leave()
    except KeyboardInterrupt:
        print(f"\nmwork: interrupted; {_GOES_ON}", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _fail(message: str) -> int:
    line = " ".join(message.split())
    print(printable(f"mwork: {line}", getattr(sys.stderr, "encoding", None)), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mwork", description="Find, switch off and measure the language-specific neurons of a language model."
    )
    commands = parser.add_subparsers(title="commands", required=True, parser_class=Parser, metavar="COMMAND")
    for module in (run, detect, select, evaluate, enhance, lens, plan, report):
        module.add(commands)
    return parser
