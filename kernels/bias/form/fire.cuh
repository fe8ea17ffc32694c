// FIRE: a network of the normalised distance, as straight lines.
#pragma once
#include "bias/form/state.cuh"

struct FireBias : BiasState {
    __device__ void start(const BiasArgs& args, const Row& row) {
        values = static_cast<const float*>(args.values);
        factor = posenc_fire_factor(values, args.count, args.least_norm, args.eps, row.at);
    }

    __device__ void each(const BiasArgs& args, const Row& row, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
        long long line = static_cast<long long>(row.head) * (args.break_count + 1);
        const float* slopes = static_cast<const float*>(args.more) + line;
        const float* intercepts = static_cast<const float*>(args.intercepts) + line;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            float x = posenc_fire_input(values, args.count, factor, distance[i]);
            bias[i] = posenc_fire(static_cast<const float*>(args.breaks), args.break_count, slopes, intercepts, x);
        }
    }
};
