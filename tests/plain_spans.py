"""Spans once more, text by text and character by character: what `text/spans.py` is held against."""

from functools import cache
from itertools import pairwise

from transformers.convert_slow_tokenizer import bytes_to_unicode

LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}


class PlainTokens:
    """The tokens of one text: their ranges of bytes, in order, and their boundaries."""

    def __init__(self, text, ids, offsets, strings, special, way):
        self.data = text.encode()
        self.ids, self.strings = ids, strings
        self.ranges = plain_ranges(text, offsets, [own_bytes(string, way) for string in strings], way)
        self.special = [token in special for token in ids]
        for number, place in enumerate(self.ranges):
            if place is None:
                self.ranges[number], self.special[number] = (0, 0), True
        self.any_special = any(self.special)
        self.boundaries = {0, len(self.data)}.union(*self.ranges)
        self.before, number = [], 0  # how many tokens begin before each byte
        for byte in range(len(self.data) + 1):
            while number < len(ids) and self.ranges[number][0] < byte:
                number += 1
            self.before.append(number)


@cache
def own_bytes(string, way):
    if string in ("<s>", "</s>", "<unk>"):
        return string.encode()
    if way == "byte-level":
        return bytes(LETTER[letter] for letter in string)
    if way == "fallback" and string.startswith("<0x") and len(string) == 6:
        return bytes.fromhex(string[3:5])
    return None


def plain_ranges(text, offsets, own, way):
    data, where, white = text.encode(), [0], []
    for character in text:
        where.append(where[-1] + len(character.encode()))
        white += [character.isspace()] * (where[-1] - where[-2])
    ranges = [(where[start], where[stop]) for start, stop in offsets]
    if way == "byte-level":
        at = 0
        for number, spelled in enumerate(own):
            start, stop = ranges[number]
            if data[at : at + len(spelled)] == spelled:
                start, stop = at, at + len(spelled)
            elif spelled == b" " and start == stop > at and data[start - 1] == ord(" "):
                start = stop - 1
            elif spelled == b" " and (start == stop or ([*ranges, (len(data), 0)][number + 1][0] < stop)):
                start, stop = at, at
            elif spelled[:1] == b" " != spelled and data[at : at + len(spelled) - 1] == spelled[1:]:
                start, stop = at, at + len(spelled) - 1
            elif start > at and data[start : start + len(spelled)] == spelled:
                stop = start + len(spelled)
            ranges[number] = start, stop
            at = max(at, stop)
    groups, empty, end = [], [], 0
    for number, (start, stop) in enumerate(ranges):
        while start > end and white[start - 1]:
            start -= 1
        end = max(end, stop)
        if start >= stop:
            empty.append(number)
        elif groups and start < groups[-1][1]:
            groups[-1] = (groups[-1][0], stop, [*groups[-1][2], number])
        else:
            groups.append((start, stop, [number]))
    answer = [None] * len(ranges)
    for start, stop, members in groups:
        spelled = [own[member] for member in members]
        exact = len(members) > 1 and None not in spelled and b"".join(spelled) == data[start:stop]
        for member in members:
            answer[member] = (start, start + len(own[member])) if exact else (start, stop)
            start += len(own[member]) if exact else 0
    for number in empty if len(empty) < len(ranges) else ():
        others = [*range(number + 1, len(ranges)), *range(number - 1, -1, -1)]
        answer[number] = next((answer[other] for other in others if other not in empty), None)
    return answer


def plain_units(*tokenized):
    """(start, stop, tokens of each, whether it is a span) of one text, from its `PlainTokens` by each tokenizer."""
    shared = sorted(set.intersection(*(tokens.boundaries for tokens in tokenized)))
    special = any(tokens.any_special for tokens in tokenized)
    befores = [tokens.before for tokens in tokenized]
    units = []
    for start, stop in pairwise(shared):
        sizes = [before[stop] - before[start] for before in befores]
        ordinary, parts = 0 not in sizes, 1
        if special or (ordinary and sizes[0] > 1 and sizes.count(sizes[0]) == len(sizes)):
            inside = [range(before[start], before[stop]) for before in befores]
            ordinary = ordinary and not any(
                tokens.special[number] for tokens, numbers in zip(tokenized, inside) for number in numbers
            )
            parts = sizes[0] if ordinary and len(set(sizes)) == 1 and alike(tokenized, inside) else 1
        units += [(start, stop, *([1] * len(sizes) if parts > 1 else sizes), ordinary)] * parts
    return units


def alike(tokenized, inside):
    ranges = {tokens.ranges[number] for tokens, numbers in zip(tokenized, inside) for number in numbers}
    strings = {tuple(tokens.strings[number] for number in numbers) for tokens, numbers in zip(tokenized, inside)}
    return len(ranges) == len(strings) == 1
