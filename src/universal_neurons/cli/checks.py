"""Commands about models and whole folders: check, convert."""

import shlex

from universal_neurons.cli.frame import ConfigFile, app, settings_from
from universal_neurons.disk import local_path
from universal_neurons.errors import ConfigError
from universal_neurons.terminal import output, say


@app.command
def check(models: list[str], /, *, tokenizer: str | None = None, data: str | None = None) -> None:
    """Say whether these models would work together, and why not; or whether finished studies are whole.

    Parameters
    ----------
    models
        Local folders or hub ids; or folders of studies, training dynamics or diffs, whose every table is checked.
    tokenizer
        A tokenizer's folder or hub id, where the models bring none.
    data
        Text on which the tokenizers are held against each other; else the bundled text, where they differ.
    """
    from universal_neurons.storage import is_ours

    stores = [model for model in models if is_ours(model)]
    if stores:
        from universal_neurons.report import check_stores

        if len(stores) < len(models) or tokenizer is not None or data is not None:
            raise ConfigError(
                "models, and what was made of them, are checked apart", given=", ".join(models), wanted="one kind"
            )
        output().print(check_stores(stores))
        return
    from universal_neurons.study import check_models

    output().print(check_models(models, tokenizer, data))


@app.command
def convert(paths: list[str] | None = None, /, *, config: ConfigFile = None) -> None:
    """Turn pickle-only models into safetensors folders, adapters into whole models.

    Parameters
    ----------
    paths
        A folder or hub id whose weights are pytorch_model.bin, or an adapter, then the new folder. Of several models,
        or those of a file of settings, the new folder gets a folder each, by its name; those with safetensors stay.
    config
        A YAML file of settings, or the study.json of an earlier study, whose models are converted.
    """
    from universal_neurons.models import convert as convert_model
    from universal_neurons.models import convert_all, expand_bundled
    from universal_neurons.progress import Reporter

    *models, folder = paths or [""]
    if config is not None and not models:
        models = list(expand_bundled(settings_from(config, None).models))
    elif config is not None or not models:
        raise ConfigError(
            "convert takes models and a new folder, or a file of settings and a new folder",
            given=", ".join(paths or []) or "nothing",
            wanted="uneurons convert MODEL ... NEW_FOLDER, or uneurons convert -c FILE NEW_FOLDER",
        )
    if not folder:
        raise ConfigError("convert needs a new folder", wanted="uneurons convert -c FILE NEW_FOLDER")
    note = Reporter().note
    if len(models) == 1 and config is None:
        say(output(), convert_model(models[0], local_path(folder), note=note).resolve())
        return
    places = convert_all(models, local_path(folder), note)
    flags = [part for place in places for part in ("--models", place)]
    file = [] if config is None else ["-c", str(config)]
    say(output(), shlex.join(["uneurons", "run", *file, *flags]))
