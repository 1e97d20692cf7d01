"""What is read?  From files of any format to rows of token ids.

text_files  a file or pipe, decompressed and decoded by its content, in bounded pieces
records     records to documents: which columns are read, what is left out or mended
corpora     text, JSON lines, parquet, saved and hub data sets to documents
row_file    rows of numbers, in memory or in a file
tokens      TokenDataset: packed rows of token ids, subsets, mask, fingerprint, held-out rows, shards
byte_ranges which bytes of the text each token of a tokenizer stands for
spans       the stretches of text between boundaries that all tokenizers share
span_rows   documents to rows of the same spans for several tokenizers
span_fit    how well tokenizers fit: tokens a span, text left out
row_texts   the texts of rows, whole, and which bytes of them each position stands for
passages    Passages: such rows, each tokenizer's tokens in them, and which spans are counted
word_places  where in a word a token stands, by numbers
vocabulary  a vocabulary as strings; where in a word its tokens stand
token_counts  how often each token occurs in the text that models were trained on
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.text.passages import Passages
    from universal_neurons.text.row_texts import RowText, texts_in
    from universal_neurons.text.token_counts import TokenCounts, frequencies_of
    from universal_neurons.text.tokens import HELDOUT_MOST, SHARD_POSITIONS, STRETCHES, Rows, Shard, TokenDataset
    from universal_neurons.text.vocabulary import Vocabulary, read_vocabulary
    from universal_neurons.text.word_places import INSIDE_WORD, KINDS, WORD, WORD_START, kind_of, token_of
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "passages": ["Passages"],
            "row_texts": ["RowText", "texts_in"],
            "token_counts": ["TokenCounts", "frequencies_of"],
            "tokens": ["HELDOUT_MOST", "SHARD_POSITIONS", "STRETCHES", "Rows", "Shard", "TokenDataset"],
            "vocabulary": ["Vocabulary", "read_vocabulary"],
            "word_places": ["INSIDE_WORD", "KINDS", "WORD", "WORD_START", "kind_of", "token_of"],
        },
    )
