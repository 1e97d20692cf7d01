"""Commands that study: run, dynamics, diff, sketch, roles, estimate."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import create_model

from universal_neurons.cli.frame import SECTIONS, ConfigFile, Flags, app, flags_of, settings_from, unchecked_settings
from universal_neurons.config import NOT_OF_DYNAMICS, TEXT_SETTINGS, DynamicsConfig
from universal_neurons.config_reading import make_config, make_dynamics_config, read_config
from universal_neurons.diff import NOT_OF_DIFF, DiffConfig, make_diff_config
from universal_neurons.errors import ConfigError
from universal_neurons.terminal import output, say


@app.command
def run(*, config: ConfigFile = None, flags: Flags = None) -> None:
    """Study models on a corpus: find, store and draw their universal neurons.

    Without options it studies the bundled suite of roles. Interrupted, the same command resumes; finished, it checks
    the study and shows it.

    Parameters
    ----------
    config
        A YAML file of settings, or the study.json of an earlier study; flags override it.
    """
    settings = settings_from(config, flags)
    from universal_neurons.progress import Reporter
    from universal_neurons.report import drawn_report, study_view, write_report
    from universal_neurons.study import run_study

    reporter = Reporter()
    store = run_study(settings, reporter=reporter)
    drawn = drawn_report(store)
    report = drawn or write_report(store)
    output().print(study_view(store))
    again = f", as it was (uneurons report {_quoted(store.path)} draws it again)" if drawn else ""
    say(output(), f"report: {report.resolve()}{again}")
    command = f"uneurons export {_quoted(store.path)} --out {_quoted(store.site)}"
    say(output(), f"pages of every neuron: {command}, then open {store.site / 'index.html'}")


def _quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


DynamicsFlags: Any = create_model(
    "DynamicsFlags", **flags_of(DynamicsConfig, (*NOT_OF_DYNAMICS, "models", "revisions"))
)


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
    settings, source = unchecked_settings(config, flags)
    named = {"models": seeds, "revisions": revisions}
    checked = make_dynamics_config(settings | {k: v for k, v in named.items() if v}, source)
    from universal_neurons.dynamics import run_dynamics
    from universal_neurons.progress import Reporter
    from universal_neurons.report import dynamics_view, write_dynamics_report

    finished = run_dynamics(checked, reporter=Reporter())
    page = write_dynamics_report(finished)
    output().print(dynamics_view(finished))
    say(output(), f"report: {page.resolve()}")


DiffFlags: Any = create_model("DiffFlags", **flags_of(DiffConfig, (*NOT_OF_DIFF, *SECTIONS, "models", "nulls")))


@app.command
def diff(
    base: Annotated[str | None, Parameter(show_default=False)] = None,
    tuned: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    null: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    config: ConfigFile = None,
    flags: Annotated[DiffFlags | None, Parameter(name="*")] = None,
    estimate: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compare a base and its fine-tune unit by unit: what did training change?

    Two checkpoints of one run are such a pair too. Without models it compares a bundled seed with its German fine-tune.
    Interrupted, the same command resumes.

    Parameters
    ----------
    base
        The model before: a folder, a hub id or id@revision.
    tuned
        The model after, of the same architecture, layers and widths.
    null
        Fine-tunes of the same base on other data: how unusual is each change among theirs?
    config
        A YAML file of settings, or the diff.json of an earlier diff; flags override it.
    estimate
        Say what time, memory and disk it would take, and do nothing.
    as_json
        With --estimate: print one JSON object.
    """
    settings, source = unchecked_settings(config, flags)
    models = tuple(name for name in (base, tuned) if name is not None)
    named = {"models": models, "nulls": null}
    checked = make_diff_config(settings | {k: v for k, v in named.items() if v}, source)
    if estimate:
        from universal_neurons.diff import diff_estimate_view, estimate_diff

        _say_estimate(estimate_diff(checked), diff_estimate_view, as_json)
        return
    if as_json:
        raise ConfigError("--json goes with --estimate", fix="leave it out, or add --estimate")
    from universal_neurons.diff import run_diff
    from universal_neurons.progress import Reporter
    from universal_neurons.report import diff_view, write_diff_report

    finished = run_diff(checked, reporter=Reporter())
    page = write_diff_report(finished)
    output().print(diff_view(finished))
    say(output(), f"report: {page.resolve()}")
    say(output(), f"one unit: uneurons show {_quoted(finished.path)} L0.0")


SKETCH_SETTINGS = (
    *TEXT_SETTINGS, "tokenizer", "pooling", "out", "group_size", "seed", "device", "dtype", "gemm_dtype",
    "batch_tokens", "threads",
)  # fmt: skip
SketchFlags: Any = create_model("SketchFlags", **{name: flags_of()[name] for name in SKETCH_SETTINGS})


@app.command
def sketch(
    model: str,
    /,
    *,
    tokenizers: tuple[str, ...] = (),
    flags: Annotated[SketchFlags | None, Parameter(name="*")] = None,
) -> None:
    """Write a model's portable sketch, which `run --models` takes in the model's place.

    Interrupted, the same command resumes.

    Parameters
    ----------
    model
        A local folder or hub id.
    tokenizers
        Folders or hub ids of the other tokenizers, repeated: spans need the boundaries that all of them share.
    """
    named = {} if flags is None else {k: v for k, v in flags.model_dump().items() if v is not None}
    settings = make_config({"search": "sketch"} | named | {"models": (model,)}, "command line")
    from universal_neurons.study import make_sketch

    path = make_sketch(settings, tokenizers=tokenizers)
    say(output(), f"{path.resolve()}: {path.stat().st_size / 2**20:,.1f} MiB")


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
    settings = settings_from(config, flags)
    from universal_neurons.study import estimate_study, estimate_view

    _say_estimate(estimate_study(settings), estimate_view, as_json)


def _say_estimate(estimated: Any, view: Callable[[Any], Any], as_json: bool) -> None:
    """Print an estimate: one JSON object, or as a table."""
    if as_json:
        say(output(), json.dumps(estimated.as_dict()))
    else:
        output().print(view(estimated))
