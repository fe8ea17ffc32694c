"""Lets the CUDA build of torch run on a CPU without CUDA's libraries.

torch's wheel for Linux on x86-64 is linked against cuBLAS, cuDNN, NCCL and others, several gigabytes that arithmetic on
the CPU never calls. The loader is content with a shared object of the same name that defines the same symbols; here
each of them ends the program. The CUDA runtime is the exception: libtorch_cuda registers its kernels with it while it
loads; it is small and comes from the package nvidia-cuda-runtime.

Run it with the environment's python after `pip install --no-deps -r requirements.txt`. Needs gcc and readelf.
"""

import pathlib
import re
import subprocess
import sysconfig

site = pathlib.Path(sysconfig.get_paths()["purelib"])
lib = site / "torch" / "lib"
runtimes = list((site / "nvidia").glob("**/libcudart.so.*"))
if not lib.is_dir() or not runtimes:
    raise SystemExit(f"torch or nvidia-cuda-runtime is missing in {site}")

for runtime in runtimes:
    link = lib / runtime.name
    if not link.exists():
        link.symlink_to(runtime)


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


needed, undefined = set(), set()
for library in lib.glob("libtorch*.so"):
    needed |= set(re.findall(r"\(NEEDED\).*\[(lib(?:cu|nv|nccl)[^\]]*)\]", readelf("-d", library)))
    undefined |= set(re.findall(r" UND ((?:cu|nv|nccl)\w+)", readelf("--dyn-syms", library)))

# Every stub defines every symbol: the loader takes the first it finds, and none is ever called.
symbols = sorted(name for name in undefined if not re.match(r"cuda[A-Z]", name))
source = "#include <stdlib.h>\n" + "".join(f"void {name}(void) {{ abort(); }}\n" for name in symbols)
for name in sorted(needed):
    path = lib / name
    if path.is_symlink():
        continue
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-x", "c", "-", "-o", path]
    subprocess.run(command, input=source, text=True, check=True)
    print(f"{name}: {len(symbols)} symbols")
