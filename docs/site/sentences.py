"""How plain a page's words are: `python docs/site/sentences.py docs/*.md` prints what is too long, or lacks its zero.

1. Code, formulas and pictures are taken out; of a link its words are left.
2. A paragraph, a heading, a list's item and a table's cell are each read on their own.
3. A sentence ends at . ! ? or : and has at most 30 words.  A number below one has its zero: 0.69.
"""

import re
import sys
from pathlib import Path

MOST = 30  # words of a sentence
CODE = re.compile(
    r"^```.*?^```|^\$\$.*?^\$\$|(?:(?<=\n\n)|\A) {4,}(?![-*\d]).*?(?=\n\n\S|\Z)", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ITEM = r"\n\s*\n|\n(?=\s*(?:[-#|]|\d+\. ))"
END = r"(?<=[.!?:])[)*”\"]*\s+"


def prose(page: str) -> str:
    """What of a page's Markdown is read as sentences."""
    return LINK.sub(r"\1", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", CODE.sub("", page)))


def long_sentences(page: str) -> list[str]:
    """Sentences of more than `MOST` words."""
    parts = [cell for part in re.split(ITEM, prose(page)) for cell in re.split(r"(?<!\\)\|", part)]
    sentences = [sentence for part in parts for sentence in re.split(END, " ".join(part.split()))]
    return [sentence for sentence in sentences if len(re.findall(r"\w\S*", sentence)) > MOST]


def bare_numbers(page: str) -> list[str]:
    """Lines with a number such as .69, which lacks its zero."""
    return [line for line in page.splitlines() if re.search(r"(?<![\w.…])\.\d", line)]


def main(*pages: str) -> int:
    """Print what is found in each page; returns how much that is."""
    found = 0
    for name in pages:
        page = Path(name).read_text(encoding="utf-8")
        for text in (*long_sentences(page), *bare_numbers(page)):
            print(f"{name}: {text}")
            found += 1
    return found


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
