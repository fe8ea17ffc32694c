"""The blocks of docs/python.md run, and print what the comments behind `print` say."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs/python.md"


BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)


def run(block):
    want = re.findall(r"^ *print\(.*\)  # (.+)$", block, flags=re.M)
    assert want, block
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    assert said.getvalue().splitlines() == want, block


@pytest.mark.parametrize("block", [block for block in BLOCKS if "torch" not in block])
def test_blocks_of_the_page_print_what_they_say(block):
    run(block)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "torch" in block])
def test_blocks_with_torch_print_what_they_say(block):
    if os.environ.get("POSENC_TEST_ALL") is None:
        pytest.importorskip("torch", reason="torch is not installed")
    run(block)


def test_every_block_has_a_test():
    assert len(BLOCKS) >= 9


def test_names_of_the_page_exist():
    """Names of this package that stand in the page are there."""
    import posenc

    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.S)
    for name in re.findall(r"`posenc\.(\w+(?:\.\w+)?)", text):
        if name.split(".")[0] in ("torch", "compat"):
            continue
        own = posenc
        for part in name.split("."):
            own = getattr(own, part)
