// FIRE: a network of the normalised distance, as straight lines.
#pragma once
#include "bias/form/state.cuh"
#include "common/exp.cuh"

struct FireBias : BiasState {
    __device__ void start(const BiasArgs& args, const Row& row) {
        values = static_cast<const float*>(args.values);
        factor = posenc_fire_factor(values, args.count, args.least_norm, args.eps, row.at);
    }

    // Where the slopes and the intercepts of the row's head begin.
    static __device__ long long lines(const BiasArgs& args, const Row& row) {
        return static_cast<long long>(row.head) * (args.break_count + 1);
    }

    __device__ void each(const BiasArgs& args, const Row& row, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
        const float* slopes = static_cast<const float*>(args.more) + lines(args, row);
        const float* intercepts = static_cast<const float*>(args.intercepts) + lines(args, row);
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            float x = posenc_fire_input(values, args.count, factor, distance[i]);
            bias[i] = posenc_fire(static_cast<const float*>(args.breaks), args.break_count, slopes, intercepts, x);
        }
    }

    // The same for kernels with registers to spare.
    __device__ void each_in_turn(const BiasArgs& args, const Row& row, const int (&distance)[KEYS],
                                 float (&bias)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] = posenc_fire_input(values, args.count, factor, distance[i]);
        in_turn(args, row, bias);
    }

    // Inputs become biases: a line is looked for where the one of the key before ends.
    static __device__ void in_turn(const BiasArgs& args, const Row& row, float (&bias)[KEYS]) {
        const float* slopes = static_cast<const float*>(args.more) + lines(args, row);
        const float* intercepts = static_cast<const float*>(args.intercepts) + lines(args, row);
        const float* breaks = static_cast<const float*>(args.breaks);
        float begin = 0.0f, end = 0.0f, slope, intercept;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            if (i == 0 || bias[i] < begin || !(bias[i] < end)) {
                unsigned own = posenc_fire_line(breaks, args.break_count, bias[i]);
                begin = own > 0 ? breaks[own - 1] : -infinity();
                end = own < args.break_count ? breaks[own] : infinity();
                slope = slopes[own];
                intercept = intercepts[own];
            }
            bias[i] = slope * bias[i] + intercept;
        }
    }
};
