// exp, log and tanh of float through fixed polynomials with explicit fmaf: the same bits on every device.
//
// Coefficients by Remez; errors by trying every third float of the range against double.
#pragma once

// 1.5 * 2^23 + 127: added, it rounds to an integer n and leaves n + 127, the exponent of 2^n, in the lowest bits.
constexpr float EXP_SHIFT = 12583039.0f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// g with 2^f = 1 + f g, for |f| <= 1/2.
__device__ __forceinline__ float exp2_slope(float f) {
    float g = 0.00015594678f;
    g = fmaf(g, f, 0.0013406643f);
    g = fmaf(g, f, 0.009617693f);
    g = fmaf(g, f, 0.055503104f);
    g = fmaf(g, f, 0.24022652f);
    return fmaf(g, f, 0.69314724f);
}

// 2^e for e in units of 2^-56, -126 <= e <= 126, within 9.4e-8 of itself.
__device__ __forceinline__ float exp2_fixed(long long e) {
    long long n = (e + (1LL << 55)) >> 56;
    float f = static_cast<float>(static_cast<int>((e - (n << 56)) >> 24)) * 0x1p-32f;
    return fmaf(exp2_slope(f), f, 1.0f) * __int_as_float(static_cast<int>(n + 127) << 23);
}

// x = (n + f) ln 2 with |f| <= 1/2. Gives f, 2^n, and g with 2^f = 1 + f g.
__device__ __forceinline__ void split_exp(float x, float& f, float& power, float& g) {
    float shifted = fmaf(x, 1.442695041f, EXP_SHIFT);
    float n = shifted - EXP_SHIFT;
    f = fmaf(x, 1.442695041f, -n);
    // 1 / ln 2 beyond its first 24 bits
    f = fmaf(x, 1.925963033e-8f, f);
    g = exp2_slope(f);
    power = __int_as_float(__float_as_int(shifted) << 23);
}

// The larger of two, NaN if one is.
__device__ __forceinline__ float max_nan(float x, float y) {
    float most;
    asm("//sm_80+ max.NaN.f32 %0, %1, %2;\n"
        "//sm_80- {.reg .pred nan;\n"
        "//sm_80- max.f32 %0, %1, %2;\n"
        "//sm_80- setp.nan.f32 nan, %1, %2;\n"
        "//sm_80- selp.f32 %0, 0f7FFFFFFF, %0, nan;}"
        : "=&f"(most)
        : "f"(x), "f"(y));
    return most;
}

// exp(x) for x <= 0, within 1.02e-7 of itself; 1 at 0, 0 below -87.7 (e^-87.7 = 8.2e-39, below the normal range), NaN
// for NaN.
__device__ __forceinline__ float exp_below_zero(float x) {
    float f, power, g;
    // At -88 the power is 2^-127, whose bits are those of 0.
    split_exp(max_nan(x, -88.0f), f, power, g);
    return fmaf(g, f, 1.0f) * power;
}

// ln(x) for normal x, within 1.3e-7 of itself; NaN for NaN.
__device__ __forceinline__ float log_normal(float x) {
    // x = 2^n m with m in 0.75 .. 1.5
    int n = (__float_as_int(x) - 0x3f400000) >> 23;
    float r = __int_as_float(__float_as_int(x) - (n << 23)) - 1.0f;
    float q = 0.0515782f;
    q = fmaf(q, r, -0.1190643f);
    q = fmaf(q, r, 0.15043205f);
    q = fmaf(q, r, -0.16868359f);
    q = fmaf(q, r, 0.19974793f);
    q = fmaf(q, r, -0.24990138f);
    q = fmaf(q, r, 0.33333546f);
    q = fmaf(q, r, -0.50000125f);
    float e = static_cast<float>(n);
    // ln 2 = 0.693145752 + 1.42860677e-6, the first with so few bits that n times it is exact
    float low = fmaf(r * r, q, e * 1.42860677e-6f);
    float y = fmaf(e, 0.693145752f, r + low);
    return x != x ? x : y;
}

// tanh(x), within 3.5e-7 of itself, without a division: tanh |x| = -m / (2 + m) with m = exp(-2 |x|) - 1.
__device__ __forceinline__ float tanh_fixed(float x) {
    // From 20 on tanh is 1.
    float twice = fmaxf(-2.0f * fabsf(x), -40.0f);
    float f, power, g;
    split_exp(twice, f, power, g);
    float m = fmaf(power * f, g, power - 1.0f);
    float d = 2.0f + m;
    // 1 / d for d in 1 .. 2: a line within 1/17, and three steps that square the error
    float r = fmaf(d, -0.47058824f, 1.4117647f);
#pragma unroll
    for (int i = 0; i < 3; ++i) r = fmaf(r, fmaf(-d, r, 1.0f), r);
    float y = copysignf(-m * r, x);
    return x != x ? x : y;
}
