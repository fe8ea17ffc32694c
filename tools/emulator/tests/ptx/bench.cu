// Kernels of the throughput benchmark; bench.ptx is made of this by NVRTC 12.9 for sm_80 with --fmad=false.
__device__ __forceinline__ unsigned pack(float lo, float hi) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
__device__ __forceinline__ float lo(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float hi(unsigned v) { return __uint_as_float(v & 0xffff0000u); }

// A rotation as rotary embeddings have it: 64-bit phases, sine and cosine by polynomials, bf16 in and out, 16 bytes a time.
extern "C" __global__ void rotate(const uint4* x, uint4* y, const unsigned long long* rates, int tokens, int heads) {
    int lane = threadIdx.x % 8, token = blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;
    if (token >= tokens) return;
    float c[8], s[8];
    for (int i = 0; i < 8; ++i) {
        unsigned long long phase = rates[lane * 8 + i] * (unsigned long long)token;
        unsigned top = (unsigned)(phase >> 32);
        unsigned q = (top + 0x20000000u) >> 30;
        float t = (float)(int)(top - (q << 30)) * 0x1p-32f;
        float u = t * t;
        float sn = fmaf(fmaf(fmaf(fmaf(-76.70586f, u, 81.60524f), u, -41.341702f), u, 6.2831853f), t, 0.0f);
        float cs = fmaf(fmaf(fmaf(fmaf(60.244641f, u, -85.456817f), u, 64.939394f), u, -19.739209f), u, 1.0f);
        float a = q & 1 ? cs : sn, b = q & 1 ? sn : cs;
        s[i] = q & 2 ? -a : a;
        c[i] = (q + 1) & 2 ? -b : b;
    }
    for (int h = 0; h < heads; ++h) {
        const uint4* row = x + ((long long)token * heads + h) * 16;
        uint4* out = y + ((long long)token * heads + h) * 16;
        uint4 p = row[lane], r = row[lane + 8];
        unsigned* a = &p.x;
        unsigned* b = &r.x;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x0 = lo(a[i]), x1 = hi(a[i]), y0 = lo(b[i]), y1 = hi(b[i]);
            a[i] = pack(fmaf(x0, c[2 * i], -(y0 * s[2 * i])), fmaf(x1, c[2 * i + 1], -(y1 * s[2 * i + 1])));
            b[i] = pack(fmaf(y0, c[2 * i], x0 * s[2 * i]), fmaf(y1, c[2 * i + 1], x1 * s[2 * i + 1]));
        }
        out[lane] = p;
        out[lane + 8] = r;
    }
}

// A softmax over rows with a slope, as attention with linear biases has it: shuffles, shared memory, exponentials.
extern "C" __global__ void softmax(const float* x, float* y, float slope, int n) {
    __shared__ float part[32];
    const float* row = x + (long long)blockIdx.x * n;
    float top = -3.0e38f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) top = fmaxf(top, fmaf(slope, (float)i, row[i]));
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, d));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = top;
    __syncthreads();
    top = part[0];
    for (int w = 1; w < blockDim.x / 32; ++w) top = fmaxf(top, part[w]);
    __syncthreads();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float e = exp2f(1.44269504f * (fmaf(slope, (float)i, row[i]) - top));
        sum += e;
        y[(long long)blockIdx.x * n + i] = e;
    }
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffff, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < blockDim.x / 32; ++w) sum += part[w];
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[(long long)blockIdx.x * n + i] /= sum;
}

// One element a thread, scalar accesses: the worst mix for the checks.
extern "C" __global__ void add_one(const unsigned short* x, unsigned short* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + 1;
}
