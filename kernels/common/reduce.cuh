// Sums and maxima of a row in one fixed order, whatever the number of threads and the row's length.
//
// The keys of a chunk, 8192 of them from a multiple of 8192 on, are 1024 packs of eight. A pack is summed as a tree,
// and so are the packs, 512 apart first, neighbours last. Keys that are masked or not there add 0, so that a longer
// tensor, a causal mask or a window changes no bit. Chunks are put together in their order.
#pragma once
#include "args.cuh"
#include "common/exp.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float sum_pack(const float (&x)[8]) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// The largest, NaN if one is.
template <int N> __device__ __forceinline__ float max_pack(const float (&x)[N]) {
    float most = x[0];
#pragma unroll
    for (int i = 1; i < N; ++i) most = max_nan(most, x[i]);
    return most;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

// Integers in the order of the floats, and back; NaN as `max_nan` gives it is the largest.
__device__ __forceinline__ int ordered(float x) {
    int bits = __float_as_int(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ __forceinline__ float from_ordered(int bits) { return __int_as_float(bits ^ (bits >> 31 & 0x7fffffff)); }

// The largest of a warp's.
__device__ __forceinline__ int warp_max(int x) {
    int y;
    asm volatile(
        "//sm_80+ redux.sync.max.s32 %0, %1, 0xffffffff;\n"
        "//sm_80- {.reg .b32 other; mov.b32 %0, %1;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %0, 16, 31, 0xffffffff; max.s32 %0, %0, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %0, 8, 31, 0xffffffff; max.s32 %0, %0, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %0, 4, 31, 0xffffffff; max.s32 %0, %0, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %0, 2, 31, 0xffffffff; max.s32 %0, %0, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %0, 1, 31, 0xffffffff; max.s32 %0, %0, other;}"
        : "=&r"(y)
        : "r"(x));
    return y;
}

struct BlockSpace {
    int max[8];
    float sum[256];
    float2 row;
};

// The threads of one row: 1 to 32 lanes of a warp, or a block of 64 to 256. A power of two. All threads of a block,
// those without a row too, call `max` and `sum` together, and all get their row's result.
//
// A thread holds up to eight packs of a chunk, `lanes` packs apart, and adds them as the upper branches of the tree.
struct Team {
    unsigned lanes, lane;
    BlockSpace& space;

    __device__ Team(unsigned lanes_log, BlockSpace& space)
        : lanes(1u << lanes_log), lane(threadIdx.x & ((1u << lanes_log) - 1)), space(space) {}

    // NaN if one is.
    __device__ float max(float x) const {
        int most = ordered(x);
        if (lanes < 32) {
            most = across(most, [](int a, int b) { return ::max(a, b); });
        } else {
            most = warp_max(most);
        }
        if (lanes > 32) {
            // A warp stands for those that are not there too.
            if (lane % 32 == 0) {
                for (unsigned warp = lane / 32; warp < 8; warp += lanes / 32) space.max[warp] = most;
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 8; ++i) most = ::max(most, space.max[i]);
        }
        return from_ordered(most);
    }

    // A call of `max` or a barrier must lie between two calls: the space is used again.
    __device__ float sum(float x) const {
        if (lanes > 32) {
            space.sum[lane] = x;
            for (unsigned i = lane + lanes; i < 256; i += lanes) space.sum[i] = 0.0f;
            __syncthreads();
            const float* own = space.sum + lane % 32;
            float warp[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) warp[i] = own[32 * i];
            x = sum_pack(warp);
        }
        return across(x, [](float a, float b) { return a + b; });
    }

private:
    // The lanes that are farthest apart first.
    template <class X, class Op> __device__ X across(X x, Op op) const {
        if (lanes >= 32) {
#pragma unroll
            for (int apart = 16; apart; apart /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, apart));
        } else {
#pragma unroll 1
            for (unsigned apart = lanes / 2; apart; apart /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, apart));
        }
        return x;
    }
};

// The sums of a thread's packs, one after another: the fifth is added to the first and so on, then the third to the
// first and the fourth to the second. The sums go round, so that a loop over packs need not be unrolled; and as a sum
// of two has the same bits either way round, packs without keys may be left out at both ends.
struct PackSum {
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    __device__ void add(float x) {
        x += a;
        a = b, b = c, c = d, d = x;
    }

    __device__ float total() const { return (a + c) + (b + d); }
};

// Which row a thread works on, and which of its chunks: all of them, or its block's part where `share` blocks share a
// row.
struct Place {
    unsigned row;
    // false: a thread beyond the last row, which works on the last one and writes nothing
    bool live;
    int first, end;

    __device__ explicit Place(TeamArgs team) : first(0), end(team.chunks) {
        unsigned group = blockIdx.x;
        if (team.share > 1) {
            group = blockIdx.x / team.share;
            unsigned each = (team.chunks + team.share - 1) / team.share;
            first = min((blockIdx.x - group * team.share) * each, team.chunks);
            end = min(first + each, team.chunks);
        }
        row = group * (blockDim.x >> team.lanes_log) + (threadIdx.x >> team.lanes_log);
        live = row < team.rows;
        if (!live) row = team.rows - 1;
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
