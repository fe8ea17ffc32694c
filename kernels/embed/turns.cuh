// Sine and cosine of t * turns, in f64 with the product to 106 bits, and the one rounding to the element type.
#pragma once

#include "common/angle.cuh"
#include "common/scalar.cuh"

struct Turns {
    double high, low;
};

// Relative accuracy 2^-50, at the zeros of both waves too: the product's error term is kept and whole quarters are taken
// off exactly. NaN where the product leaves 2^48 turns or t is not finite.
__device__ inline void sincos_turns(double t, Turns turns, double& sin, double& cos) {
    double product = t * turns.high;
    double rest = fma(t, turns.low, fma(t, turns.high, -product));
    double quarters = rint(product * 4.0);
    // Both are multiples of the product's last bit and within an eighth of each other: exact.
    double x = (product - quarters * 0.25 + rest) * 6.283185307179586;
    x = fabs(product) < 281474976710656.0 ? x : __longlong_as_double(0x7ff8000000000000ll);
    sincos_quarter(x, static_cast<long long>(quarters), sin, cos);
}

// A float that rounds to the same T as x does: x itself for f32, else x with its last bit set if anything was cut off, so
// that the second rounding sees no false tie.
template <class E = T> __device__ float to_float(double x) {
    if constexpr (sizeof(typename E::Bits) == 4) {
        return __double2float_rn(x);
    } else {
        float cut = __double2float_rz(x);
        return static_cast<double>(cut) == x ? cut : __int_as_float(__float_as_int(cut) | 1);
    }
}

// W values that come two at a time, so that one loop's code makes all: a push moves those before it forward.
template <int W, class E = T> struct Pushed {
    static constexpr int N = W * sizeof(typename E::Bits) / 4, TWO = N * 2 / W;
    Words<W * sizeof(typename E::Bits)> words;

    __device__ void push(float a, float b) {
#pragma unroll
        for (int i = 0; i < N - TWO; ++i) words.word[i] = words.word[i + TWO];
        if constexpr (TWO == 2) {
            words.word[N - 2] = E::narrow(a);
            words.word[N - 1] = E::narrow(b);
        } else {
            words.word[N - 1] = E::narrow2(a, b);
        }
    }
    __device__ Pack<W> pack() const {
        Pack<W> pack;
        gather(words, pack.raw);
        return pack;
    }
};
