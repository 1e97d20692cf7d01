"""What gives blocks of units for positions?  A model's neurons, other features of it, or the sketch of a model.

source                   the protocol of a source
pooling                  from the tokens of a model to positions: a token each, or spans of several
inputs                   what a model reads of some rows, and which of its tokens make up the positions
stream                   by how much the residual stream's norm stands out from its row
dictionary               a dictionary on a place of a model: its latents, what they write
dictionary_activations   what makes latents of what its encoder gives: ReLU, JumpReLU, gated, TopK
dictionary_tensors       the tensors of a dictionary's file, read with care
several_places           crosscoders and the like, told by their configuration: refused by name
hook_names               what others call the places of a forward pass
saelens                  dictionaries that SAELens saved
sparsify                 those of EleutherAI's sparsify
gemma_scope              those of Gemma Scope
plain_dictionaries       those of our own form, and writing them
dictionary_formats       dictionaries from a folder: of any of these forms, one or one per layer
dictionary_check         is it one of what a model has there: variance explained on text, L0, likely reasons
model_features           what of a model is studied beside its neurons: the residual stream, the heads
latents                  the latents of dictionaries on a model
loaded                   the models that a study names, and which features of them
neurons                  a model as a source: its neurons, or other features of it
readers                  how a study comes to its blocks: from models that read text, or from sketches
sketched                 a portable sketch in the place of a model
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.features.dictionary import Dictionary
    from universal_neurons.features.dictionary_check import Verification, verified
    from universal_neurons.features.dictionary_formats import bundled_dictionaries, load_dictionaries
    from universal_neurons.features.inputs import SETTLING_POSITIONS, Inputs, counted_positions, inputs_of, spread_rows
    from universal_neurons.features.latents import Latents, verify_latents
    from universal_neurons.features.loaded import Studied, features_of, load_studied
    from universal_neurons.features.model_features import ModelFeatures
    from universal_neurons.features.neurons import BUFFERS, NeuronSource, blocks_of
    from universal_neurons.features.plain_dictionaries import save_dictionary
    from universal_neurons.features.pooling import Places, Pooling
    from universal_neurons.features.readers import Networks, Reader
    from universal_neurons.features.sketched import Sketches, are_sketches, open_sketches, settings_of
    from universal_neurons.features.source import Provisional, Source
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "source": ["Provisional", "Source"],
            "pooling": ["Places", "Pooling"],
            "inputs": ["SETTLING_POSITIONS", "Inputs", "counted_positions", "inputs_of", "spread_rows"],
            "model_features": ["ModelFeatures"],
            "latents": ["Latents", "verify_latents"],
            "loaded": ["Studied", "features_of", "load_studied"],
            "neurons": ["BUFFERS", "NeuronSource", "blocks_of"],
            "dictionary": ["Dictionary"],
            "dictionary_check": ["Verification", "verified"],
            "dictionary_formats": ["bundled_dictionaries", "load_dictionaries"],
            "plain_dictionaries": ["save_dictionary"],
            "readers": ["Networks", "Reader"],
            "sketched": ["Sketches", "are_sketches", "open_sketches", "settings_of"],
        },
    )
