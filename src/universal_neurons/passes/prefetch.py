"""On a GPU, the next batch is made on a stream of its own while the last one is added up."""

from collections import deque
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from universal_neurons.features import BUFFERS
from universal_neurons.statistics import Batch

Step = TypeVar("Step")


def ahead(steps: Iterator[tuple[Step, Batch | None]], device: torch.device) -> Iterator[tuple[Step, Batch | None]]:
    """The same steps; on a GPU each is made, host and device, before the one before it is handed over.

    While step n is handed over, n + 1 is made and the device may still be reading n − 1.  So a source's buffer is
    filled again for step n + `BUFFERS`, when the device is done with step n.
    """
    if device.type != "cuda":
        yield from steps
        return
    making, using = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    making.wait_stream(using)
    done: deque[torch.cuda.Event] = deque(maxlen=BUFFERS - 1)

    def made() -> tuple[tuple[Step, Batch | None] | None, torch.cuda.Event]:
        if len(done) == done.maxlen:
            making.wait_event(done[0])
        with torch.cuda.stream(making):
            step = next(steps, None)
            for tensor in _tensors(step[1] if step else None):
                tensor.record_stream(using)
            return step, making.record_event()

    step, ready = made()
    while step is not None:
        following, following_ready = made()
        using.wait_event(ready)
        yield step
        done.append(using.record_event())
        step, ready = following, following_ready
    using.wait_stream(making)


def _tensors(batch: Batch | None) -> Iterator[Tensor]:
    if batch is not None:
        for block in batch.blocks.values():
            yield from block.own()
        yield from batch.index.values()
