"""Commands that read what was found: show, labels, report, export, serve."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from universal_neurons.cli.frame import app
from universal_neurons.config import DIFF_FILE, DYNAMICS_FILE
from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError
from universal_neurons.terminal import messages, output, say


@dataclass(frozen=True)
class Holder:
    """A folder that is no study but holds some: what it is, which study a question about one is for, and where."""

    what: str
    wanted: str
    study: Path

    @classmethod
    def at(cls, path: Path) -> "Holder | None":
        """What is in a folder; None where it is a study's, or nothing's."""
        if (path / DYNAMICS_FILE).exists():
            return cls("training dynamics", "the study of a checkpoint", path / "steps" / "STEP")
        if (path / DIFF_FILE).exists():
            return cls("a diff", "the study of both models", path / "study")
        return None


def require_study(path: Path, question: str, command: str, options: str = "") -> None:
    """Raise `ConfigError` where a folder is no study but holds some; its fix is the command on one, with options."""
    if holder := Holder.at(path):
        raise ConfigError(
            f"{question} of a study",
            given=f"{path}, {holder.what}",
            wanted=holder.wanted,
            fix=f"uneurons {command} {holder.study}{options}",
        )


@app.command
def show(
    store: Path,
    neuron: str | None = None,
    /,
    *,
    anchors: bool = False,
    all_numbers: Annotated[bool, Parameter(name="--all", negative=())] = False,
    label: str | None = None,
    model: str | None = None,
    threshold: float | None = None,
) -> None:
    """Show a study, training dynamics, a diff, or one neuron of them, in the terminal.

    Parameters
    ----------
    store
        The folder of a study, of training dynamics or of a diff.
    neuron
        A neuron, L2.17 or seed-1/L2.17.
    anchors
        Of a study, in place of the summary: the neurons whose best match is mutual in every other model.
    label
        Of a study, in place of the summary: the neurons that this label explains best; its name or a part of it.
    model
        With --label: of this model alone.
    threshold
        Of a study: neurons above this excess correlation count as universal, in place of the study's own threshold.
    all_numbers
        Of a study's neuron: every column of its row, by its name in docs/store.md.
    """
    store = local_path(store)
    holder = Holder.at(store)
    if all_numbers:
        _refuse_all(store, neuron, holder)
    _refuse_contradictions({"--anchors": anchors, "--label": label is not None}, store, neuron, holder)
    if model is not None and label is None:
        raise ConfigError("--model is for --label", given=model, wanted="a label, or no --model")
    if holder is not None:
        _refuse_threshold(store, threshold, holder)
        _show_held(store, neuron)
        return
    from universal_neurons.report import (
        anchors_view,
        at_threshold,
        label_view,
        neuron_view,
        study_view,
        threshold_sentence,
    )
    from universal_neurons.storage import Store

    study = at_threshold(Store(store), threshold)
    if sentence := threshold_sentence(study):
        say(output(), sentence)
    if neuron is not None:
        output().print(neuron_view(study, neuron, all_numbers=all_numbers))
    elif label is not None:
        output().print(label_view(study, label, model))
    else:
        output().print(anchors_view(study) if anchors else study_view(study))


def _show_held(store: Path, neuron: str | None) -> None:
    """Print training dynamics or a diff, or one neuron of it."""
    if (store / DYNAMICS_FILE).exists():
        from universal_neurons.dynamics import Dynamics
        from universal_neurons.report import course_view, dynamics_view

        dynamics = Dynamics(store)
        output().print(dynamics_view(dynamics) if neuron is None else course_view(dynamics, neuron))
        return
    from universal_neurons.diff import Diff
    from universal_neurons.report import diff_view, unit_view

    diff = Diff(store)
    output().print(diff_view(diff) if neuron is None else unit_view(diff, neuron))


def _refuse_all(store: Path, neuron: str | None, holder: Holder | None) -> None:
    """Raise `ConfigError` where --all would be ignored."""
    if holder is not None:
        raise ConfigError("--all is of a study's neuron", given=f"{store}, {holder.what}", wanted=holder.wanted)
    if neuron is None:
        raise ConfigError("--all is of a study's neuron", given="no neuron", wanted="a neuron, L2.17 or seed-1/L2.17")


def _refuse_threshold(store: Path, threshold: float | None, holder: Holder) -> None:
    """Raise `ConfigError` where --threshold is asked of what is no study."""
    if threshold is not None:
        raise ConfigError(
            "--threshold is of a study",
            given=f"{store}, {holder.what}",
            wanted=holder.wanted,
            fix=f"uneurons show {holder.study} --threshold {threshold:g}",
        )


def _refuse_contradictions(of_study: dict[str, bool], store: Path, neuron: str | None, holder: Holder | None) -> None:
    """Raise `ConfigError` where a flag that takes the summary's place would be ignored."""
    given = [flag for flag, there in of_study.items() if there]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} are two questions", wanted="one of them")
    if given and neuron is not None:
        raise ConfigError(
            f"{given[0]} is of a study", given=f"{neuron}, one neuron", wanted=f"no neuron, or no {given[0]}"
        )
    if given and holder is not None:
        raise ConfigError(
            f"{given[0]} is of a study",
            given=f"{store}, {holder.what}",
            wanted=holder.wanted,
            fix=f"uneurons show {holder.study} {given[0]}",
        )


@app.command
def labels(store: Path | None = None, /) -> None:
    """List every built-in label with its meaning, or the labels of a study with how often each holds.

    Parameters
    ----------
    store
        The folder of a study; without it, the built-in labels.
    """
    from universal_neurons.report import built_in_view, study_labels_view

    if store is None:
        output().print(built_in_view())
        return
    from universal_neurons.storage import Store

    store = local_path(store)
    require_study(store, "labels are", "labels")
    output().print(study_labels_view(Store(store)))


@app.command
def report(stores: list[Path], /, *, out: Path | None = None, threshold: float | None = None) -> None:
    """Draw the figures and the report again, from one study or side by side from several; of dynamics and diffs too.

    Parameters
    ----------
    stores
        Folders of studies, or the one of training dynamics or of a diff.
    out
        Where a report of several studies, or at another threshold, goes; else report.html here.
    threshold
        Neurons above this excess correlation count as universal, in place of each study's own threshold. The page goes
        to --out; the studies stay as they are.
    """
    from universal_neurons.report import at_threshold, write_joint_report, write_page, write_report
    from universal_neurons.storage import Store

    stores = [local_path(path) for path in stores]
    out = None if out is None else local_path(out)
    holder = Holder.at(stores[0]) if len(stores) == 1 and out is None else None
    if holder is not None:
        _refuse_threshold(stores[0], threshold, holder)
        say(output(), _report_of_held(stores[0]).resolve())
        return
    opened = [at_threshold(Store(path), threshold) for path in stores]
    if len(opened) == 1 and out is not None and threshold is None:
        raise ConfigError("--out is for several studies", wanted="no --out: one study's report goes into its folder")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder", wanted="a file's name")
    if threshold is not None:
        _require_apart(out or Path("report.html"), stores)
    if len(opened) > 1:
        page = write_joint_report(opened, out or Path("report.html"))
    else:
        page = write_report(opened[0]) if threshold is None else write_page(opened[0], out or Path("report.html"))
    say(output(), page.resolve())


def _report_of_held(path: Path) -> Path:
    """Draw the report of training dynamics or of a diff again; returns it."""
    from universal_neurons.report import write_diff_report, write_dynamics_report

    if (path / DYNAMICS_FILE).exists():
        from universal_neurons.dynamics import Dynamics

        return write_dynamics_report(Dynamics(path))
    from universal_neurons.diff import Diff

    return write_diff_report(Diff(path))


def _require_apart(out: Path, stores: list[Path]) -> None:
    """Raise `ConfigError` where a page at another threshold would lie in a study's folder."""
    for store in stores:
        if out.resolve().is_relative_to(store.resolve()):
            raise ConfigError(
                "a report at another threshold leaves the study as it is",
                given=f"{out}, in {store}",
                wanted="a page elsewhere",
                fix="--out FILE.html, outside the folder",
            )


@app.command
def export(
    stores: list[Path],
    /,
    *,
    out: Path,
    csv: bool = False,
    neuronpedia: bool = False,
    hf: bool = False,
    consistency: bool = False,
) -> None:
    """Write the site of studies, training dynamics and diffs: pages to look around in, which open from disk.

    Parameters
    ----------
    stores
        Folders of studies, of training dynamics or of diffs.
    out
        The site's folder: a new or empty one, or a site to be written anew.
    csv
        Also write the table of all units as CSV, into the site's folder csv.
    neuronpedia
        In place of a site: one study as Neuronpedia's exports are laid out, into a new folder.
    hf
        In place of a site: one study as a dataset for the Hugging Face hub, with its card, into a new folder.
    consistency
        In place of a site: one study's one-to-one matches and similarity of layers, into a JSON file.
    """
    from universal_neurons.explorer import open_results, write_site
    from universal_neurons.progress import Reporter

    flags = {"--csv": csv, "--neuronpedia": neuronpedia, "--hf": hf, "--consistency": consistency}
    asked = [flag for flag, there in flags.items() if there]
    if neuronpedia or hf or consistency:
        _export_study(stores, out, asked)
        return
    results = [open_results(local_path(path)) for path in stores]
    page = write_site(results, out, csv=csv, reporter=Reporter())
    say(output(), f"site: {page.resolve()}")


def _export_study(stores: list[Path], out: Path, flags: list[str]) -> None:
    """Write one study for other programs to read.  Raises `ConfigError` where more is asked."""
    from universal_neurons.explorer import write_consistency, write_dataset, write_neuronpedia
    from universal_neurons.progress import Reporter
    from universal_neurons.storage import Store

    if len(flags) > 1:
        raise ConfigError(
            "--csv, --neuronpedia, --hf and --consistency are four exports",
            given=", ".join(flags),
            wanted="one of them, each into its --out",
        )
    flag = flags[0]
    if len(stores) > 1:
        raise ConfigError(
            f"{flag} is of one study", given=", ".join(map(str, stores)), wanted="one, each into its --out"
        )
    path = local_path(stores[0])
    require_study(path, f"{flag} is", "export", f" {flag} --out {out}")
    if flag == "--consistency":
        say(output(), write_consistency(Store(path), local_path(out)).resolve())
        return
    write = write_neuronpedia if flag == "--neuronpedia" else write_dataset
    say(output(), write(Store(path), local_path(out), Reporter()).resolve())


@app.command
def serve(stores: list[Path], /, *, port: int = 0, open: bool = False, get: str | None = None) -> None:
    """Serve the site of studies to this machine, with a page to try texts of your own, until Ctrl-C.

    Parameters
    ----------
    stores
        Folders of studies, of training dynamics or of diffs.
    port
        The port on 127.0.0.1; 0: a free one.
    open
        Open the first page in the browser.
    get
        Print one file of the site, such as unit.html or data/site.js, and end; exit code 1 where there is none.
    """
    from universal_neurons.progress import Reporter

    if get is not None and (port or open):
        raise ConfigError("--get serves nothing", given="--port or --open", wanted="--get alone")
    reporter = Reporter(quiet=get is not None)
    reporter.note("making the pages; their address follows")
    from universal_neurons.explorer import open_results, page_of
    from universal_neurons.explorer import serve as serve_site

    results = [open_results(local_path(path)) for path in stores]
    if get is None:
        serve_site(results, port=port, open_page=open, told=_tell_address, reporter=reporter)
        return
    page = page_of(results, get)
    if page is None:
        say(messages(), f"uneurons: no such page: {get}")
        sys.exit(1)
    console = output()
    console.file.write(page.decode("utf-8", "replace"))
    console.file.flush()


def _tell_address(address: str) -> None:
    say(output(), f"serving {address} until Ctrl-C")
