// ALiBi: a slope for each side of the query.
#pragma once
#include "bias/form/state.cuh"

struct SlopesBias : BiasState {
    // Below 2^24 a float plus one is the next integer.
    static constexpr int EXACT = 1 << 24;

    __device__ void start(const BiasArgs& args, const Row& row) {
        long long index = row.batch * args.slopes_stride + row.head;
        left = static_cast<const float*>(args.values)[index];
        right = static_cast<const float*>(args.more)[index];
    }

    // Eight distances from `from` on, if they lie on one side of the query.
    __device__ bool neighbours(const BiasArgs&, int from, float (&bias)[KEYS]) const {
        bool before = from > -EXACT && from < 1 - KEYS;
        if (!before && (from <= 0 || from >= EXACT - KEYS)) return false;
        float slope = before ? left : -right;
        float distance = static_cast<float>(from);
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] = slope * (distance + static_cast<float>(i));
        return true;
    }

    __device__ void each(const BiasArgs&, const Row&, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] = posenc_alibi(left, right, distance[i]);
    }

    // The first distance of the last pack of the past, and of the first one of the future.
    static __device__ int past(const BiasArgs&) { return -KEYS; }
    static __device__ int future(const BiasArgs&) { return 1; }
};
