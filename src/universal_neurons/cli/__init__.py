"""The command `uneurons`.

commands  every command and its flags
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.cli.commands import app, main
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "commands": ["app", "main"],
        },
    )
