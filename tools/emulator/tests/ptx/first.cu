// Kernels of the first end-to-end test; first.sm_XX.ptx are made of it by NVRTC 12.9 with --fmad=false.
#if __CUDA_ARCH__ >= 800
__device__ unsigned pack_bf16(float lo, float hi) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
#else
__device__ unsigned bf16(float x) {
    unsigned u = __float_as_uint(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
__device__ unsigned pack_bf16(float lo, float hi) { return bf16(lo) | bf16(hi) << 16; }
#endif
__device__ float lo(unsigned v) { return __uint_as_float(v << 16); }
__device__ float hi(unsigned v) { return __uint_as_float(v & 0xffff0000u); }

// y = a x for bf16, eight at a time, and the phase p * rate mod 2^64
extern "C" __global__ void scale(const uint4* __restrict__ x, uint4* y, unsigned long long* phase, float a,
                                 unsigned long long rate, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 v = x[i];
    unsigned* p = &v.x;
    v.x = pack_bf16(lo(v.x) * a, hi(v.x) * a);
    v.y = pack_bf16(lo(v.y) * a, hi(v.y) * a);
    v.z = pack_bf16(lo(v.z) * a, hi(v.z) * a);
    v.w = pack_bf16(lo(v.w) * a, hi(v.w) * a);
    y[i] = v;
    phase[i] = (unsigned long long)(unsigned)i * rate;
}

// sum of each block by shuffles and shared memory
extern "C" __global__ void block_sum(const float* x, float* out, int n) {
    __shared__ float part[32];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffff, v, d);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
        for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffff, v, d);
        if (threadIdx.x == 0) out[blockIdx.x] = v;
    }
}

__device__ __noinline__ unsigned collatz(unsigned n) {
    unsigned steps = 0;
    while (n != 1) { n = n & 1 ? 3 * n + 1 : n / 2; ++steps; }
    return steps;
}

extern "C" __global__ void steps(unsigned* out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = collatz(i + 1);
}

extern "C" __global__ void count(unsigned* counter, unsigned* ballots) {
    unsigned b = __ballot_sync(0xffffffff, threadIdx.x % 3 == 0);
    if (threadIdx.x % 32 == 0) ballots[threadIdx.x / 32] = b;
    atomicAdd(counter, threadIdx.x);
}
