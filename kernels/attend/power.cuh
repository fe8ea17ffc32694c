// The exponential of a softmax, in base 2, and what is summed of it:
//
//     z = log2(e) * logit             the factor goes into scale, slopes and numbers before they meet the logit
//     m = rint(largest z of a chunk)
//     e = 2^(z - m) = 2^f * 2^(n - m)                     n = rint(z), f = z - n, both exact
//     p = e * 2^(m - M) / sum                             M the largest m of the row
//
// As m is an integer, e is made from z with no rounding before the polynomial, and chunks, blocks and the sink are put
// together by powers of two, without an exponential.
#pragma once
#include "common/exp.cuh"
#include "common/scalar.cuh"

// log2(e): its error is 0.23 * 2^-24 of it.
constexpr float LOG2E = 1.442695041f;
// 1.5 * 2^23: a sum with it is rounded to an integer, which is in its lowest bits.
constexpr float ROUND = 12582912.0f;
// An m below it in size is a number of ROUND - m with nothing lost.
constexpr float NEAR = 4194304.0f;
constexpr float LARGEST = 3.402823466e38f;

// 2^f for |f| <= 1/2, 1 at 0, by every float of it that is a multiple of 2^-24. f32: degree 6, within 8.5e-8 of itself;
// half types: degree 5, within 1.8e-7, and an instruction less.
template <class E = T> __device__ __forceinline__ float exp2_part(float f) {
    if constexpr (sizeof(typename E::Bits) == 4) return fmaf(exp2_slope(f), f, 1.0f);
    float g = 0.0013264727f;
    g = fmaf(g, f, 0.009671513f);
    g = fmaf(g, f, 0.055507336f);
    g = fmaf(g, f, 0.24022242f);
    g = fmaf(g, f, 0.693147f);
    return fmaf(g, f, 1.0f);
}

// 2^d for an integer d <= 0; 0 from -127 on.
__device__ __forceinline__ float power_of(float d) {
    return __int_as_float((static_cast<int>(fmaxf(d, -127.0f)) + 127) << 23);
}

// The exponentials of a chunk.
struct Powers {
    float base, shift, floor;

    __device__ explicit Powers(float m)
        : base(fabsf(m) < NEAR ? 0.0f : m), shift(ROUND - (m - base)), floor(m - base - 127.0f) {}

    // For an m that is below NEAR in size.
    static __device__ Powers near(float m) {
        Powers powers(0.0f);
        powers.shift = ROUND - m, powers.floor = m - 127.0f;
        return powers;
    }

    // 2^(z - m), 0 from 2^-127 on; below 2^-126 it is any number from 0 to 2^-126. The power of two is an integer that
    // is added to the exponent. z of a row whose `base` is not 0 comes without it.
    __device__ float of(float z) const {
        z = fmaxf(z, floor);
        float shifted = z + shift;
        return __int_as_float(__float_as_int(exp2_part(z - (shifted - shift))) + (__float_as_int(shifted) << 23));
    }
};

// A part of a row: its m, and the sum of 2^(z - m). Without keys both are 0; with NaN or inf the sum is NaN.
struct Part {
    float max, sum;

    // Adds what comes next in the row.
    __device__ void add(const Part& next) {
        if (next.sum == 0.0f) return;
        if (sum == 0.0f) max = next.max;
        float m = fmaxf(max, next.max);
        sum = sum * power_of(max - m) + next.sum * power_of(next.max - m);
        max = m;
    }

    // ln(2^max * sum), which is the sink itself of a row with nothing else.
    __device__ float log(float sink) const;
};

// The part of a sink: one key more, without a place in the row.
__device__ __forceinline__ Part part_of_sink(float sink) {
    if (sink == -infinity()) return {0.0f, 0.0f};
    float z = fmaxf(sink * LOG2E, -LARGEST);
    float m = rintf(z);
    return {m, exp2_part(z - m)};
}

__device__ __forceinline__ float Part::log(float sink) const {
    Part own = part_of_sink(sink);
    if (max == own.max && sum == own.sum) return sink;
    return fmaf(max, 0.693145752f, fmaf(max, 1.42860677e-6f, log_normal(sum)));
}

// The probabilities of a chunk from its exponentials.
struct Shares {
    float power, inverse, sum;

    // A chunk without keys has any m.
    __device__ Shares(const Part& row, float max)
        : power(power_of(fminf(max - row.max, 0.0f))), inverse(row.sum == 0.0f ? 0.0f : 1.0f / row.sum), sum(row.sum) {
        if constexpr (sizeof(T::Bits) != 4) inverse *= power;
    }

    // Of a row of one chunk without a sink.
    __device__ explicit Shares(float sum) : power(1.0f), inverse(1.0f / sum), sum(sum) {}

    // f32: the quotient, so that one key alone has a probability of 1. A half type rounds to that anyway.
    __device__ float of(float e) const {
        if constexpr (sizeof(T::Bits) != 4) return e * inverse;
        e *= power;
        float p = e * inverse;
        return fmaf(fmaf(-sum, p, e), inverse, p);
    }
};
