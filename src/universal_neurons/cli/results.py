"""Commands that read what was found: show, report, export."""

from pathlib import Path

from universal_neurons.cli.frame import app
from universal_neurons.config import (
    DYNAMICS_FILE,
)
from universal_neurons.disk import local_path
from universal_neurons.terminal import output, say


@app.command
def show(store: Path, neuron: str | None = None, /, *, anchors: bool = False) -> None:
    """Show a study, training dynamics, or one neuron of them, in the terminal.

    Parameters
    ----------
    store
        The folder of a study or of training dynamics.
    neuron
        A neuron, L2.17 or seed-1/L2.17.
    anchors
        Of a study, in place of the summary: the neurons whose best match is mutual in every other model.
    """
    store = local_path(store)
    dynamics = (store / DYNAMICS_FILE).exists()
    if anchors:
        _refuse_anchors(store, neuron, dynamics=dynamics)
    if dynamics:
        from universal_neurons.dynamics import Dynamics
        from universal_neurons.report import course_view, dynamics_view

        finished = Dynamics(store)
        output().print(dynamics_view(finished) if neuron is None else course_view(finished, neuron))
        return
    from universal_neurons.report import anchors_view, neuron_view, study_view
    from universal_neurons.storage import Store

    study = Store(store)
    if neuron is not None:
        output().print(neuron_view(study, neuron))
    else:
        output().print(anchors_view(study) if anchors else study_view(study))


def _refuse_anchors(store: Path, neuron: str | None, *, dynamics: bool) -> None:
    """Raise `ConfigError` where --anchors would be ignored."""
    from universal_neurons.errors import ConfigError

    if neuron is not None:
        raise ConfigError("--anchors is of a study", given=f"{neuron}, one neuron", wanted="no neuron, or no --anchors")
    if dynamics:
        raise ConfigError(
            "--anchors is of a study",
            given=f"{store}, training dynamics",
            wanted="the study of a checkpoint",
            fix=f"uneurons show {store / 'steps' / 'STEP'} --anchors",
        )


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
def export(stores: list[Path], /, *, out: Path, csv: bool = False) -> None:
    """Write the site of studies and of training dynamics: pages to look around in, which open from disk.

    Parameters
    ----------
    stores
        Folders of studies or of training dynamics.
    out
        The site's folder: a new or empty one, or a site to be written anew.
    csv
        Also write the table of all units as CSV, into the site's folder csv.
    """
    from universal_neurons.explorer import open_results, write_site
    from universal_neurons.progress import Reporter

    results = [open_results(local_path(path)) for path in stores]
    page = write_site(results, out, csv=csv, reporter=Reporter())
    say(output(), f"site: {page.resolve()}")
