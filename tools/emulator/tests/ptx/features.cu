// Everything that is not arithmetic of one lane. make.py compiles it by several NVRTCs for every target they know; a
// kernel whose instructions a target has not is left out there.
#define K extern "C" __global__ void
#define ALL 0xffffffffu
typedef unsigned u32;
typedef unsigned long long u64;

K shuffles(u32* o) {
    u32 t = threadIdx.x, v = 100 + t;
    o[t] = __shfl_sync(ALL, v, 5);
    o[32 + t] = __shfl_sync(ALL, v, t + 3, 8);
    o[64 + t] = __shfl_up_sync(ALL, v, 3);
    o[96 + t] = __shfl_up_sync(ALL, v, 1, 4);
    o[128 + t] = __shfl_down_sync(ALL, v, 7);
    o[160 + t] = __shfl_down_sync(ALL, v, 2, 16);
    o[192 + t] = __shfl_xor_sync(ALL, v, 9);
    o[224 + t] = (u32)(__shfl_xor_sync(ALL, (u64)v << 40, 1, 2) >> 40);
}
K votes(u32* o) {
    u32 t = threadIdx.x;
    o[t] = __ballot_sync(ALL, t % 5 == 1);
    o[32 + t] = __any_sync(ALL, t == 7) * 2 + __all_sync(ALL, t != 7);
    o[64 + t] = __match_any_sync(ALL, t % 3);
    int p;
    o[96 + t] = __match_all_sync(ALL, 9, &p) + p;
    o[128 + t] = __match_all_sync(ALL, (u64)t << 33, &p) + p;
    // groups of eight, each with its own mask
    o[160 + t] = __shfl_xor_sync(0xffu << (t & 24), t, 4) + __ballot_sync(0xffu << (t & 24), t & 1);
}
#if __CUDA_ARCH__ >= 800
K reductions(u32* o) {
    u32 t = threadIdx.x;
    o[t] = __reduce_add_sync(ALL, t) ^ __reduce_min_sync(ALL, t + 3) ^ __reduce_max_sync(ALL, (int)t - 40);
    o[32 + t] = __reduce_and_sync(ALL, t | 64) + __reduce_or_sync(ALL, t) + __reduce_xor_sync(ALL, 1 << t);
    if (t < 11) o[64 + t] = __activemask(); else o[64 + t] = __reduce_add_sync(ALL << 11, 1);
}
#endif
#if __CUDA_ARCH__ >= 900
K elections(u32* o) {
    u32 lead, elected = 0;
    asm("{ .reg .pred p; elect.sync %0|p, 0xffffffff; selp.u32 %1, 1, 0, p; }" : "=r"(lead), "=r"(elected));
    o[threadIdx.x] = lead * 2 + elected;
}
#endif
K barriers(u32* o) {
    u32 t = threadIdx.x;
    o[t] = __syncthreads_count(t % 3 == 0);
    o[96 + t] = __syncthreads_and(t < 95) * 2 + __syncthreads_or(t == 95);
    // warp 0 waits for warp 1 alone, warp 2 goes by
    __shared__ u32 s[96];
    if (t < 32) {
        asm volatile("bar.sync 3, 64;" ::: "memory");
        o[192 + t] = s[32 + t];
    } else if (t < 64) {
        s[t] = t * t;
        asm volatile("bar.arrive 3, 64;" ::: "memory");
        o[192 + t] = 0;
    } else o[192 + t] = 1;
}
K diverge(u32* o, const u32* x, int n) {
    // a switch through a table, loops of different lengths, a nested break
    u32 t = threadIdx.x, v = 0;
    switch (x[t] % 8) {
        case 0: v = 3; break;
        case 1: v = x[t] * 5; break;
        case 2: v = x[(t + 1) % n] + 2; break;
        case 3: v = ~x[t]; break;
        case 4: for (u32 i = 0; i < x[t]; ++i) v += i * i; break;
        case 5: v = x[t] / 7; break;
        case 6: v = x[t] << 3; break;
        default: for (u32 i = 1;; ++i) { v = v * 3 + i; if (v > 1000 + t) break; }
    }
    o[t] = v;
    __syncwarp();
    o[n + t] = __popc(__activemask());
}
typedef u32 (*Fun)(u32);
__device__ __noinline__ u32 twice(u32 x) { return 2 * x; }
__device__ __noinline__ u32 square(u32 x) { return x * x; }
__device__ Fun table[2] = {twice, square};
__device__ __noinline__ u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
K calls(u32* o) { o[threadIdx.x] = table[threadIdx.x & 1](threadIdx.x + 1) + fibonacci(threadIdx.x % 10); }

__constant__ u32 constants[4] = {11, 22, 33, 44};
__device__ u32 counter = 5;
struct Many { u32 a; unsigned char b[3]; double c; float d[6]; };
K spaces(u32* o, Many m, int k) {
    extern __shared__ u32 dynamic[];
    __shared__ u32 fixed[64];
    u32 t = threadIdx.x, local[16];
    for (int i = 0; i < 16; ++i) local[i] = i * t;
    dynamic[t] = t + 1;
    fixed[t] = t + 2;
    u32* generic = t & 1 ? dynamic : fixed;
    u32* either = t % 3 ? generic + t : local + 3;
    __syncthreads();
    o[t] = *either + local[(t + k) & 15] + constants[(t + k) & 3] + m.a + m.b[t % 3] + (u32)m.c + (u32)m.d[t % 6];
    if (t == 0) counter += 1;
    o[64 + t] = __isShared(generic) * 8 + __isGlobal(o) * 4 + __isLocal(local) * 2 + __isShared(either);
}
K atomics(u32* a, u64* b, float* f, double* d, int* s) {
    u32 t = threadIdx.x;
    atomicAdd(a, t); atomicMax(a + 1, t); atomicMin(a + 2, t + 9); atomicOr(a + 3, 1u << (t & 31)); atomicAnd(a + 4, ~(1u << (t & 31)));
    atomicXor(a + 5, t); atomicInc(a + 6, 9); atomicDec(a + 7, 9);
    for (u32 old = atomicCAS(a + 8, t, t + 1); old != t; old = atomicCAS(a + 8, t, t + 1)) { }
    atomicAdd(b, (u64)t << 32); atomicMin(b + 1, (u64)t + 77); atomicMax((long long*)b + 2, -(long long)t);
    atomicAdd(f, 0.5f); atomicAdd(d, 0.25); atomicMin(s, -(int)t); atomicMax(s + 1, (int)t - 100);
    __shared__ u32 h[4];
    if (t < 4) h[t] = 0;
    __syncthreads();
    atomicAdd(h + t % 4, 1);
    __syncthreads();
    if (t < 4) a[9 + t] = h[t];
    a[16 + t] = atomicExch(a + 13, 1) & 1;
}
#if __CUDA_ARCH__ >= 800
// C = A B + C for 16x8x16 in bf16 through ldmatrix, and the same through cp.async
K matrix(const u32* a, const u32* b, float* c) {
    __shared__ __align__(16) unsigned short sa[16 * 16], sb[16 * 8];
    u32 t = threadIdx.x;
    u32 pa = (u32)__cvta_generic_to_shared(sa), pb = (u32)__cvta_generic_to_shared(sb);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(pa + 16 * t), "l"(a + 4 * t) : "memory");
    if (t < 16) asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(pb + 16 * t), "l"(b + 4 * t) : "memory");
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    u32 x[4], y[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(pa + 32 * (t % 16) + 16 * (t / 16)));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(y[0]), "=r"(y[1]) : "r"(pb + 16 * (t % 16)));
    float d[4] = {1, 2, 3, 4};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    for (int i = 0; i < 4; ++i) c[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" :: "r"(pb + 16 * (t % 8)), "r"(x[0]) : "memory");
#else
    __syncwarp();
    if (t == 0) for (int i = 0; i < 64; ++i) sb[i] = sa[16 * (i / 8) + i % 8];
#endif
    __syncwarp();
    c[128 + t] = (float)sb[t];
}
K copies_not_awaited(const u32* a, u32* o) {
    __shared__ __align__(16) u32 s[32];
    u32 t = threadIdx.x, p = (u32)__cvta_generic_to_shared(s);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\ncp.async.commit_group;" :: "r"(p + 4 * t), "l"(a + t) : "memory");
    __syncthreads();
    o[t] = s[t];
}
#endif
// all blocks meet twice: a barrier of the grid by hand, as cooperative groups have it
__device__ volatile u32 arrived;
K grid_barrier(u32* x, u32* y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    x[i] = i * 3;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd((u32*)&arrived, 1);
        while (arrived < gridDim.x) { }
        __threadfence();
    }
    __syncthreads();
    y[i] = x[n - 1 - i];
}
K dependents(u32* o) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    o[threadIdx.x] = o[threadIdx.x] + 1;
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
K clocks(u64* o) {
    u64 t, a = clock64();
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    __nanosleep(20);
    o[0] = t;
    o[1] = clock64() - a;
}
K bank_conflicts(u32* o, int stride) {
    __shared__ u32 s[1024];
    s[threadIdx.x * stride] = threadIdx.x;
    __syncwarp();
    o[threadIdx.x] = s[threadIdx.x * stride];
}
// what one compiler spells in one way and another in another: divisions, vectors, half precision, bit fields, unrolling
K mixture(const uint4* x, uint4* y, const double* a, double* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 v = __ldg(x + i);
    u32 q = v.x / 7 + v.y % (v.z | 1), s = (u32)((int)v.x / ((int)v.w | 1));
    u64 wide = (u64)v.x * v.y + ((u64)v.z << 32 | v.w), high = __umul64hi(wide, wide);
    unsigned short h;
    float f = __uint2float_rn(v.x) * 0x1p-20f, r = __fdiv_rn(f, 3.0f), e;
    asm("{ .reg .b16 t; cvt.rn.f16.f32 t, %1; mov.b16 %0, t; }" : "=h"(h) : "f"(f));
    asm("cvt.f32.f16 %0, %1;" : "=f"(e) : "h"(h));
    signed char c = (signed char)(v.y >> 3);
    y[i] = make_uint4(q ^ s, (u32)high ^ __brev(v.y), __float_as_uint(fmaf(r, e, sqrtf(f))) + __clz(v.z) + __ffs(v.w),
        __byte_perm(v.x, v.y, 0x5410) ^ (u32)(c * 3) ^ __funnelshift_l(v.z, v.w, v.x));
    double d = a[i];
    b[i] = fma(d, d, 1.0 / d) + (double)(long long)d + (d < 0 ? ceil(d) : floor(d)) + (double)(float)d;
}
K hello(int x) { printf("x is %d, half is %.2f, name is %s, hex %08x\n", x, x / 2.0, "posenc", x); }
K far(float* x, u64 i) { x[i + threadIdx.x] = (float)threadIdx.x; }
K endless(volatile u32* y) { while (*y == 0) { } }
