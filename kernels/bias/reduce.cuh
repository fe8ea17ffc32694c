// Sums and maxima of a row in one fixed order, whatever the number of threads and the row's length.
//
// The keys of a chunk, 8192 of them from a multiple of 8192 on, are 1024 packs of eight. A pack is summed as a tree; pack
// p belongs to lane p % 256, which adds its packs in their order; the lanes are added as a tree, 128 apart first. Keys that
// are masked or not there add 0, so that a longer tensor, a causal mask or a window changes no bit. Chunks are put together
// in their order.
#pragma once
#include "common/exp.cuh"

constexpr int CHUNK = 8192;
// Packs of a chunk that a thread takes, one after another. Loops over them are not unrolled: what lies between two of them
// waits in shared memory, where a thread meets only what it wrote itself.
constexpr int PACKS = 4;

__device__ __forceinline__ float sum_pack(const float (&x)[8]) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

__device__ __forceinline__ float max_pack(const float (&x)[8]) {
    return fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    return x;
}

// The packs' sums of one thread, added one by one in their order.
template <int GROUP> struct LaneSum;

// THREADS threads work on a row: a warp, for rows of up to 1024 keys, or a block of 256.
// All threads of the group call these and get the result.
template <int THREADS> struct Group;

template <> struct LaneSum<32> {
    // Packs 32 apart belong to different lanes of the tree: 64 apart are added first.
    float even = 0.0f, odd = 0.0f;

    __device__ void add(int pack, float x) {
        if (pack % 2) {
            odd += x;
        } else {
            even += x;
        }
    }
};

template <> struct LaneSum<256> {
    float total = 0.0f;

    __device__ void add(int, float x) { total += x; }
};

template <> struct Group<32> {
    static constexpr int SIZE = 32;

    __device__ static unsigned lane() { return threadIdx.x % 32; }
    __device__ static unsigned number() { return threadIdx.x / 32; }
    __device__ float max(float x) { return warp_max(x); }
    __device__ float sum(const LaneSum<32>& x) { return warp_sum(x.even + x.odd); }
};

struct BlockSpace {
    float max[8];
    float sum[256];
};

template <> struct Group<256> {
    static constexpr int SIZE = 256;
    BlockSpace& space;

    __device__ static unsigned lane() { return threadIdx.x; }
    __device__ static unsigned number() { return 0; }

    __device__ float max(float x) {
        x = warp_max(x);
        if (threadIdx.x % 32 == 0) space.max[threadIdx.x / 32] = x;
        __syncthreads();
        return max_pack(space.max);
    }

    // A call of `max` or a barrier must lie between two calls: the space is used again.
    __device__ float sum(const LaneSum<256>& x) {
        space.sum[threadIdx.x] = x.total;
        __syncthreads();
        const float* own = space.sum + threadIdx.x % 32;
        float warp[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) warp[i] = own[32 * i];
        return warp_sum(((warp[0] + warp[4]) + (warp[2] + warp[6])) + ((warp[1] + warp[5]) + (warp[3] + warp[7])));
    }
};

// Eight floats for each pack of each thread, in two halves of 16 bytes so that a warp's accesses meet no bank twice.
template <int THREADS> struct Stage {
    float4* at;

    __device__ float4* slot(int pack) const { return at + pack * 2 * THREADS + Group<THREADS>::lane(); }

    __device__ void put(int pack, const float (&x)[8]) const {
        float4* to = slot(pack);
        to[0] = make_float4(x[0], x[1], x[2], x[3]);
        to[THREADS] = make_float4(x[4], x[5], x[6], x[7]);
    }

    __device__ void get(int pack, float (&x)[8]) const {
        const float4* from = slot(pack);
        float4 a = from[0], b = from[THREADS];
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }
};

// A sum with compensation: within 2^-23 of the sum of the sizes of its terms, however many they are.
struct Sum {
    float total = 0.0f;
    float rest = 0.0f;

    __device__ void add(float x) {
        float y = x - rest;
        float next = total + y;
        rest = (next - total) - y;
        total = next;
    }
};

// A part of a row: its largest logit, and the sum of exp(logit - largest).
struct Part {
    float max, sum;

    // Adds what comes next in the row. A part without keys changes nothing.
    __device__ void add(const Part& next) {
        if (next.sum == 0.0f) return;
        if (next.max > max) {
            sum = sum * exp_below_zero(max - next.max) + next.sum;
            max = next.max;
        } else {
            // Also where next holds NaN, which comes out in the sum.
            sum = sum + next.sum * exp_below_zero(next.max - max);
        }
    }
};
