"""What may be read when on two streams, by a record of what each has waited for: no GPU needed."""

from types import SimpleNamespace

import pytest
import torch

from universal_neurons.passes import prefetch as overlap
from universal_neurons.statistics import BY_ROW, Batch, Block, Key, What

STEPS = 12


class Stream:
    """Knows which operations are over when its next one begins."""

    def __init__(self, over=()):
        self.over = set(over)

    def wait_stream(self, other):
        self.over |= other.over

    def record_event(self):
        return frozenset(self.over)

    def wait_event(self, event):
        self.over |= event


class Within:
    """`torch.cuda.stream`: says which stream is current."""

    def __init__(self, cuda, stream):
        self.cuda, self.stream = cuda, stream

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.stream

    def __exit__(self, *failure):
        self.cuda.current = self.before


@pytest.fixture
def cuda(monkeypatch):
    """Two streams in place of CUDA's; the current one is the reader's, but while a batch is made."""
    found = SimpleNamespace(current=Stream(), recorded=[])
    found.reader = found.current
    monkeypatch.setattr(torch.cuda, "Event", frozenset)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: found.current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Within(found, stream))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: found.recorded.append((tensor, stream)))
    return found


def test_a_batch_is_made_before_it_is_read_and_its_buffer_is_read_before_it_is_filled_again(cuda):
    def steps():
        for number in range(STEPS):
            assert cuda.current is not cuda.reader
            overwritten = number - overlap.BUFFERS
            assert overwritten < 0 or ("read", overwritten) in cuda.current.over
            cuda.current.over.add(("made", number))
            yield number, None

    cuda.reader.over.add("what was before")
    seen = []
    for number, _ in overlap.ahead(steps(), torch.device("cuda")):
        assert ("made", number) in cuda.reader.over
        cuda.reader.over.add(("read", number))
        seen.append(number)
    assert seen == list(range(STEPS))


def test_the_next_batch_need_not_wait_for_the_one_that_is_read(cuda):
    waited = {}

    def steps():
        for number in range(STEPS):
            waited[number] = ("read", number - overlap.BUFFERS + 1) in cuda.current.over
            yield number, None

    for number, _ in overlap.ahead(steps(), torch.device("cuda")):
        cuda.reader.over.add(("read", number))
    assert not any(waited.values())


def test_the_reader_holds_on_to_all_that_was_made_for_a_batch(cuda):
    """Else the memory of a tensor would be another's as soon as the batch is gone, while the device still reads it."""
    values, sums, index = torch.ones(3, 2), torch.ones(2, dtype=torch.float64), torch.arange(3)
    batch = Batch(
        {Key("a"): Block(values), Key("a", What.SUMS): Block(values.clone(), weight=3, _sums=sums)},
        index={BY_ROW: index},
    )
    list(overlap.ahead(iter([(0, batch), (1, None)]), torch.device("cuda")))
    made = [values, batch.blocks[Key("a", What.SUMS)].values, sums, index]
    assert [tensor.data_ptr() for tensor, _ in cuda.recorded] == [tensor.data_ptr() for tensor in made]
    assert all(stream is cuda.reader for _, stream in cuda.recorded)


def test_on_a_cpu_the_steps_are_handed_over_as_they_are():
    steps = iter([(0, None), (1, None)])
    assert next(overlap.ahead(steps, torch.device("cpu"))) == (0, None)
    assert next(steps) == (1, None)
