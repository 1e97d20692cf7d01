"""The command `uneurons`.

frame     every setting as a flag, settings from a file and flags
studies   run, dynamics, sketch, roles, estimate
explaining  explain
results   show, labels, report, export, serve
checks    check, convert
commands  the entry point and its exit codes
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.cli.commands import main
    from universal_neurons.cli.frame import app
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "frame": ["app"],
            "commands": ["main"],
        },
    )
