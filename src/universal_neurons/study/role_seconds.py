"""How long the weight statistics and the roles take: counts of units and positions, times speeds that are measured.

Of the roles two things cost: products with the vocabulary, at every position that is read, and blocks that run again.
"""

from collections.abc import Sequence
from functools import partial

import torch

from universal_neurons.config import Settings
from universal_neurons.features import Studied
from universal_neurons.interventions import reading_seconds
from universal_neurons.models import Model
from universal_neurons.role_settings import QUANTILES, RoleSettings
from universal_neurons.roles import DRAWS, FREQUENCY_CANDIDATES, models_at_once, threads_of_each
from universal_neurons.statistics import vocabulary_moments
from universal_neurons.study.measured import bare_seconds, fewest_seconds, gemm_rate, seconds_by_model

MEASURED_TOKENS = 8192  # of a vocabulary, with which some neurons are timed
MEASURED_COSINES = 1 << 21
OTHER_EDITS, ABLATIONS = 4, 3  # of a candidate; of a control no other edits, and two ablations
LATE = 1 / 12  # of the layers come after a candidate: it lies in the last sixth
SETS = 3  # ablated at once beside random ones: the universal neurons, others of equal contribution, the largest
READINGS_OF_ALL = 4  # the mean activations, the clean run, values at BOS, paths into heads


def weight_seconds(model: Studied) -> float:
    """Seconds of the cosines of all neurons with the vocabulary, from a few on random numbers, and with each other."""
    device, n, width = model.device, model.n_neurons, model.d_model
    between = 2.0 * n**2 * width / gemm_rate(str(device))  # half of the cosines, of two weights
    if not model.network.has_unembedding:
        return between
    tokens = min(model.vocab_size, MEASURED_TOKENS)
    some = min(n, max(1, MEASURED_COSINES // tokens))
    writers, readers = (torch.randn(rows, width, device=device) for rows in (some, tokens))
    seconds = fewest_seconds(lambda: vocabulary_moments(writers, readers), 3, device)
    return between + seconds * (n / some) * (model.vocab_size / tokens)


def role_seconds(models: Sequence[Studied], config: Settings, heldout: int) -> float:
    """Seconds of all models' roles, on at most so many held-out positions."""
    at_once, threads = models_at_once(models, config.device), torch.get_num_threads()
    with threads_of_each(at_once):
        return _one_by_one(models, config, heldout) / min(at_once, threads)


def _one_by_one(models: Sequence[Studied], config: Settings, heldout: int) -> float:
    """Seconds of all models' roles, one after the other."""
    rate = gemm_rate(config.device, "float32")
    forward = seconds_by_model(models, partial(bare_seconds, config=config))
    seconds = 0.0
    for model in models:
        compared = None if "universality" not in config.stages else model is models[0]
        tokens = min(config.roles.tokens, heldout)
        products, readings, blocks, forwards = _changes(model.network, config.roles, compared)
        read = min(config.roles.positions_read(model.vocab_size), tokens)
        product = 2.0 * model.vocab_size * model.d_model / rate
        seconds += read * (products * product + readings * reading_seconds(model.device, model.vocab_size))
        seconds += tokens * forward[model.name] * (forwards + blocks / model.n_layers)
    return seconds


def _changes(model: Model, settings: RoleSettings, compared: bool | None) -> tuple[float, int, float, int]:
    """Products with the vocabulary and readings of logits, at positions that are read; blocks and forward passes, at
    all.  `compared`: whether the model is the reference, None where it is studied alone.

    Of changes of a neuron that are the same one is made, but which are is known afterwards."""
    layers, swept = model.n_layers, len(settings.fixed_values or QUANTILES)
    entropy = settings.entropy_neurons * (swept + OTHER_EDITS + ABLATIONS)
    frequency = FREQUENCY_CANDIDATES * (swept + OTHER_EDITS + ABLATIONS)
    controls = settings.controls * (swept + ABLATIONS - 1)
    ablated = 0 if compared is None else settings.ablated * (1 if compared else 3)  # matches, second best, random
    sets = DRAWS + SETS if compared else 0
    again = entropy + controls / 2 + ablated  # half of the controls lie in the last layer, where nothing runs again
    products = again + FREQUENCY_CANDIDATES + sets + 1
    readings = entropy + frequency + controls + ablated + sets + 1
    blocks = entropy * layers * LATE + settings.controls * (swept + 1) / 2  # total and direct effects are of one run
    blocks += ablated * layers / 2 + 2 * settings.attention_pairs
    return products, readings, blocks, READINGS_OF_ALL + sets
