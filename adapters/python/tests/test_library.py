"""The library and its structs: sizes as a C compiler has them, every function in use, errors of every status."""

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import posenc
import pytest
from posenc import _c, _library, _plan, _struct

HEADER = Path(__file__).resolve().parents[2] / "c/posenc.h"
PACKAGE = Path(posenc.__file__).parent


def structs():
    return [own for own in vars(_c).values() if isinstance(own, type) and issubclass(own, ctypes.Structure)]


def test_sizes_and_offsets_are_those_of_a_c_compiler(tmp_path):
    compiler = os.environ.get("CC", "cc")
    assert shutil.which(compiler), "a C compiler is needed"
    lines, want = [], []
    for own in structs():
        if own.__module__ == _struct.__name__:
            continue
        lines.append(f'printf("{own.__name__} %zu\\n", sizeof(Posenc{own.__name__}));')
        want.append(f"{own.__name__} {ctypes.sizeof(own)}")
        for name in [field[0] for base in reversed(own.__mro__) for field in vars(base).get("_fields_", [])]:
            lines.append(f'printf("{name} %zu\\n", offsetof(Posenc{own.__name__}, {name}));')
            want.append(f"{name} {getattr(own, name).offset}")
    program = "#include <stddef.h>\n#include <stdio.h>\n" + f'#include "{HEADER}"\n'
    (tmp_path / "sizes.c").write_text(f"{program}int main(void) {{\n" + "\n".join(lines) + "\n}\n")
    subprocess.run([compiler, "-std=c11", tmp_path / "sizes.c", "-o", tmp_path / "sizes"], check=True)
    said = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == want and len(want) > 400


def test_constants_and_functions_are_those_of_the_header():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    constants = {name: int(value) for name, value in re.findall(r"#define POSENC_(\w+) (\d+)\s", text)}
    own = {name: getattr(_c, name, None) for name in constants if not name.startswith("VERSION")}
    assert own == {name: value for name, value in constants.items() if not name.startswith("VERSION")}
    functions = set(re.findall(r"\b(posenc_\w+)\(", text)) - {"posenc_init"}
    assert functions == set(_c.FUNCTIONS)
    version = [constants[f"VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH")]
    assert posenc.__version__ == ".".join(map(str, version))


def test_every_function_of_the_library_is_used():
    """Every operation of C is one of this package: each function's name is in its sources, or made of a kind there."""
    named = set()
    for path in PACKAGE.glob("*.py"):
        if path.name == "_c.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
    unused = []
    for name in _c.FUNCTIONS:
        kind = re.fullmatch(r"posenc_(\w+?)_(new|free|on|len|apply)", name)
        term = re.fullmatch(r"posenc_term_(\w+)", name)
        law = re.fullmatch(r"posenc_(?:bias|distance_grad)_(\w+)_new", name)
        made = [match[1] for match in (kind, term, law) if match]
        if name not in named and not named.intersection(made):
            unused.append(name)
    # A config's rope is made of a model, which answers more questions, and its prologue of branches. The sentence of a
    # status is an error's text.
    assert unused == ["posenc_last_error", "posenc_rope_from_hf", "posenc_prologue_of_model"]


def test_structs_refuse_what_they_do_not_hold():
    with pytest.raises(AttributeError, match="GridCall has no field row"):
        _c.GridCall(row=2)
    with pytest.raises(ValueError, match="rows is -2, which its type does not hold"):
        _c.GridCall(rows=-2)
    with pytest.raises(ValueError, match="factors holds 3 numbers, at most 2 are allowed"):
        _c.ResampleSpec(factors=[1, 2, 3])
    with pytest.raises(ValueError, match=r"to\[1\] is -1, which its type does not hold"):
        _c.ResampleSpec(to=[1, -1])


def test_errors_are_kinds_of_the_usual_ones():
    with pytest.raises(posenc.errors.InvalidValueError, match="rotary is 7") as caught:
        posenc.Rope(7).rotate(np.zeros((1, 1, 8), np.float32))
    assert isinstance(caught.value, ValueError) and caught.value.status == _c.VALUE
    with pytest.raises(posenc.errors.ArgumentError, match="out is null"):
        _library.call("posenc_rope_new", None, None, 0, None)
    statuses = {kind.status for kind in posenc.Error.__subclasses__()}
    assert statuses == {_c.ARGUMENT, _c.VALUE, _c.DEVICE, _c.DRIVER, _c.INTERNAL}


def test_plans_are_kept_and_let_go():
    posenc.clear()
    rope, x = posenc.Rope(8), np.ones((2, 1, 8), np.float32)
    rope.rotate(x)
    rope.rotate(x)
    posenc.Rope(8).rotate(x)
    assert posenc.plans() == 1
    rope.rotate(x.astype(np.float16))
    assert posenc.plans() == 2
    for base in range(2, posenc.CAPACITY + 10):
        posenc.Rope(8, base=float(base)).rotate(x)
    assert posenc.plans() == posenc.CAPACITY
    posenc.clear()
    assert posenc.plans() == 0


def test_threads_share_plans():
    posenc.clear()
    x, failures = np.random.default_rng(1).standard_normal((64, 4, 64)).astype(np.float32), []
    want = posenc.Rope(64).rotate(x)

    def work():
        for _ in range(20):
            if (posenc.Rope(64).rotate(x) != want).any():
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and posenc.plans() == 1


def python(code, **variables):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_the_wheels_tag_is_the_one_that_auditwheel_finds(tmp_path):
    if os.environ.get("POSENC_TEST_ALL") is None:
        pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    variables = {**os.environ, "POSENC_LIBRARY": posenc.library_path()}
    adapter = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", build], cwd=adapter, env=variables, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", wheel], check=True, capture_output=True, text=True
    )
    tag = wheel.stem.split("-")[-1]
    assert tag.startswith("manylinux_2_")
    assert f'consistent with the following platform tag: "{tag}"' in " ".join(shown.stdout.split()), shown.stdout


def test_a_library_that_is_not_there_is_named():
    ran = python("import posenc", POSENC_LIBRARY="/nowhere/lib.so")
    assert ran.returncode == 1
    assert "POSENC_LIBRARY is '/nowhere/lib.so', and there is no such file" in ran.stderr


def test_without_a_driver_a_device_is_an_error():
    code = (
        "import posenc\ntry:\n    posenc.ErrorFlag(0)\nexcept posenc.Error as error:\n    print(type(error).__name__)"
    )
    ran = python(code, LD_LIBRARY_PATH="")
    assert ran.returncode == 0 and ran.stdout == "DeviceError\n", ran.stderr


def test_the_end_of_the_interpreter_is_quiet():
    code = "q = posenc.Rope(8).rotate(numpy.ones((1, 1, 8), 'float32'))\nplan = posenc.Alibi(2).plan()"
    ran = python(f"import numpy, posenc\n{code}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_overlap_of_kernels_makes_plans_of_its_own():
    posenc.clear()
    x = np.ones((1, 1, 8), np.float32)
    posenc.Rope(8).rotate(x)
    posenc.overlap(True)
    try:
        posenc.Rope(8).rotate(x)
    finally:
        posenc.overlap(False)
    assert len(_plan._PLANS) == 2
