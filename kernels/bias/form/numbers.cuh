// T5, KERPLE, Sandwich: a number for each distance; distances outside take the row's end.
#pragma once
#include "bias/form/state.cuh"

struct NumbersBias : BiasState {
    __device__ void start(const BiasArgs& args, const Row& row) {
        values = static_cast<const float*>(args.values) + static_cast<long long>(row.head) * args.count;
        left = values[0];
        right = values[args.count - 1];
    }

    // Eight distances from `from` on, if they lie all inside the row of numbers or all outside. No difference that is
    // used leaves 32 bits.
    __device__ bool neighbours(const BiasArgs& args, int from, float (&bias)[KEYS]) const {
        int last = args.first + (args.count - 1);
        if (from >= args.first && from <= last - (KEYS - 1)) {
            const float* at = values + (from - args.first);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = at[i];
            return true;
        }
        // A T5 bias has one value for most of a long row.
        if (from >= last || from <= args.first - (KEYS - 1)) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = from >= last ? right : left;
            return true;
        }
        return false;
    }

    __device__ void each(const BiasArgs& args, const Row&, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] = posenc_toeplitz(values, args.first, args.count, distance[i]);
    }

    // The first distance of the last pack of the past, and of the first one of the future.
    static __device__ int past(const BiasArgs& args) { return args.first - (KEYS - 1); }
    static __device__ int future(const BiasArgs& args) { return args.first + (args.count - 1); }
};
