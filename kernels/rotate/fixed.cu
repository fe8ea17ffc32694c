// Real numbers as fixed point, before a rotation: rates of frequencies, units of positions.
#include "common/index.cuh"

// 2^-bits, for less than 1023 of them.
__device__ double unit(unsigned bits) { return __longlong_as_double(static_cast<long long>(1023 - bits) << 52); }

// Rates of frequencies in f32: frequency / 2 pi * 2^(64 - bits) modulo 2^64, within a unit. One thread makes one.
//
// frequencies  [axes, sets, pairs]
// bits         [axes] fraction bits of positions, or null
// flag         set to 1 by a frequency that is not below 2^40 in magnitude, whose rate is 0
extern "C" __global__ void __launch_bounds__(256) KERNEL(mixed_rates) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.count) return;
    wait_for_predecessor();
    float frequency = static_cast<const float*>(args.frequencies)[i];
    double f = fabsf(frequency);
    if (!(f < 0x1p40)) {
        f = 0.0;
        if (args.flag) atomicOr(static_cast<unsigned*>(args.flag), 1u);
    }
    if (args.bits) f *= unit(static_cast<const unsigned*>(args.bits)[divide(i, args.by_axis)]);
    // By 1 / (2 pi) in 106 bits.
    double turns = f * 0x1.45f306dc9c883p-3;
    double rest = fma(f, 0x1.45f306dc9c883p-3, -turns) + f * -0x1.6b01ec5417056p-57;
    double scaled = (turns - floor(turns)) * 0x1p64, whole = floor(scaled);
    unsigned long long rate = __double2ull_rz(whole) + __double2ll_rn((scaled - whole) + rest * 0x1p64);
    static_cast<unsigned long long*>(args.rates)[i] = frequency < 0.0f ? 0 - rate : rate;
}

// Units of positions: position * 2^bits, rounded to the nearest, ties to even. One thread makes one.
//
// positions  [count] f32 or f64
// flag       set to 1 by a position that is not finite or does not fit into 64 bits, whose units are 0
extern "C" __global__ void __launch_bounds__(256) KERNEL(position_units) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.count) return;
    wait_for_predecessor();
    double position =
        args.is_f64 ? static_cast<const double*>(args.positions)[i] : static_cast<const float*>(args.positions)[i];
    double units = position / unit(args.bits);
    bool fits = -0x1p63 <= units && units < 0x1p63;
    if (!fits && args.flag) atomicOr(static_cast<unsigned*>(args.flag), 1u);
    static_cast<long long*>(args.units)[i] = fits ? __double2ll_rn(units) : 0;
}
