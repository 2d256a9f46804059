"""The commands of a section of cluster/README.md."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "cluster" / "README.md"

#: The section on one's own machines.
SECTION = "Your own machines"


def section(text: str, title: str = SECTION) -> str:
    """Returns the part of a Markdown text under a heading. Raises ValueError if there is no such heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f'{README.name} has no section "{title}"')
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """Returns the contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str, language: str = "sh") -> list[str]:
    """Returns the shell commands of a text's blocks, without comments. A loop is one command."""
    found: list[str] = []
    open_loop = False
    for line in "".join(blocks(text, language)).splitlines():
        if open_loop or (found and found[-1].endswith("\\")):
            found[-1] += f"\n{line}"
        elif line.strip():
            found.append(re.sub(r"\s{2,}#\s.*$", "", line))
        open_loop = (open_loop or line.startswith("for ")) and line != "done"
    return found


class Commands:
    """The commands of a section, in order. Each can be taken once.

    Args:
      text: the section.
      replace: what stands for addresses and names of the reader -> what it is here.
      language: of the blocks that have the commands.
    """

    def __init__(self, text: str, replace: dict[str, str], language: str = "sh") -> None:
        for placeholder in replace:
            if placeholder not in text:
                raise ValueError(f'{README.name} does not name "{placeholder}" any more')
        for placeholder, value in replace.items():
            text = text.replace(placeholder, value)
        self.text = text
        self._left = commands(text, language)

    def take(self, start: str) -> str:
        """Returns the next command. Raises ValueError if it does not begin with `start`."""
        if not self._left or not self._left[0].startswith(start):
            raise ValueError(f'{README.name} does not go on with "{start}": {self._left[:1]}')
        return self._left.pop(0)

    def left(self) -> list[str]:
        return self._left
