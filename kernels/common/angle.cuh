// Exact angles: a rate is a 64-bit fraction of a turn per position, so a phase is one wrapping multiplication.
#pragma once

// x, negated if the top bit of `sign` is set: x ^ (sign & 0x80000000), in one instruction without a move to integers.
__device__ inline float with_sign(float x, unsigned sign) {
    float y;
    asm("lop3.b32 %0, %1, %2, 0x80000000, 0x6c;" : "=f"(y) : "r"(sign), "f"(x));
    return y;
}

// The pair (a, b) turned by an angle: the rotation of every kernel, with these roundings.
__device__ __forceinline__ void turn_pair(float a, float b, float sin, float cos, float& a_out, float& b_out) {
    a_out = fmaf(a, cos, -(b * sin));
    b_out = fmaf(a, sin, b * cos);
}

// Cosine and sine of a phase in units of 2^-64 turn, within 9e-8 at every phase.
//
// The top 32 bits are split into a quadrant and an offset of at most an eighth of a turn to each side. There two fixed
// polynomials (least-squares fits in f64, rounded to the f32 neighbours of least worst error) take over; measured over
// every seventh phase: sine 8.5e-8, cosine 7.0e-8, of which up to 2.4e-8 is the offset's rounding to 24 bits and 3e-8
// the result's. Only fused multiply-adds, so every device computes the same bits.
__device__ inline void sincos_phase(unsigned long long phase, float& sin, float& cos) {
    unsigned high = static_cast<unsigned>(phase >> 32);
    // The offset is the lower 30 bits with their sign: shifted to the top, four times as much.
    float x = static_cast<float>(static_cast<int>(high << 2)) * 0x1p-31f;
    float z = x * x;
    float s = fmaf(z, -0x1.2cf654p-15f, 0x1.465a9ep-9f);
    s = fmaf(z, s, -0x1.4abba2p-4f);
    s = fmaf(z, s, 0x1.921fb4p-1f);
    s = x * s;
    float c = fmaf(z, 0x1.d9f9bcp-19f, -0x1.55c654p-12f);
    c = fmaf(z, c, 0x1.03c1d4p-6f);
    c = fmaf(z, c, -0x1.3bd3ccp-2f);
    c = fmaf(z, c, 1.0f);
    // Quadrant 0: (s, c), 1: (c, -s), 2: (-s, -c), 3: (-c, s). Its two bits are the top ones of `turn`.
    unsigned turn = high + 0x20000000u;
    bool swap = turn & 0x40000000u;
    sin = with_sign(swap ? c : s, turn);
    cos = with_sign(swap ? s : c, turn + 0x40000000u);
}

// Sine and cosine of x radians and `quarters` quarter turns, in f64; x lies within an eighth of a turn to each side,
// where the Taylor polynomials of degree 15 and 16 are off by 6e-17.
__device__ inline void sincos_quarter(double x, long long quarters, double& sin, double& cos) {
    double z = x * x;
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
    unsigned quadrant = static_cast<unsigned>(quarters);
    bool swap = quadrant & 1u;
    sin = swap ? c : s;
    cos = swap ? s : c;
    sin = quadrant & 2u ? -sin : sin;
    cos = (quadrant + 1u) & 2u ? -cos : cos;
}

// Cosine and sine of an angle in radians below 2^31, the nearest f32 but for one in about 10^8, where it is the second.
//
// In f64: the nearest multiple of pi/2 is taken off in two fused steps, of pi/2 in 106 bits, so that small remainders
// keep their relative accuracy.
__device__ inline void sincos_radians(float radians, float& sin, float& cos) {
    double x = radians;
    double n = rint(x * 0x1.45f306dc9c883p-1);
    x = fma(n, -0x1.921fb54442d18p+0, x);
    x = fma(n, -0x1.1a62633145c07p-54, x);
    double s, c;
    sincos_quarter(x, static_cast<long long>(n), s, c);
    sin = static_cast<float>(s);
    cos = static_cast<float>(c);
}
