"""The smallest world there is: the complete example of the page on worlds of one's own."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "own_task.md"
COFFEE = "# coffee.py" + PAGE.read_text("utf-8").split("# coffee.py")[1].split("```")[0]


def coffee_file(folder: Path) -> Path:
    """Writes it as a file of its own."""
    path = folder / "coffee.py"
    path.write_text(COFFEE, encoding="utf-8")
    return path
