"""The `uneurons` command: run, dynamics, sketch, show, roles, report, check, estimate, convert.

Commands are thin: they make a configuration, call the library and print.  torch is imported only by the commands
that need it.  Exit codes: 0 done, 1 the study failed, 2 the input was wrong, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter
from pydantic import Field, ValidationError, create_model

from universal_neurons import __version__
from universal_neurons.config import (
    DYNAMICS_FILE,
    NOT_OF_DYNAMICS,
    TEXT_SETTINGS,
    DynamicsConfig,
    StudyConfig,
    as_config_error,
    make_config,
    make_dynamics_config,
    read_config,
)
from universal_neurons.disk import local_path
from universal_neurons.errors import LONGEST, UniversalNeuronsError
from universal_neurons.labels import require_given_again
from universal_neurons.legible import shortened
from universal_neurons.terminal import messages, output, prepare_streams, say, shown_lines

app = App(
    name="uneurons",
    help="Which neurons does every training run of a language model find again?",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)


SECTIONS = ("published", "roles")  # in a file of settings only


def _flags(kind: type[StudyConfig] = StudyConfig, without: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """Every setting as an optional flag."""
    settings: dict[str, Any] = {name: f for name, f in kind.model_fields.items() if name not in without}
    return {name: (f.annotation | None, Field(None, description=f.description)) for name, f in settings.items()}


StudyFlags: Any = create_model(
    "StudyFlags",
    **_flags(),
)
Flags = Annotated[StudyFlags | None, Parameter(name="*")]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]


def _settings(config: Path | None, flags: Any) -> StudyConfig:
    return make_config(*_unchecked_settings(config, flags))


def _unchecked_settings(config: Path | None, flags: Any) -> tuple[dict[str, Any], str]:
    """Settings of a file and of flags, unchecked, and where they are from."""
    settings, stored = read_config(config) if config else ({}, False)
    named = {} if flags is None else {k: v for k, v in flags.model_dump().items() if v is not None}
    if stored:
        require_given_again(settings, named, str(config))
    return settings | named, str(config) if config else "command line"


@app.command
def run(*, config: ConfigFile = None, flags: Flags = None) -> None:
    """Study models on a corpus: find, store and draw their universal neurons.

    Without options it studies the bundled suite. Interrupted, the same command resumes.

    Parameters
    ----------
    config
        A YAML file of settings, or the study.json of an earlier study; flags override it.
    """
    settings = _settings(config, flags)
    from universal_neurons.progress import Reporter
    from universal_neurons.report import study_view, write_report
    from universal_neurons.study import run_study

    reporter = Reporter()
    store = run_study(settings, reporter=reporter)
    report = write_report(store)
    output().print(study_view(store))
    say(output(), f"report: {report.resolve()}")


DynamicsFlags: Any = create_model("DynamicsFlags", **_flags(DynamicsConfig, (*NOT_OF_DYNAMICS, "models", "revisions")))


@app.command
def dynamics(
    seeds: Annotated[list[str] | None, Parameter(show_default=False)] = None,
    /,
    *,
    revisions: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    config: ConfigFile = None,
    flags: Annotated[DynamicsFlags | None, Parameter(name="*")] = None,
) -> None:
    """Study training dynamics: which neurons are universal at every checkpoint of several seeds.

    Without seeds it studies the bundled ones that come with checkpoints. Interrupted, the same command resumes.

    Parameters
    ----------
    seeds
        Training runs, the first is the reference: folders with subfolders step-K or checkpoint-K, or hub ids with
        --revisions.
    revisions
        Revisions of the hub ids (of folders: subfolders), in the order of training.
    config
        A YAML file of settings, or the dynamics.json of earlier dynamics; flags override it.
    """
    settings, source = _unchecked_settings(config, flags)
    named = {"models": seeds, "revisions": revisions}
    checked = make_dynamics_config(settings | {k: v for k, v in named.items() if v}, source)
    from universal_neurons.dynamics import run_dynamics
    from universal_neurons.progress import Reporter
    from universal_neurons.report import dynamics_view, write_dynamics_report

    finished = run_dynamics(checked, reporter=Reporter())
    page = write_dynamics_report(finished)
    output().print(dynamics_view(finished))
    say(output(), f"report: {page.resolve()}")


SKETCH_SETTINGS = (
    *TEXT_SETTINGS, "tokenizer", "out", "group_size", "seed", "device", "dtype", "gemm_dtype", "batch_tokens",
    "threads",
)  # fmt: skip
SketchFlags: Any = create_model("SketchFlags", **{name: _flags()[name] for name in SKETCH_SETTINGS})


@app.command
def sketch(model: str, /, *, flags: Annotated[SketchFlags | None, Parameter(name="*")] = None) -> None:
    """Write a model's portable sketch, which `run --models` takes in the model's place.

    Interrupted, the same command resumes.

    Parameters
    ----------
    model
        A local folder or hub id.
    """
    named = {} if flags is None else {k: v for k, v in flags.model_dump().items() if v is not None}
    settings = make_config({"search": "sketch"} | named | {"models": (model,)}, "command line")
    from universal_neurons.study import make_sketch

    path = make_sketch(settings)
    say(output(), f"{path.resolve()}: {path.stat().st_size / 2**20:,.1f} MiB")


@app.command
def show(store: Path, neuron: str | None = None, /) -> None:
    """Show a study, training dynamics, or one neuron of them, in the terminal.

    Parameters
    ----------
    store
        The folder of a study or of training dynamics.
    neuron
        A neuron, L2.17 or seed-1/L2.17.
    """
    store = local_path(store)
    if (store / DYNAMICS_FILE).exists():
        from universal_neurons.dynamics import Dynamics
        from universal_neurons.report import course_view, dynamics_view

        finished = Dynamics(store)
        output().print(dynamics_view(finished) if neuron is None else course_view(finished, neuron))
        return
    from universal_neurons.report import neuron_view, study_view
    from universal_neurons.storage import Store

    study = Store(store)
    output().print(study_view(study) if neuron is None else neuron_view(study, neuron))


@app.command
def roles(store: Path, /, *, config: ConfigFile = None, labels: list[str] | None = None) -> None:
    """Find out what the neurons of a finished study do, and add that to it.

    Parameters
    ----------
    store
        The folder of a study.
    config
        A YAML file with a section `roles`: what it names replaces the study's own settings.
    labels
        A Python file of labels that the study names, repeated: only those named again are run.
    """
    from universal_neurons.errors import ConfigError
    from universal_neurons.progress import Reporter
    from universal_neurons.report import roles_view, write_report
    from universal_neurons.study import settings_of_roles, study_roles

    settings = None
    if config is not None:
        section = read_config(config)[0].get("roles")
        if not isinstance(section, dict):
            raise ConfigError(f"{config}: no section `roles`", wanted="thresholds of the roles (docs/roles.md)")
        known = settings_of_roles(store).model_dump()
        settings = make_config({"roles": known | section}, str(config)).roles
    study = study_roles(store, settings, labels=labels or (), reporter=Reporter())
    output().print(roles_view(study))
    say(output(), f"report: {write_report(study).resolve()}")


@app.command
def report(stores: list[Path], /, *, out: Path | None = None) -> None:
    """Draw the figures and the report again, from one study or side by side from several; of training dynamics too.

    Parameters
    ----------
    stores
        Folders of studies, or the one of training dynamics.
    out
        Where a report of several studies goes; else report.html here.
    """
    from universal_neurons.errors import ConfigError
    from universal_neurons.report import write_dynamics_report, write_joint_report, write_report
    from universal_neurons.storage import Store

    stores = [local_path(path) for path in stores]
    out = None if out is None else local_path(out)
    if len(stores) == 1 and out is None and (stores[0] / DYNAMICS_FILE).exists():
        from universal_neurons.dynamics import Dynamics

        say(output(), write_dynamics_report(Dynamics(stores[0])).resolve())
        return
    opened = [Store(path) for path in stores]
    if len(opened) == 1 and out is not None:
        raise ConfigError("--out is for several studies", wanted="no --out: one study's report goes into its folder")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder", wanted="a file's name")
    joint = len(opened) > 1
    page = write_joint_report(opened, out or Path("report.html")) if joint else write_report(opened[0])
    say(output(), page.resolve())


@app.command
def check(models: list[str], /, *, tokenizer: str | None = None) -> None:
    """Say whether these models would work together, and why not; or whether finished studies are whole.

    Parameters
    ----------
    models
        Local folders or hub ids; or folders of studies or training dynamics, whose every table is checked.
    tokenizer
        A tokenizer's folder or hub id, where the models bring none.
    """
    from universal_neurons.storage import is_ours

    stores = [model for model in models if is_ours(model)]
    if stores:
        from universal_neurons.errors import ConfigError
        from universal_neurons.report import check_stores

        if len(stores) < len(models) or tokenizer is not None:
            raise ConfigError(
                "models, and what was made of them, are checked apart", given=", ".join(models), wanted="one kind"
            )
        output().print(check_stores(stores))
        return
    from universal_neurons.study import check_models

    output().print(check_models(models, tokenizer))


@app.command
def estimate(
    *, config: ConfigFile = None, flags: Flags = None, as_json: Annotated[bool, Parameter(name="--json")] = False
) -> None:
    """Estimate the time, memory and disk of a run before it starts; takes the options of `run`.

    Parameters
    ----------
    config
        A YAML file of settings; flags override it.
    as_json
        Print one JSON object.
    """
    settings = _settings(config, flags)
    from universal_neurons.study import estimate_study, estimate_view

    estimated = estimate_study(settings)
    if as_json:
        say(output(), json.dumps(estimated.as_dict()))
    else:
        output().print(estimate_view(estimated))


@app.command
def convert(source: str, folder: Path, /) -> None:
    """Turn a pickle-only model into a safetensors folder.

    Parameters
    ----------
    source
        A folder or hub id whose weights are pytorch_model.bin.
    folder
        The new folder.
    """
    from universal_neurons.models import convert as convert_model
    from universal_neurons.progress import Reporter

    target = local_path(folder)
    say(output(), convert_model(source, target, note=lambda text: Reporter().note(text)).resolve())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; exits with the codes above."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    prepare_streams()
    try:
        app(arguments, console=output(), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            _fail(as_config_error(error.__cause__, "command line"))
        say(messages(), shortened(f"uneurons: {error}", LONGEST))
        sys.exit(2)
    except UniversalNeuronsError as error:
        _fail(error)
    except KeyboardInterrupt:
        say(messages(), "interrupted; the same command resumes the study")
        sys.exit(130)


def _fail(error: UniversalNeuronsError) -> NoReturn:
    lines = f"{type(error).__name__}: {error}".split("\n")
    messages().print(shown_lines(*lines), soft_wrap=True)
    sys.exit(error.exit_code)
