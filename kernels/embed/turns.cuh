// Sine and cosine of t * turns, in f64 with the product to 106 bits, and the one rounding to the element type.
#pragma once

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
    double z = x * x;
    // Taylor's series to x^15 and x^16 on an eighth of a turn to each side: what is left out is below 6e-17.
    double s = fma(z, -1.0 / 1307674368000.0, 1.0 / 6227020800.0);
    s = fma(z, s, -1.0 / 39916800.0);
    s = fma(z, s, 1.0 / 362880.0);
    s = fma(z, s, -1.0 / 5040.0);
    s = fma(z, s, 1.0 / 120.0);
    s = fma(z, s, -1.0 / 6.0);
    s = fma(x * z, s, x);
    double c = fma(z, 1.0 / 20922789888000.0, -1.0 / 87178291200.0);
    c = fma(z, c, 1.0 / 479001600.0);
    c = fma(z, c, -1.0 / 3628800.0);
    c = fma(z, c, 1.0 / 40320.0);
    c = fma(z, c, -1.0 / 720.0);
    c = fma(z, c, 1.0 / 24.0);
    c = fma(z, c, -0.5);
    c = fma(z, c, 1.0);
    // Quadrant 0: (s, c), 1: (c, -s), 2: (-s, -c), 3: (-c, s).
    int quadrant = static_cast<int>(static_cast<long long>(quarters)) & 3;
    bool swap = quadrant & 1;
    sin = swap ? c : s;
    cos = swap ? s : c;
    sin = quadrant & 2 ? -sin : sin;
    cos = (quadrant + 1) & 2 ? -cos : cos;
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
