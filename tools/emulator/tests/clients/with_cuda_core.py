"""cuda.core on the emulator: compile, launch, streams, events, memory pools, pinned memory, graphs, several devices."""

import ctypes

import numpy as np
from cuda.core import (
    Device,
    DeviceMemoryResource,
    EventOptions,
    LaunchConfig,
    LegacyPinnedMemoryResource,
    Linker,
    LinkerOptions,
    Program,
    ProgramOptions,
    launch,
)

SOURCE = """
template <typename T>
__global__ void axpy(T a, const T* x, const T* y, T* out, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (size_t)blockDim.x)
        out[i] = a * x[i] + y[i];
}

extern "C" __global__ void reverse(int* values) {
    extern __shared__ int room[];
    room[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}

__constant__ int step = 3;
extern "C" __global__ void add_step(int* values) { values[threadIdx.x] += step; }
"""
EXTERNAL = """
extern __device__ int twice(int);
extern "C" __global__ void apply(int* values) { values[threadIdx.x] = twice(values[threadIdx.x]); }
"""
DEFINITION = "__device__ int twice(int x) { return 2 * x; }"
N = 1000


def main():
    device = Device(0)
    device.set_current()
    options = ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
    program = Program(SOURCE, code_type="c++", options=options)
    module = program.compile("ptx", name_expressions=("axpy<float>", "axpy<double>"))
    stream = device.create_stream()

    # memory from the device's pool, and from pinned memory of the host
    pinned = LegacyPinnedMemoryResource()

    def upload(array):
        staged = pinned.allocate(array.nbytes, stream=stream)
        ctypes.memmove(int(staged.handle), array.ctypes.data, array.nbytes)
        buffer = device.allocate(array.nbytes, stream=stream)
        buffer.copy_from(staged, stream=stream)
        return buffer

    def download(buffer, dtype, count):
        staged = pinned.allocate(buffer.size, stream=stream)
        buffer.copy_to(staged, stream=stream)
        stream.sync()
        out = np.empty(count, dtype)
        ctypes.memmove(out.ctypes.data, int(staged.handle), out.nbytes)
        return out

    random = np.random.default_rng(1)
    for dtype, name in ((np.float32, "axpy<float>"), (np.float64, "axpy<double>")):
        x, y = random.random(N, dtype=dtype), random.random(N, dtype=dtype)
        device_x, device_y = upload(x), upload(y)
        out = device.allocate(x.nbytes, stream=stream)
        kernel = module.get_kernel(name)
        assert kernel.attributes.max_threads_per_block == 1024
        launch(stream, LaunchConfig(grid=4, block=128), kernel, dtype(2), device_x, device_y, out, np.uint64(N))
        assert np.allclose(download(out, dtype, N), 2 * x + y, rtol=1e-6)
        device_x.close(stream)

    # streams ordered by events
    values = np.arange(256, dtype=np.int32)
    buffer = upload(values)
    reverse = module.get_kernel("reverse")
    add_step = module.get_kernel("add_step")
    other = device.create_stream()
    other.wait(stream.record())
    launch(other, LaunchConfig(grid=1, block=256, shmem_size=1024), reverse, buffer)
    stream.wait(other)
    launch(stream, LaunchConfig(grid=1, block=256), add_step, buffer)
    assert (download(buffer, np.int32, 256) == values[::-1] + 3).all()
    timing = EventOptions(timing_enabled=True)
    begun = stream.record(options=timing)
    ended = stream.record(options=timing)
    ended.sync()
    assert ended - begun >= 0

    # a graph of two kernels, captured once and launched three times
    builder = device.create_graph_builder()
    builder.begin_building()
    launch(builder, LaunchConfig(grid=1, block=256), add_step, buffer)
    launch(builder, LaunchConfig(grid=1, block=256), add_step, buffer)
    graph = builder.end_building().complete()
    graph.upload(stream)
    for _ in range(3):
        graph.launch(stream)
    assert (download(buffer, np.int32, 256) == values[::-1] + 3 + 3 * 2 * 3).all()

    # a pool of its own, whose memory is used by streams
    pool = DeviceMemoryResource(device)
    block = pool.allocate(1 << 20, stream=stream)
    assert block.size == 1 << 20 and block.is_device_accessible
    block.close(stream)

    # two programs linked
    relocatable = ProgramOptions(relocatable_device_code=True, arch=f"sm_{device.arch}")
    parts = [Program(source, code_type="c++", options=relocatable).compile("ptx") for source in (EXTERNAL, DEFINITION)]
    linked = Linker(*parts, options=LinkerOptions(arch=f"sm_{device.arch}")).link("cubin")
    launch(stream, LaunchConfig(grid=1, block=256), linked.get_kernel("apply"), buffer)
    assert (download(buffer, np.int32, 256) == 2 * (values[::-1] + 21)).all()

    # the second device
    if len(Device.get_all_devices()) > 1:
        second = Device(1)
        second.set_current()
        there = second.create_stream()
        block = second.allocate(64, stream=there)
        assert block.device_id == 1
        block.close(there)
        there.sync()


main()
print("cuda.core: every result is right")
