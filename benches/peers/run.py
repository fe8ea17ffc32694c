"""posenc beside other implementations, on one GPU, in one run, on the same tensors and stream.

Needs a GPU and PyTorch; transformers, diffusers, liger_kernel, flashinfer, vllm, xformers and candle's kernels take
part where they are there, and are named as missing where they are not. Every result is compared with f64 arithmetic
before it is timed; what is wrong is named and not timed. Times are medians over replays of a CUDA graph that holds many
calls; where a peer cannot be captured, over batches of calls between two events, and the row says so. Cold: the calls
go round through sets of tensors that hold four times the L2 cache. Beside each case stands the floor: a device copy of
the same bytes, and for small ones the smallest kernel that PyTorch has.

usage: run.py --library libposenc_c.so --out results.csv [--room ROOM] [--only PEER] [--tokens N,N,...] [--seconds N]
       run.py --check --library libposenc_c.so

`cargo xtask peers` builds the library and calls this. --check needs no GPU but tools/emulator as libcuda.so.1 and
PyTorch for the CPU: every comparison at a small size, the library on the emulator, the others on the CPU. It exits with
1 if anything is wrong or fails, and times nothing.
"""

import argparse
import contextlib
import csv
import itertools
import sys
import time
from pathlib import Path

from machine import Check, Gpu, Missing

import attend
import embed
import rotate

COLUMNS = "room case cache bytes_to_move peer version taken median_us p5_us p95_us error".split()


def times(measured):
    median, low, high, mode = measured
    return [mode, f"{median:.3f}", f"{low:.3f}", f"{high:.3f}"]


def floors(machine, size, sets, calls):
    """A device copy that moves as many bytes; for small ones the smallest kernel too."""
    torch = machine.torch
    empty = lambda n: torch.empty(n, dtype=torch.uint8, device=machine.device)
    pairs = [(empty(max(size // 2, 1)), empty(max(size // 2, 1))) for _ in range(sets)]
    rows = [["device copy", torch.__version__, *times(machine.measure(lambda a, b: b.copy_(a), pairs, calls)), ""]]
    if size < 1 << 20:
        one = machine.measure(lambda x: x.fill_(1), [(empty(1),)], calls)
        rows.append(["fill of one element", torch.__version__, *times(one), ""])
    return rows


def one(machine, case, name, peer, sets, calls):
    """One row: measured, or why not."""
    try:
        version, call = peer()
        wanted = case.wanted(*sets[0])
        results = call(*(x.clone() for x in sets[0]))
        machine.synchronize()
        error = case.error(wanted, results)
        if not error <= case.tolerance["posenc" if name.startswith("posenc") else "peer"]:
            return [name, version, f"wrong by {error:.2e}, not timed", "", "", "", f"{error:.2e}"]
        return [name, version, *times(machine.measure(call, sets, calls)), f"{error:.2e}"]
    except Missing as missing:
        return [name, "", str(missing), "", "", "", ""]
    except Exception as error:  # one peer's failure is a row, not the end of the run
        return [name, "", f"failed: {type(error).__name__}: {error}".replace("\n", " ")[:300], "", "", "", ""]


def compare(machine, make, only):
    """The rows of one case, hot where it fits into half the cache, cold where it is large enough to be either."""
    size = make().bytes
    cold = -(-4 * machine.cache // size)
    for cache, sets in (("cold", cold), ("hot", 1)):
        if not machine.checks and (size < 4 << 20 if cache == "cold" else size > machine.cache // 2):
            continue
        calls = 3 if machine.checks else max(sets, 64 if size < 1 << 20 else 16)
        case = make()
        tensors = case.sets(min(sets, 2) if machine.checks else sets)
        rows = floors(machine, size, len(tensors), calls)
        for name, peer in case.peers().items():
            if only and only not in name:
                continue
            rows.append(one(machine, case, name, peer, tensors, calls))
        if machine.checks:
            # The clock ran, and what it said is no time.
            rows = [[*row[:3], *["-" if number else "" for number in row[3:6]], row[6]] for row in rows]
        yield from ([case.room, case.name, cache, size, *row] for row in rows)
        machine.forget()
        del case, tensors
        machine.empty()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--room", choices=["rotate", "embed", "attend"])
    parser.add_argument("--only", help="a part of the wanted peers' names")
    parser.add_argument("--tokens", default="", help="sizes, in place of each room's own")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long cases may begin")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is missing: peers are measured on a machine that has it")
    if not arguments.check and not arguments.out:
        sys.exit("--out says where the rows go")
    if not arguments.check and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU: a time is from a GPU or it is not there")
    machine = (Check if arguments.check else Gpu)(torch, arguments.library)
    tokens = [int(n) for n in arguments.tokens.split(",") if n]
    print(f"{machine.name}, PyTorch {torch.__version__}")
    end = time.monotonic() + arguments.seconds
    rooms = [room.cases(machine, tokens) for room in (rotate, embed, attend) if arguments.room in (None, room.__name__)]
    rows, left = [], []
    with contextlib.ExitStack() as stack:
        # Row by row: a run that is ended leaves those that it came to.
        file = None if arguments.check else stack.enter_context(opened(arguments.out))
        writer = csv.writer(file) if file else None
        if writer:
            writer.writerow(["# " + machine.name, "PyTorch " + torch.__version__, "CUDA " + str(torch.version.cuda)])
            writer.writerow(COLUMNS)
        # A case of each room in turn, so that none is left out where the time ends.
        for make in (make for makes in itertools.zip_longest(*rooms) for make in makes if make):
            if time.monotonic() >= end:
                case = make()
                left.append(f"{case.room} {case.name}")
                continue
            for row in compare(machine, make, arguments.only):
                rows.append(row)
                print(" | ".join(map(str, row)), flush=True)
                if writer:
                    writer.writerow(row)
                    file.flush()
    print(f"summary: {len(rows)} rows, {len(left)} cases not run{', out of time' if left else ''}")
    if left:
        print("not run: " + ", ".join(left))
    for line in comparison(rows):
        print("summary: " + line)
    return verdict(rows) if arguments.check else None


def opened(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", newline="")


def comparison(rows):
    """A line of each case: posenc's time, and the fastest other's beside it."""
    cases = {}
    for room, case, cache, _, peer, _, _, median, *_ in rows:
        if median not in ("", "-"):
            cases.setdefault(f"{room} {case} {cache}", []).append((float(median), peer))
    for case, times in cases.items():
        own = [us for us, peer in times if peer.startswith("posenc")]
        others = [row for row in times if not row[1].startswith(("posenc", "device copy", "fill of"))]
        if own and others:
            fastest, peer = min(others)
            yield f"{case}: posenc {min(own):.2f} us, {peer} {fastest:.2f} us, {fastest / min(own):.2f} times"


def verdict(rows):
    """Of a check: every row was compared, or its peer is missing."""
    taken = [row[COLUMNS.index("taken")] for row in rows]
    bad = [row for row, how in zip(rows, taken, strict=True) if how.startswith(("wrong", "failed"))]
    missing = sorted({row[4] for row, how in zip(rows, taken, strict=True) if how.startswith("missing")})
    print(f"{len(rows)} rows, {len(bad)} wrong or failed, missing: {', '.join(missing) or 'nobody'}")
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    main()
