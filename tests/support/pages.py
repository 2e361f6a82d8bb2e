"""Reads the documentation: its pages, code blocks, commands, links and the names it mentions.

A python block whose first line is a comment such as `# coffee.py` is a file of that name, for the
commands of the pages; all others are snippets, run in the order of their page.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# In a list a block is indented, like all of its lines.
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_FILE_NAME = re.compile(r"# (\w+\.py)\n")


def shorter(text: str) -> str:
    """Snippets with trainings of a few steps."""
    return re.sub(r"TrainConfig\(steps=\d+", "TrainConfig(steps=8", text)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file_name(self) -> str:
        """Name of the file that the block is, "" for a snippet."""
        named = _FILE_NAME.match(self.text) if self.language == "python" else None
        return named[1] if named else ""


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.findall(page.read_text("utf-8"))
    return [Block(language, textwrap.dedent(text)) for _, language, text in found]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", page.read_text("utf-8"))


def snippets(page: Path) -> str:
    """The python of a page that is no file, as one program."""
    python = [each for each in blocks(page) if each.language == "python"]
    return "\n".join(each.text for each in python if not each.file_name)


def files() -> dict[str, str]:
    """File name -> text of the files that the pages show."""
    shown: dict[str, str] = {}
    for page in PAGES:
        for block in blocks(page):
            if block.file_name:
                assert block.file_name not in shown, f"{block.file_name} is shown twice"
                shown[block.file_name] = block.text
    return shown


def commands(page: Path) -> list[tuple[str, ...]]:
    """Each command of a page once, as its words: of shell blocks, and `python ...` in prose."""
    lines = [block.text for block in blocks(page) if block.language == "sh"]
    lines += re.findall(r"`(python [^`]+)`", prose(page))
    return list(dict.fromkeys(words for text in lines for words in _commands(text)))


def _commands(text: str) -> Iterator[tuple[str, ...]]:
    # A line may end within quotes: then the next one belongs to it.
    for line in _whole_lines(text.replace("\\\n", " ")):
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
                if " python " in f" {word}" and " " in word:  # a command for another machine
                    yield from _commands(word.partition("=")[2])
            elif words:
                yield tuple(words)
                words = []


def _whole_lines(text: str) -> Iterator[str]:
    line = ""
    for each in text.splitlines():
        line += each
        if line.count('"') % 2 == 0:
            yield line
            line = ""
    assert not line, f"a quote is not closed: {line}"


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    targets += re.findall(r"\bsrc(?:set)?=\"([^\"]+)\"", prose(page))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def settings(page: Path) -> set[str]:
    """Settings and sections that a page mentions, e.g. `train.steps`."""
    shown = "".join(b.text for b in blocks(page) if b.language == "sh" or "get_config" in b.text)
    named = re.findall(r"(?<![\w./])config\.([a-z]\w*(?:\.\w+)*)", prose(page) + shown)
    return {name for name in named if name not in ("yaml", "json", "py")}


def paths(page: Path) -> set[str]:
    """Paths in the repository that a page mentions, `path.py::test` included."""
    return set(re.findall(rf"`({_FLOORS}/[\w/.:]*)`", prose(page)))


def dotted_names(page: Path) -> set[str]:
    """Python names that a page mentions in full, e.g. `ilql_jax.losses.td_loss`."""
    return set(re.findall(rf"`({_FLOORS}(?:\.\w+)+)[(`]", prose(page)))


_FLOORS = "(?:ilql_jax|imagination|experiments|tests|docs)"
