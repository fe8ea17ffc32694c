// Kernels that are right, and next to each the same with one mistake. mutants.ptx is made of this by NVRTC 12.9 for sm_80.
#define K extern "C" __global__ void

// reverse within a block through shared memory
K reverse(const int* x, int* y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x];
}
K reverse_without_barrier(const int* x, int* y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    y[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x];
}
K reverse_off_by_one(const int* x, int* y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = s[128 - threadIdx.x];
}
K reverse_half_written(const int* x, int* y) {
    __shared__ int s[128];
    if (threadIdx.x < 64) s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x];
}

// copy with a bound
K copy(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
K copy_off_by_one(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = x[i];
}
K copy_before_start(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i - 1];
}
K copy_unwritten_tail(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n - 1) y[i] = x[i];
}
K copy_vector_misaligned(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * i + 4 < n) *(float4*)(y + 4 * i) = *(const float4*)(x + 4 * i + 1);
}
K copy_all_to_one(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i / 2] = x[i];
}

// a matrix of rows x columns, row by row to column by column
K transpose(const float* x, float* y, int rows, int columns) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * columns) y[i % columns * rows + i / columns] = x[i];
}
K transpose_swapped_stride(const float* x, float* y, int rows, int columns) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * columns) y[i % columns * columns + i / columns] = x[i];
}

// sum of a warp
K warp_sum(const float* x, float* y, int n) {
    int i = threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffff, v, d);
    if (i == 0) *y = v;
}
K warp_sum_in_branch(const float* x, float* y, int n) {
    int i = threadIdx.x;
    if (i < n) {
        float v = x[i];
        for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffff, v, d);
        if (i == 0) *y = v;
    }
    else y[1 + i] = 0;
}
K warp_sum_wrong_mask(const float* x, float* y, int n) {
    int i = threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0x0000ffff, v, d);
    if (i == 0) *y = v;
}
K warp_sum_narrow_mask(const float* x, float* y, int n) {
    int i = threadIdx.x;
    if (i < 16) {
        float v = x[i];
        for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0x0000ffff, v, d);
        if (i == 0) *y = v;
    }
}

// barriers
K barrier_in_branch(int* y, int n) {
    if (threadIdx.x < n) {
        __syncthreads();
        y[threadIdx.x] = 1;
    }
}
K barrier_after_return(int* y, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}
K barriers_that_differ(int* y, int n) {
    if (threadIdx.x < n) { asm volatile("bar.sync 1;"); } else { asm volatile("bar.sync 2;"); }
    y[threadIdx.x] = 1;
}

// memory of the whole grid
K shift_in_place(int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i + 1 < n) x[i] = x[i + 1];
}
K read_only_then_written(const int* x, int* y, int n) {
    int i = threadIdx.x;
    if (i < n) y[i] = __ldg(x + i) + 1;
}
K freed(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }

// sum over blocks where the last one adds up what the others left
__device__ unsigned arrived;
K last_block(const int* x, int* part, int* y) {
    __shared__ int last;
    int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    v = __reduce_add_sync(0xffffffff, v);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = v;
        __threadfence();
        last = atomicAdd(&arrived, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        __threadfence();
        for (int b = 0; b < gridDim.x; ++b) sum += part[b];
        *y = sum;
        arrived = 0;
    }
}
K last_block_without_fence(const int* x, int* part, int* y) {
    __shared__ int last;
    int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    v = __reduce_add_sync(0xffffffff, v);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = v;
        last = atomicAdd(&arrived, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (int b = 0; b < gridDim.x; ++b) sum += part[b];
        *y = sum;
        arrived = 0;
    }
}

// lanes of a warp talk through shared memory
K warp_through_shared(const int* x, int* y) {
    __shared__ int s[32];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    int v = s[31 - threadIdx.x] + s[0];
    __syncwarp();
    s[threadIdx.x] = v;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
K warp_through_shared_without_sync(const int* x, int* y) {
    __shared__ int s[32];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    int v = s[31 - threadIdx.x] + s[0];
    s[threadIdx.x] = v;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}

// ends and does not end
K endless(volatile int* y) { while (*y == 0) { } }
__device__ __noinline__ int deep(int n, volatile int* y) {
    volatile int pad[16];
    pad[n & 15] = n;
    return n < 0 ? 0 : deep(n + 1, y) + pad[3];
}
K stack_overflow(int* y) { *y = deep(0, y); }
K trap(int* y) { if (threadIdx.x == 3) asm("trap;"); }
K assertion(int n) {

    if (threadIdx.x == n) __assertfail("x != n", "mutants.cu", 7, "assertion", 1);
}
K null_pointer(int* y) { y[0] = 1; }
