"""The last pass of a screened search: the exact sums of all candidates."""

from collections.abc import Sequence
from pathlib import Path

from universal_neurons.passes import Pass, provisional_state, settle_from
from universal_neurons.study.inputs import Study
from universal_neurons.study.outcome import Outcome
from universal_neurons.study.screen import Screen


class CandidatesPass:
    """`begin` it, `finish` replaces what the sketch found by what the candidates say."""

    name = "the candidates' pass"

    def __init__(self, study: Study, outcome: Outcome, screen: Screen, folder: Path) -> None:
        self.study, self.outcome, self.screen, self.folder = study, outcome, screen, folder
        self.tokens = study.tokens

    def begin(self, lanes: Sequence[int]) -> Pass:
        """The pass at its beginning; of sketches, it reads the models and the text again."""
        sources, self.tokens = self.study.reader.again(self.study.config, self.study.tokens, self.folder)
        settle_from(provisional_state(self.outcome.sources.values()), sources)
        return Pass(sources, self.screen.recipes(), lanes=lanes)

    def read_so_far(self, run: Pass) -> None:
        """Nothing: candidates say something only when they are complete."""

    def finish(self, run: Pass) -> None:
        """Replace what the sketch found."""
        self.screen.settle(run.accumulators, self.outcome.accumulators)
