"""The command `uneurons`.

overview  all commands at once: how the app is set up, a line for each
frame     every setting as a flag, settings from a file and flags
studies   run, dynamics, diff, sketch, roles, estimate
explaining  explain
results   show, labels, report, export, serve
checks    check, convert
commands  all of them in one app, and what is wrong with the words of one
entry     the entry point and its exit codes
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.cli.commands import app
    from universal_neurons.cli.entry import main
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "commands": ["app"],
            "entry": ["main"],
        },
    )
