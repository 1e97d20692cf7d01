"""What gives blocks of units for positions?  A model's neurons, other features of it, or the sketch of a model.

source          the protocol of a source
pooling         from the tokens of a model to positions: a token each, or spans of several
inputs          what a model reads of some rows, and which of its tokens make up the positions
stream          by how much the residual stream's norm stands out from its row
model_features  what of a model is studied beside its neurons
loaded          the models that a study names, and which features of them
neurons         a model as a source: its neurons, or other features of it
readers         how a study comes to its blocks: from models that read text, or from sketches
sketched        a portable sketch in the place of a model
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.features.inputs import Inputs, counted_positions, inputs_of
    from universal_neurons.features.loaded import Studied, load_studied
    from universal_neurons.features.model_features import ModelFeatures, features_of
    from universal_neurons.features.neurons import BUFFERS, NeuronSource, blocks_of
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
            "model_features": ["ModelFeatures", "features_of"],
            "loaded": ["Studied", "load_studied"],
            "neurons": ["BUFFERS", "NeuronSource", "blocks_of"],
            "readers": ["Networks", "Reader"],
            "sketched": ["Sketches", "are_sketches", "open_sketches", "settings_of"],
        },
    )
