"""Where the command begins: what it prints of all commands at once, its exit codes.

The list of commands (`uneurons`, `uneurons --help`) and the version need neither settings nor commands: those are
imported when one is named.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from universal_neurons.errors import UniversalNeuronsError, as_memory_error
from universal_neurons.terminal import messages, output, prepare_streams, say, shown_lines

OF_ALL: tuple[list[str], ...] = ([], ["--help"], ["-h"], ["--version"])  # words that name no command


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; exits with the codes of `commands`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words in OF_ALL:
            from universal_neurons.cli.overview import overview

            overview()(words, console=output(), result_action="return_value")
        else:
            from universal_neurons.cli.commands import call

            call(words)
    except UniversalNeuronsError as error:
        _fail(error)
    except KeyboardInterrupt:
        say(messages(), "interrupted; the same command resumes the study")
        sys.exit(130)
    except BaseException as error:  # a library's panic is no `Exception`
        named = as_memory_error(error)
        if named is None:
            raise
        _fail(named)


def _fail(error: UniversalNeuronsError) -> NoReturn:
    """Print an error and exit with its code."""
    lines = f"{type(error).__name__}: {error}".split("\n")
    messages().print(shown_lines(*lines), soft_wrap=True)
    sys.exit(error.exit_code)
