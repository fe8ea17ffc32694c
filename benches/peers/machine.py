"""Where a comparison runs: on a GPU, or, to check every line without one, on the emulator beside PyTorch's CPU.

A machine lends PyTorch's tensors to the C library, keeps one plan for each stream, and times.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import statistics
import time
from pathlib import Path

import posenc

ROUNDS = 30


class Missing(Exception):
    """A peer that is not installed."""


def need(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"missing: {error}") from error


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


class Driver:
    """libcuda.so.1, a machine's own or the emulator."""

    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)

    def call(self, name, *arguments):
        status = getattr(self.c, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} gives {status}")

    def module(self, image):
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        return module

    def function(self, module, name):
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(self, function, grid, block, stream, arguments):
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.call("cuLaunchKernel", function, *grid, *block, 0, ctypes.c_void_p(stream), pointers, None)


class Machine:
    """What both have: the library, and plans by stream."""

    def __init__(self, torch, library):
        self.torch = torch
        # Beside the library in a bundle, else the source's.
        beside = library.resolve().with_name("posenc.h")
        header = beside if beside.exists() else Path(__file__).resolve().parents[2] / "adapters/c/posenc.h"
        self.c = posenc.Library(library, header)
        self.driver = Driver()
        self._plans = {}

    def plan(self, key, make):
        """`make(gpu)`, once for each stream: a plan belongs to one, and captures run on one of their own."""
        stream = self.stream()
        if ("gpu", stream) not in self._plans:
            self._plans["gpu", stream] = self.c.gpu_new(0, stream, 0)
        if (key, stream) not in self._plans:
            self._plans[key, stream] = make(self._plans["gpu", stream])
        return self._plans[key, stream]

    def forget(self):
        """Drops the plans of a case; what they hold lives as long as the process."""
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] == "gpu"}

    def random(self, generator, *shape, dtype=None):
        x = self.torch.randn(*shape, device=self.device, dtype=self.torch.float32, generator=generator)
        return x.to(dtype or self.torch.bfloat16)

    def generator(self, seed):
        return self.torch.Generator(device=self.device).manual_seed(seed)

    def measure(self, call, sets, calls, rounds=ROUNDS):
        """Microseconds a call: median, 5th and 95th of 100, and how they were taken."""
        n = len(sets)
        run = lambda: [call(*sets[i % n]) for i in range(calls)]
        self.warm(lambda: call(*sets[0]))
        try:
            replay, mode = self.capture(run), "graph"
        except Exception as error:  # a peer may do anything that cannot be captured
            self.synchronize()
            replay, mode = run, f"stream ({type(error).__name__} in capture)"
        replay()
        self.synchronize()
        times = []
        for _ in range(rounds):
            start, end = self.event(), self.event()
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / calls)
        times.sort()
        at = lambda share: times[round(share * (len(times) - 1))]
        return statistics.median(times), at(0.05), at(0.95), mode


class Gpu(Machine):
    """The first GPU, through PyTorch: its tensors, its streams, its graphs."""

    device = "cuda"
    checks = False

    def __init__(self, torch, library):
        super().__init__(torch, library)
        properties = torch.cuda.get_device_properties(0)
        self.name, self.cache = properties.name, properties.L2_cache_size
        self.capability = properties.major * 10 + properties.minor
        self.side = torch.cuda.Stream()

    def kernels(self, name):
        """A module whose kernels run on a GPU alone."""
        return need(name)

    def stream(self):
        return self.torch.cuda.current_stream().cuda_stream

    @contextlib.contextmanager
    def lend(self):
        yield lambda x: self.c.Buffer(data=x.data_ptr(), len=x.numel())

    def compile(self, function):
        return self.torch.compile(function, dynamic=False)

    def synchronize(self):
        self.torch.cuda.synchronize()

    def warm(self, call):
        """On the stream of the capture: what is compiled, loaded or made there must be ready before."""
        self.side.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(self.side):
            for _ in range(3):
                call()
        self.synchronize()

    def capture(self, run):
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.side):
            run()
        return graph.replay

    def event(self):
        return self.torch.cuda.Event(enable_timing=True)

    def empty(self):
        self.torch.cuda.empty_cache()


class CpuEvent:
    """An event's face on the CPU's clock. It times the emulator, which says nothing about a GPU."""

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Check(Machine):
    """PyTorch's tensors on the CPU and the library on the emulator: tensors travel to it and back with each call."""

    device = "cpu"
    checks = True
    name, cache, capability = "the emulator and the CPU: no times", 1 << 12, 90

    def __init__(self, torch, library):
        super().__init__(torch, library)
        device, context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.driver.call("cuInit", 0)
        self.driver.call("cuDeviceGet", ctypes.byref(device), 0)
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.driver.call("cuCtxSetCurrent", context)
        self.driver.call("cuStreamCreate", ctypes.byref(self._stream), 1)
        self.captures = 0

    def kernels(self, name):
        raise Missing(f"missing: the kernels of {name} run on a GPU alone")

    def stream(self):
        return self._stream.value

    @contextlib.contextmanager
    def lend(self):
        lent = {}

        def buffer(x):
            assert x.is_contiguous(), "a tensor travels as one run of bytes"
            if x.data_ptr() not in lent:
                address, size = ctypes.c_uint64(), ctypes.c_size_t(x.numel() * x.element_size())
                self.driver.call("cuMemAlloc_v2", ctypes.byref(address), size)
                self.driver.call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(x.data_ptr()), size)
                lent[x.data_ptr()] = address, size
            return self.c.Buffer(data=lent[x.data_ptr()][0].value, len=x.numel())

        yield buffer
        self.driver.call("cuStreamSynchronize", self._stream)
        for data, (address, size) in lent.items():
            self.driver.call("cuMemcpyDtoH_v2", ctypes.c_void_p(data), address, size)
            self.driver.call("cuMemFree_v2", address)

    def compile(self, function):
        """Without a compiler: the graph is taken, and run as it stands."""
        return self.torch.compile(function, dynamic=False, backend="eager")

    def synchronize(self):
        self.driver.call("cuStreamSynchronize", self._stream)

    def warm(self, call):
        call()

    def capture(self, run):
        """Every other one fails, so that both ways of timing are run."""
        self.captures += 1
        if self.captures % 2:
            raise RuntimeError("there is no graph here")
        return run

    def event(self):
        return CpuEvent()

    def empty(self):
        pass
