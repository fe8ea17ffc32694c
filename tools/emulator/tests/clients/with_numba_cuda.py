"""numba-cuda on the emulator: kernels, shared memory, barriers, atomics, shuffles, streams, events, array functions."""

import numpy as np
from numba import cuda, float32, int32, vectorize

N = 1000


@cuda.jit
def add(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = a[i] + b[i]


@cuda.jit
def transpose(a, b):
    tile = cuda.shared.array((16, 17), dtype=float32)
    x, y = cuda.grid(2)
    if y < a.shape[0] and x < a.shape[1]:
        tile[cuda.threadIdx.y, cuda.threadIdx.x] = a[y, x]
    cuda.syncthreads()
    x = cuda.blockIdx.y * 16 + cuda.threadIdx.x
    y = cuda.blockIdx.x * 16 + cuda.threadIdx.y
    if y < b.shape[0] and x < b.shape[1]:
        b[y, x] = tile[cuda.threadIdx.x, cuda.threadIdx.y]


@cuda.jit
def histogram(values, bins):
    i = cuda.grid(1)
    if i < values.size:
        cuda.atomic.add(bins, values[i], 1)


@cuda.jit
def warp_sums(values, sums):
    i = cuda.grid(1)
    v = values[i]
    step = 16
    while step > 0:
        v += cuda.shfl_down_sync(0xFFFFFFFF, v, step)
        step //= 2
    if cuda.laneid == 0:
        sums[i // 32] = v


@cuda.jit
def fill_dynamic(out):
    room = cuda.shared.array(0, dtype=int32)
    i = cuda.threadIdx.x
    room[i] = i * i
    cuda.syncthreads()
    out[i] = room[cuda.blockDim.x - 1 - i]


@cuda.jit(device=True)
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


@cuda.jit
def gcds(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = gcd(a[i], b[i])


@vectorize(["float32(float32, float32)"], target="cuda")
def hypotenuse(a, b):
    return (a * a + b * b) ** 0.5


@cuda.reduce
def total(a, b):
    return a + b


def main():
    random = np.random.default_rng(1)
    a, b = random.random(N, dtype=np.float32), random.random(N, dtype=np.float32)

    device_c = cuda.device_array_like(a)
    add[8, 128](cuda.to_device(a), cuda.to_device(b), device_c)
    assert (device_c.copy_to_host() == a + b).all()

    matrix = random.random((50, 70), dtype=np.float32)
    turned = cuda.device_array((70, 50), dtype=np.float32)
    transpose[(5, 4), (16, 16)](cuda.to_device(matrix), turned)
    assert (turned.copy_to_host() == matrix.T).all()

    values = random.integers(0, 10, N, dtype=np.int32)
    bins = cuda.to_device(np.zeros(10, np.int32))
    histogram[8, 128](cuda.to_device(values), bins)
    assert (bins.copy_to_host() == np.bincount(values, minlength=10)).all()

    numbers = np.arange(256, dtype=np.int32)
    sums = cuda.device_array(8, dtype=np.int32)
    warp_sums[2, 128](cuda.to_device(numbers), sums)
    assert (sums.copy_to_host() == numbers.reshape(8, 32).sum(1)).all()

    out = cuda.device_array(64, dtype=np.int32)
    fill_dynamic[1, 64, 0, 64 * 4](out)
    assert (out.copy_to_host() == np.arange(63, -1, -1) ** 2).all()

    # work of two streams, ordered by an event
    first, second, done = cuda.stream(), cuda.stream(), cuda.event()
    x, y = random.integers(1, 10**6, N), random.integers(1, 10**6, N)
    device_x, device_y = cuda.to_device(x, stream=first), cuda.to_device(y, stream=first)
    result = cuda.device_array(N, dtype=x.dtype, stream=first)
    gcds[8, 128, first](device_x, device_y, result)
    done.record(first)
    done.wait(second)
    host = result.copy_to_host(stream=second)
    second.synchronize()
    assert (host == np.gcd(x, y)).all()

    assert np.allclose(hypotenuse(a, b), np.hypot(a, b), rtol=1e-6)
    assert total(np.arange(1000)) == 499500

    pinned = cuda.pinned_array(N, dtype=np.float32)
    pinned[:] = a
    assert (cuda.to_device(pinned).copy_to_host() == a).all()
    assert cuda.current_context().get_memory_info().total > 0


main()
print("numba-cuda: every result is right")
