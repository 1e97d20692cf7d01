"""The commands: run, dynamics, diff, sketch, show, labels, roles, explain, report, export, serve, check, estimate,
convert.

Commands are thin: they make a configuration, call the library and print.  torch is imported only by the commands
that need it.  Exit codes: 0 done, 1 the study failed, 2 the input was wrong, 130 interrupted.
"""

import sys
from collections.abc import Sequence

from cyclopts import CycloptsError, UnusedCliTokensError
from pydantic import ValidationError

from universal_neurons.cli import checks, explaining, results, studies
from universal_neurons.cli.frame import app
from universal_neurons.config_reading import as_config_error
from universal_neurons.errors import LONGEST, ConfigError
from universal_neurons.legible import shortened
from universal_neurons.terminal import messages, output, say

COMMANDS = (studies, explaining, results, checks)  # importing a file of commands adds them to the app


def call(words: Sequence[str]) -> None:
    """Run the command that these words name; what no command takes is a `ConfigError`, or exits with code 2."""
    try:
        app(words, console=output(), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            raise as_config_error(error.__cause__, "command line") from None
        if isinstance(error, UnusedCliTokensError):
            raise _unused(error) from None
        say(messages(), shortened(f"uneurons: {error}", LONGEST))
        sys.exit(2)


def _unused(error: UnusedCliTokensError) -> ConfigError:
    """What no argument of a command takes, as an error of ours."""
    command = " ".join(("uneurons", *(error.command_chain or ())))
    wanted, fix = f"what `{command} --help` names", f"leave them out, or see `{command} --help`"
    if any(word.startswith("-") for word in error.root_input_tokens or ()):
        wanted = "a flag before every value"
        fix = "repeat the flag before each of several values (--models A --models B)"
    return ConfigError(
        "no argument takes these",
        given=shortened(" ".join(error.unused_tokens or ()), LONGEST),
        wanted=wanted,
        fix=fix,
    )
