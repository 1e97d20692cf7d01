"""All commands at once: how the app is set up, and a line for each command."""

from typing import Any

from cyclopts import App, Parameter

from universal_neurons import __version__

SETUP: dict[str, Any] = {
    "name": "uneurons",
    "help": "Which neurons does every training run of a language model find again?",
    "version": __version__,
    "help_format": "plaintext",
    "default_parameter": Parameter(negative=()),
    "suppress_keyboard_interrupt": False,
}

SUMMARIES = {  # the first paragraphs of the commands' docstrings, which it would take their imports to read
    "checks": {
        "check": "Say whether these models would work together, and why not; or whether finished studies are whole.",
        "convert": "Turn pickle-only models into safetensors folders, adapters into whole models.",
    },
    "explaining": {
        "explain": "Explain units of a study in sentences, and score these on held-out text and on the units' "
        "counterparts.",
    },
    "results": {
        "show": "Show a study, training dynamics, a diff, or one neuron of them, in the terminal.",
        "labels": "List every built-in label with its meaning, or the labels of a study with how often each holds.",
        "report": "Draw the figures and the report again, from one study or side by side from several; of "
        "dynamics and diffs too.",
        "export": "Write the site of studies, training dynamics and diffs: pages to look around in, which "
        "open from disk.",
        "serve": "Serve the site of studies to this machine, with a page to try texts of your own, until Ctrl-C.",
    },
    "studies": {
        "run": "Study models on a corpus: find, store and draw their universal neurons.",
        "dynamics": "Study training dynamics: which neurons are universal at every checkpoint of several seeds.",
        "diff": "Compare a base and its fine-tune unit by unit: what did training change?",
        "sketch": "Write a model's portable sketch, which `run --models` takes in the model's place.",
        "roles": "Find out what the neurons of a finished study do, and add that to it.",
        "estimate": "Estimate the time, memory and disk of a run before it starts; takes the options of `run`.",
    },
}


def overview() -> App:
    """An app that can print the list of commands, or the version, and nothing else: no command is imported."""
    app = App(**SETUP)
    for place, summaries in SUMMARIES.items():
        for name, summary in summaries.items():
            app.command(f"universal_neurons.cli.{place}:{name}", name=name, help=summary)
    return app
