// Sums and maxima of a row in one fixed order, whatever the number of threads and the row's length.
//
// The keys of a chunk, 8192 of them from a multiple of 8192 on, are 1024 packs of eight. A pack is summed as a tree; pack
// p belongs to lane p % 256, which adds its packs in their order; the lanes are added as a tree, 128 apart first. Keys that
// are masked or not there add 0, so that a longer tensor, a causal mask or a window changes no bit. Chunks are put together
// in their order.
#pragma once
#include "common/exp.cuh"

constexpr int CHUNK = 8192;

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

// GROUP threads work on a row: a warp, for rows of up to 1024 keys, or a block of 256 or 512.
// All threads of the group call these and get the result.
template <int GROUP> struct Group;

template <> struct Group<32> {
    // 4 packs a lane: 32 apart they belong to different lanes of the tree.
    static constexpr int PACKS = 4;

    __device__ static unsigned lane() { return threadIdx.x % 32; }

    __device__ float max(float x) { return warp_max(x); }

    // The sum of every thread's packs, given one by one.
    __device__ float sum(const float (&pack)[PACKS]) { return warp_sum((pack[0] + pack[2]) + (pack[1] + pack[3])); }
};

struct BlockSpace {
    float max[8];
    float sum[256];
};

template <> struct Group<256> {
    static constexpr int PACKS = 4;
    BlockSpace& space;

    __device__ static unsigned lane() { return threadIdx.x; }

    __device__ float max(float x) {
        x = warp_max(x);
        if (threadIdx.x % 32 == 0) space.max[threadIdx.x / 32] = x;
        __syncthreads();
        return max_pack(space.max);
    }

    // A call of `max` or a barrier must lie between two calls: the space is used again.
    __device__ float sum(const float (&pack)[PACKS]) {
        space.sum[threadIdx.x] = ((pack[0] + pack[1]) + pack[2]) + pack[3];
        __syncthreads();
        const float* own = space.sum + threadIdx.x % 32;
        float warp[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) warp[i] = own[32 * i];
        return warp_sum(((warp[0] + warp[4]) + (warp[2] + warp[6])) + ((warp[1] + warp[5]) + (warp[3] + warp[7])));
    }
};

struct WideSpace {
    float max[16];
    float pack[1024];
    float sum[256];
};

template <> struct Group<512> {
    static constexpr int PACKS = 2;
    WideSpace& space;

    __device__ static unsigned lane() { return threadIdx.x; }

    __device__ float max(float x) {
        x = warp_max(x);
        if (threadIdx.x % 32 == 0) space.max[threadIdx.x / 32] = x;
        __syncthreads();
        float y = space.max[0];
#pragma unroll
        for (int i = 1; i < 16; ++i) y = fmaxf(y, space.max[i]);
        return y;
    }

    // Half of the threads put together what 256 threads hold in registers. As above for the space.
    __device__ float sum(const float (&pack)[PACKS]) {
        space.pack[threadIdx.x] = pack[0];
        space.pack[threadIdx.x + 512] = pack[1];
        __syncthreads();
        const float* four = space.pack + threadIdx.x % 256;
        if (threadIdx.x < 256) space.sum[threadIdx.x] = ((four[0] + four[256]) + four[512]) + four[768];
        __syncthreads();
        const float* own = space.sum + threadIdx.x % 32;
        float warp[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) warp[i] = own[32 * i];
        return warp_sum(((warp[0] + warp[4]) + (warp[2] + warp[6])) + ((warp[1] + warp[5]) + (warp[3] + warp[7])));
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
