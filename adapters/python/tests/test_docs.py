"""The blocks of docs/python.md run, and print what the comments behind `print` say."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs/python.md"


def test_blocks_of_the_page_print_what_they_say():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)
    assert len(blocks) >= 6
    for block in blocks:
        want = re.findall(r"^ *print\(.*\)  # (.+)$", block, flags=re.M)
        assert want or "print" not in block, block
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
        assert said.getvalue().splitlines() == want, block


def test_commands_of_the_page_exist():
    """Names of this package that stand in the page are there."""
    import posenc

    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.S)
    for name in re.findall(r"`posenc\.(\w+(?:\.\w+)?)", text):
        own = posenc
        for part in name.split("."):
            own = getattr(own, part)
