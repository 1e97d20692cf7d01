"""The command that explains units in sentences and scores these: explain."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from universal_neurons.cli.frame import app
from universal_neurons.cli.results import require_study
from universal_neurons.disk import local_path
from universal_neurons.terminal import output, say

Several = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def explain(
    store: Path,
    /,
    *,
    units: Several = None,
    explainer: str | None = None,
    scorer: str | None = None,
    imported: Annotated[Path | None, Parameter(name="--import")] = None,
    kinds: Several = None,
    windows: int = 260,
    no_transfer: bool = False,
    prompt: Path | None = None,
    prices: tuple[float, float] | None = None,
    concurrency: int = 8,
    seed: int = 0,
    estimate: bool = False,
) -> None:
    """Explain units of a study in sentences, and score these on held-out text and on the units' counterparts.

    Without explainer, scorer and import it shows what explanations there are, and what they are worth. Interrupted, the
    same command asks only what is missing.

    Parameters
    ----------
    store
        The folder of a study.
    units
        Units: universal (the reference's; the default), all, or names such as L0.32 or seed-2/L1.5.
    explainer
        Who writes sentences: a model's folder, a hub id, or openai:URL#NAME.
    scorer
        Who is asked where a unit of a description fires; named as the explainer is.
    imported
        A file of JSON lines of explanations, or of Neuronpedia's export, or a folder of such files.
    kinds
        Kinds of questions: detection, fuzzing (these two are the default), simulation (one question a token).
    windows
        How many windows of held-out text are asked about for each unit.
    no_transfer
        Do not score explanations on counterparts and on random units beside them.
    prompt
        A YAML or JSON file of your own templates.
    prices
        What a million tokens cost, read and written: two numbers.
    concurrency
        Requests that a server is sent at once.
    seed
        Of the windows, marks and random units.
    estimate
        Say how many questions and tokens it would take, and ask nothing.
    """
    store = local_path(store)
    require_study(store, "explanations are", "explain")
    from universal_neurons.report import explained_view
    from universal_neurons.storage import Store

    given = (units, explainer, scorer, imported, kinds, prompt, prices, no_transfer or None, estimate or None)
    if all(option is None for option in given) and (windows, concurrency, seed) == (260, 8, 0):
        output().print(explained_view(Store(store)))
        say(output(), "to score these: --scorer MODEL; to write others: --explainer MODEL (uneurons explain --help)")
        return
    from universal_neurons import study

    explained = study.explain(
        store,
        units=units or (),
        explainer=explainer,
        scorer=scorer,
        imported=imported,
        kinds=study.KINDS if kinds is None else kinds,
        windows=windows,
        transfer=not no_transfer,
        prompt=prompt,
        prices=prices,
        concurrency=concurrency,
        seed=seed,
        estimate=estimate,
    )
    if not estimate:
        output().print(explained_view(explained))
