"""The text of HTML pages.

Left out is what is no text of the page's own: elements, classes and ids by which HTML, DocBook, Publican, Sphinx and
Drupal mark their navigation.
"""

import re
from html.parser import HTMLParser

LEFT_OUT = {
    "head", "script", "style", "svg", "nav", "aside", "footer", "button", "navheader", "navfooter", "toc", "docnav",
    "related", "sphinxsidebar", "book-navigation", "headerlink",
}  # fmt: skip
EMPTY = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
}  # fmt: skip
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "div", "dl", "dt", "figcaption",
    "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre",
    "section", "table", "tr", "ul",
}  # fmt: skip


class Words(HTMLParser):
    """Collects the text of a page: a line a block, white space as a browser shows it, kept in <pre>."""

    def __init__(self, without: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.without = LEFT_OUT | without
        self.lines = [""]
        self.open: list[tuple[str, bool, bool]] = []  # tag, left out, pre-formatted

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self._end_line()
        if tag not in EMPTY:
            _, out, pre = self.open[-1] if self.open else ("", False, False)
            names = {tag}
            for key, value in attrs:
                if key in ("class", "id") and value:
                    names.update(value.split())
            out = out or not self.without.isdisjoint(names)
            self.open.append((tag, out, pre or tag == "pre"))

    def handle_endtag(self, tag: str) -> None:
        if tag in (name for name, _, _ in self.open):
            while self.open.pop()[0] != tag:
                pass
        if tag in BLOCKS:
            self._end_line()
        elif tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        _, out, pre = self.open[-1] if self.open else ("", False, False)
        data = data.replace("\xa0", " ")
        if out:
            return
        if pre:
            first, *others = data.split("\n")
            self.lines[-1] += first
            self.lines += others
        else:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            self.lines[-1] += data.removeprefix(" ") if self.lines[-1][-1:] in ("", " ") else data

    def _end_line(self) -> None:
        if self.lines[-1]:
            self.lines[-1] = self.lines[-1].rstrip()
            self.lines.append("")

    def text(self) -> str:
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in self.lines)).strip()


def text_of(page: str, without: frozenset[str] = frozenset()) -> str:
    """A page's text; `without` names further elements, classes and ids to leave out."""
    words = Words(without)
    words.feed(page)
    words.close()
    return words.text()
