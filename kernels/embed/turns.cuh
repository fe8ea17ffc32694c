// Sine and cosine of t * turns, in f64 with the product to 106 bits, and the one rounding to the element type.
#pragma once

#include "common/scalar.cuh"

struct alignas(16) Turns {
    double high, low;
};

// A float that rounds to the same T as x does: the nearest one for f32, else of the two next to x the one with an odd
// last bit, so that the second rounding sees no false tie.
template <bool POSITIVE, class E = T> __device__ float to_float(double x) {
    if constexpr (sizeof(typename E::Bits) == 4) {
        return __double2float_rn(x);
    } else {
        float down = __double2float_rd(POSITIVE ? x : fabs(x)), up = __double2float_ru(POSITIVE ? x : fabs(x));
        float odd;
        // down | (down ^ up) & 1, and the sign of x.
        asm("lop3.b32 %0, %1, %2, 1, 0xf8;" : "=f"(odd) : "f"(down), "f"(up));
        if (!POSITIVE) asm("lop3.b32 %0, %1, %2, 0x80000000, 0xf8;" : "=f"(odd) : "f"(odd), "r"(__double2hiint(x)));
        return odd;
    }
}

// The angle t * turns as quarter turns and a rest of at most an eighth of a turn to each side, with the rest's sine and
// cosine.
struct Angle {
    float sin, cos;
    unsigned quarters;

    Angle() = default;
    // Relative accuracy 2^-50, at the zeros of both waves too: the product's error term is kept and whole quarters are
    // taken off exactly. NaN where the product leaves 2^48 turns or t is not finite.
    __device__ Angle(double t, Turns turns) {
        constexpr double WHOLE = 6755399441055744.0;
        double product = t * turns.high;
        double rest = fma(t, turns.low, fma(t, turns.high, -product));
        // 1.5 * 2^52 leaves no place for a fraction; the integer stands in the last bits.
        double whole = fma(product, 4.0, WHOLE);
        quarters = static_cast<unsigned>(__double2loint(whole));
        // Both are multiples of the product's last bit and within an eighth of each other: exact.
        double x = fma(whole - WHOLE, -0.25, product) + rest;
        x = fabs(product) < 281474976710656.0 ? x : __longlong_as_double(0x7ff8000000000000ll);
        // Least worst error, fitted in 200 bits and rounded: sine 2^-54.4 (of 2 pi itself), cosine 2^-53.5.
        double z = x * x;
        double s = fma(z, 0x1.e3ff27402c34p+1, -0x1.e3009895d84e2p+3);
        s = fma(z, s, 0x1.5078300c4050bp+5);
        s = fma(z, s, -0x1.32d2cce324115p+6);
        s = fma(z, s, 0x1.466bc67758cb2p+6);
        s = fma(z, s, -0x1.4abbce625be46p+5);
        s = fma(z, s, 0x1.921fb54442d18p+2);
        double c = fma(z, 0x1.f3dcef19792f5p+2, -0x1.a6c9ca4f0dd44p+4);
        c = fma(z, c, 0x1.e1f4fb844259fp+5);
        c = fma(z, c, -0x1.55d3c7dc3ddbep+6);
        c = fma(z, c, 0x1.03c1f081b0e28p+6);
        c = fma(z, c, -0x1.3bd3cc9be459dp+4);
        c = fma(z, c, 1.0);
        sin = to_float<false>(x * s);
        cos = to_float<true>(c);
    }

    // The sine of the angle and `ahead` quarter turns: 1 makes it the cosine.
    __device__ float wave(unsigned ahead) const {
        unsigned quadrant = quarters + ahead;
        // Quadrant 0: sin, 1: cos, 2: -sin, 3: -cos.
        float wave = quadrant & 1u ? cos : sin;
        asm("lop3.b32 %0, %1, %2, 0x80000000, 0x78;" : "=f"(wave) : "f"(wave), "r"(quadrant << 30));
        return wave;
    }
};

// W values that come two at a time, so that one loop's code makes all: a push moves those before it forward.
template <int W, class E = T> struct Pushed {
    static constexpr int N = W * sizeof(typename E::Bits) / 4, TWO = N * 2 / W;
    Words<W * sizeof(typename E::Bits)> words = {};

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
