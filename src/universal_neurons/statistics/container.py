"""The statistics of a pass, asked for by what they are."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

from universal_neurons.statistics.contract import Accumulator
from universal_neurons.statistics.keys import Key, Named, key_of

Kind = TypeVar("Kind", bound=Accumulator)


class Statistics:
    """Accumulators by kind and by what they read."""

    def __init__(self, accumulators: Iterable[Accumulator]) -> None:
        self._by_reads: dict[tuple[Key, ...], list[Accumulator]] = defaultdict(list)
        for accumulator in accumulators:
            self._by_reads[accumulator.reads].append(accumulator)

    def find(self, kind: type[Kind], *reads: Named, **attributes: Any) -> list[Kind]:
        """All of exactly this kind that read exactly this and have these attributes: `group`, `rows`, `draw`, …."""
        kin = self._by_reads.get(tuple(map(key_of, reads)), [])
        return [
            one
            for one in kin
            if isinstance(one, kind)
            and type(one) is kind
            and all(getattr(one, name) == value for name, value in attributes.items())
        ]

    def get(self, kind: type[Kind], *reads: Named, **attributes: Any) -> Kind:
        """The only one of these."""
        (only,) = self.find(kind, *reads, **attributes)
        return only
