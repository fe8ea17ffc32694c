// ALiBi: a slope for each side of the query.
#pragma once
#include "bias/form/state.cuh"
#include "common/scalar.cuh"

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

    // The biases times `factor` of eight keys that follow one another, as a softmax adds them: a fused multiply-add to
    // that of the first key of its 16 bytes. A key of the future takes the slope of the future.
    __device__ void weighted(int from, float factor, float (&bias)[KEYS]) const {
        float past = left * factor, future = -right * factor;
#pragma unroll
        for (int first = 0; first < KEYS; first += WIDE) {
            float start = static_cast<float>(from + first);
#pragma unroll
            for (int i = 0; i < WIDE; ++i) {
                float slope = from + first + i > 0 ? future : past;
                bias[first + i] = along(slope, i, start);
            }
        }
        if (!masks_a_side(factor)) return;
        // An infinite slope masks its side, and is of no effect at the query's own position.
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            bool own = from + i == 0, behind = from + i > 0;
            float slope = behind ? future : past;
            if (!(fabsf(slope) < infinity())) bias[i] = own ? 0.0f : slope * static_cast<float>(from + i);
        }
    }

    // The bias of the i-th of the keys whose first has this distance.
    static __device__ float along(float slope, int i, float start) {
        return fmaf(slope, static_cast<float>(i), slope * start);
    }

    __device__ bool masks_a_side(float factor) const {
        return !(fabsf(left * factor) < infinity() && fabsf(right * factor) < infinity());
    }

    // The first distance of the last pack of the past, and of the first one of the future.
    static __device__ int past(const BiasArgs&) { return -KEYS; }
    static __device__ int future(const BiasArgs&) { return 1; }
};
