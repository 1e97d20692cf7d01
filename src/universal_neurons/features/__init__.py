"""What gives blocks of units for positions?  A model's neurons, or the sketch of a model.

source    the protocol of a source
pooling   from the tokens of a model to positions: a token each, or spans of several
inputs    what a model reads of some rows, and which of its tokens make up the positions
stream    by how much the residual stream's norm stands out from its row
neurons   the neurons of a model
dictionary  a dictionary on a place of a model: its latents, what they write
dictionary_activations  what makes latents of what its encoder gives: ReLU, JumpReLU, gated, TopK
dictionary_tensors  the tensors of a dictionary's file, read with care
hook_names  what others call the places of a forward pass
saelens   dictionaries that SAELens saved
sparsify  those of EleutherAI's sparsify
gemma_scope  those of Gemma Scope
plain_dictionaries  those of our own form, and writing them
dictionary_formats  dictionaries from a folder: of any of these forms, one or one per layer
dictionary_check  is it one of what a model has there: variance explained on text, L0, likely reasons
readers   how a study comes to its blocks: from models that read text, or from sketches
sketched  a portable sketch in the place of a model
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.features.dictionary import Dictionary
    from universal_neurons.features.dictionary_check import Verification, verified
    from universal_neurons.features.dictionary_formats import bundled_dictionaries, load_dictionaries
    from universal_neurons.features.inputs import Inputs, counted_positions, inputs_of
    from universal_neurons.features.neurons import BUFFERS, NeuronSource
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
            "inputs": ["Inputs", "counted_positions", "inputs_of"],
            "neurons": ["BUFFERS", "NeuronSource"],
            "dictionary": ["Dictionary"],
            "dictionary_check": ["Verification", "verified"],
            "dictionary_formats": ["bundled_dictionaries", "load_dictionaries"],
            "plain_dictionaries": ["save_dictionary"],
            "readers": ["Networks", "Reader"],
            "sketched": ["Sketches", "are_sketches", "open_sketches", "settings_of"],
        },
    )
