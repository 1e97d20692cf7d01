"""Commands about models and whole folders: check, convert."""

from pathlib import Path

from universal_neurons.cli.frame import app
from universal_neurons.disk import local_path
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
        from universal_neurons.errors import ConfigError
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
