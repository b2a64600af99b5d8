"""Files that a reader can hold in mind."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 400
"""Lines of a file."""


def test_no_file_is_longer_than_a_reader_can_hold():
    """Of the package, its tests and its benchmarks; a longer one is two."""
    files = [p for room in ("workflow", "hpc", "tests", "benchmarks") for p in room_files(room)]
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert len(sizes) > 300
    assert {name: size for name, size in sizes.items() if size > MOST} == {}


def room_files(room):
    return (ROOT / room).rglob("*.py")
