// Writes a bias over the rows of a tensor, or adds it: what it is, is a type parameter.
#pragma once
#include "bias/row.cuh"
#include "common/exp.cuh"
#include "common/keys.cuh"

// Adds eight logits: `raw` if they are whole, else the `count` ones from `at` on.
__device__ __forceinline__ void add_logits(const Pack<WIDE> (&raw)[KEYS / WIDE], const T::Bits* at, int count,
                                           bool whole, float (&value)[KEYS]) {
    float logit[KEYS];
    if (whole) {
#pragma unroll
        for (int i = 0; i < KEYS; i += WIDE) {
            float part[WIDE];
            unpack(raw[i / WIDE], part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) logit[i + j] = part[j];
        }
    } else {
        load_keys(at, count, false, 0.0f, logit);
    }
#pragma unroll
    for (int i = 0; i < KEYS; ++i) value[i] += logit[i];
}

template <class Bias, class... Terms>
__device__ __forceinline__ void apply(const ToeplitzArgs& args, const Terms&... terms) {
    unsigned index = blockIdx.x * blockDim.y + threadIdx.y;
    if (index >= args.rows) return;
    wait_for_predecessor();
    Row row(args.bias, index);
    Bias bias(args.bias, row, terms...);
    T::Bits* x = static_cast<T::Bits*>(args.x) + row.offset(args.strides);
    int keys = args.bias.keys;
    // 64 bits: the last step may leave 32.
    for (long long at = threadIdx.x * KEYS; at < keys; at += blockDim.x * KEYS) {
        int key = static_cast<int>(at);
        int count = min(KEYS, keys - key);
        // What is added to is on its way while the bias is made.
        bool whole = args.aligned && count == KEYS;
        Pack<WIDE> raw[KEYS / WIDE];
        if (args.add && whole) {
#pragma unroll
            for (int i = 0; i < KEYS; i += WIDE) raw[i / WIDE] = Pack<WIDE>::load(x + key + i);
        }
        float value[KEYS];
        bias.of(args.bias, row, key, count, value);
        if (args.bias.sequences) {
            // Packed sequences do not see each other.
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (key + i < row.first || key + i >= row.keys) value[i] = -infinity();
            }
        }
        if (args.add) add_logits(raw, x + key, count, whole, value);
        store_keys(x + key, count, whole, value);
    }
}
