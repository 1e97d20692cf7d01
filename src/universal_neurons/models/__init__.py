"""What is a model here?  Where its files are, what is checked before and after it is read, its activations and weights.

architectures   what a row of the table says of a model family: where its parts are, what it multiplies
architecture_table  the rows: one per model family
signs           are the signs of a model's units nobody's choice
parts           a running network's parts, by the paths of its family's row
locations       where a model's files are: bundled, in a local folder, on the hub
weight_files    what a folder says before anything is built of it: config.json, shards, tensors
weight_names    which of a file's weights the model takes, by name and shape
described       what a study must know of a model before it reads text
experts         mixtures of experts: the activations and weights of every expert's neurons
passes          a forward pass that is looked into: of a network, of one of its blocks alone
block_structure which parts of a block are its MLP's, by what they do
structure       a row for a model that no row of the table names
model           Model: its activations on a batch, its logits
places          where a forward pass can be read, and reading it there
norms           a norm: what it subtracts, divides by, and how it scales the result
verification    are its weights numbers; is it what its family's row says
tokenizer       all that a tokenizer is asked: ids, strings, BOS and EOS, the newline, a digest
token_bytes     where in the text tokens stand, which bytes they spell
token_rows      rows of ids from a string, one row, or rows
gguf_files      a model in a GGUF file
adapters        a peft adapter merged into its model
spread          a model larger than the device, spread over several
loading         load a model: the above in order
untrained       a network of the same architecture that never learned anything
weights         its processed weights: what a neuron reads and writes
to_safetensors  pickle-only checkpoints and adapters to safetensors folders
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.models.architecture_table import is_gated
    from universal_neurons.models.architectures import AttentionParts
    from universal_neurons.models.described import Decoder, Described, quiet_transformers
    from universal_neurons.models.loading import Weights, load_model, load_weights
    from universal_neurons.models.locations import (
        BUNDLED_FOLDER,
        NEURONS,
        OF,
        ROLES_FOLDER,
        SUITES,
        TOKEN_COUNTS,
        Source,
        behind_name,
        bundled_counts,
        bundled_folder,
        bundled_models,
        bundled_names,
        bundled_text,
        digest_of,
        expand_bundled,
        features_at,
        folder_of,
        is_of_hub,
        json_object,
        names_of,
        resolve_sources,
        split_features,
    )
    from universal_neurons.models.model import DTYPES, Model, Sink
    from universal_neurons.models.norms import Norm
    from universal_neurons.models.parts import matrix_of, module_at
    from universal_neurons.models.passes import hooked
    from universal_neurons.models.places import PLACE_KINDS, Place, PlaceKind, captured, require_place, width_of
    from universal_neurons.models.signs import SIGNLESS, is_signless
    from universal_neurons.models.to_safetensors import convert, convert_all, require_safetensors
    from universal_neurons.models.token_bytes import Placed, encode_with_places, require_places, spelling_of
    from universal_neurons.models.token_rows import Text
    from universal_neurons.models.tokenizer import (
        added_tokens,
        all_special_ids,
        boundary_tokens,
        decode,
        encode,
        find_tokenizer,
        load_tokenizer,
        masked_ids,
        named_errors,
        special_ids,
        strings_of,
        tokenizer_difference,
        tokenizer_digest,
        vocabulary_ids,
    )
    from universal_neurons.models.untrained import require_initialiser, untrained_model
    from universal_neurons.models.verification import verify
    from universal_neurons.models.weight_files import require_weights
    from universal_neurons.models.weights import ProcessedWeights, processed_weights, projection, written_directions
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "architectures": ["AttentionParts"],
            "parts": ["matrix_of", "module_at"],
            "locations": [
                "BUNDLED_FOLDER",
                "NEURONS",
                "OF",
                "ROLES_FOLDER",
                "SUITES",
                "Source",
                "TOKEN_COUNTS",
                "behind_name",
                "bundled_counts",
                "bundled_folder",
                "bundled_models",
                "bundled_names",
                "bundled_text",
                "digest_of",
                "expand_bundled",
                "features_at",
                "folder_of",
                "is_of_hub",
                "json_object",
                "names_of",
                "resolve_sources",
                "split_features",
            ],
            "weight_files": ["require_weights"],
            "architecture_table": ["is_gated"],
            "described": ["Decoder", "Described", "quiet_transformers"],
            "signs": ["SIGNLESS", "is_signless"],
            "model": ["DTYPES", "Model", "Sink"],
            "norms": ["Norm"],
            "passes": ["hooked"],
            "places": ["PLACE_KINDS", "Place", "PlaceKind", "captured", "require_place", "width_of"],
            "token_rows": ["Text"],
            "verification": ["verify"],
            "token_bytes": ["Placed", "encode_with_places", "require_places", "spelling_of"],
            "tokenizer": [
                "added_tokens",
                "all_special_ids",
                "boundary_tokens",
                "decode",
                "encode",
                "find_tokenizer",
                "load_tokenizer",
                "masked_ids",
                "named_errors",
                "special_ids",
                "strings_of",
                "tokenizer_difference",
                "tokenizer_digest",
                "vocabulary_ids",
            ],
            "untrained": ["require_initialiser", "untrained_model"],
            "loading": ["Weights", "load_model", "load_weights"],
            "weights": ["ProcessedWeights", "processed_weights", "projection", "written_directions"],
            "to_safetensors": ["convert", "convert_all", "require_safetensors"],
        },
    )
