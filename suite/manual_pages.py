"""The text of manual pages, out of roff with the macros of man(7)."""

import re

ESCAPE = re.compile(
    r"""\\(?:".*|f(?:\[\w*\]|\(..|.)|s[-+]?\d|\*(?:\[[^]]*\]|\(..|.)|[bBDhHlLNoRSvwxXZ]'[^']*'"""
    r"""|\((?P<two>..)|\[(?P<name>[^]]*)\]|(?P<one>.))"""
)
GLYPHS = {
    "em": "—", "en": "–", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•", "co": "©",
    "ti": "~", "ha": "^", "rs": "\\", "mi": "-", "->": "→", "e": "\\", "~": " ", "0": " ",
}  # fmt: skip
GLYPHS |= {mark: mark for mark in "-. '`_"}
HEADINGS = frozenset({"TH", "SH", "SS"})
BREAKS = frozenset({"PP", "P", "LP", "TP", "TQ", "IP", "HP", "RS", "RE", "sp", "br"})
TIGHT = frozenset({"BR", "RB", "BI", "IB", "IR", "RI"})  # their words are set without spaces
SHOWN = TIGHT | {"B", "I", "SM", "SB", "UR", "MT", "SY", "OP"}


def plain(line: str) -> str:
    """A line without roff's escapes: the character of those that stand for one."""
    return ESCAPE.sub(lambda match: GLYPHS.get(match["two"] or match["name"] or match["one"], ""), line)


def text_of(page: str) -> str:
    """A manual page's text: paragraphs filled, tags and headings on lines of their own, requests gone."""
    lines: list[str] = []
    filling, new, tag = True, True, False  # new: what comes next begins a line; tag: and so does what follows it
    for line in map(plain, page.split("\n")):
        request, words = None, [line]
        if line.startswith((".", "'")):
            request, _, rest = line[1:].strip().partition(" ")
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', rest)]
        if request in ("nf", "EX", "fi", "EE"):
            filling, new = request in ("fi", "EE"), True
        elif request in HEADINGS:
            lines += ["", " ".join(words)]
            new = True
        elif request in BREAKS:
            if request != "br":
                lines.append("")
            if request == "IP" and words:
                lines.append(words[0])
            new, tag = True, request in ("TP", "TQ")
        elif words and (request is None or request in SHOWN):
            text = ("" if request in TIGHT else " ").join(words)
            if new or not filling or text[:1] in ("", " ", "\t"):
                lines.append(text)
            else:
                lines[-1] += " " + text
            new, tag = tag or not text, False
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
