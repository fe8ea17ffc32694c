// Timestep embedding:  x = wave(2 pi * (t + offset) * turns).
//
// x      [times, dim]
// t      [times] f32 or f64
// turns  [pairs] turns per unit of time, a sum of two f64
//
// One thread owns W pairs of one row, in f64 until the one rounding. Rows are few and short: the launch costs more than
// the arithmetic, also where f64 is slow.
//
// Bytes: every element is written once; 16 bytes a pair and up to 8 a row are read, from a cache after their first use.
#include "args.cuh"
#include "common/index.cuh"
#include "embed/turns.cuh"

template <int W> __device__ void waves(const TimestepArgs& args, double t, unsigned pair, float (&first)[W], float (&second)[W]) {
    const Turns* turns = static_cast<const Turns*>(args.turns) + pair;
    // A row of zeros by its bits: without a branch around every pair.
    int kept = args.padded && t == args.padding ? 0 : -1;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        double sin, cos;
        sincos_turns(t, turns[i], sin, cos);
        first[i] = __int_as_float(__float_as_int(to_float(args.cosine_first ? cos : sin)) & kept);
        second[i] = __int_as_float(__float_as_int(to_float(args.cosine_first ? sin : cos)) & kept);
    }
}

template <int W> __device__ void timestep(const TimestepArgs& args) {
    unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= args.times) return;
    wait_for_predecessor();
    double t = args.double_time ? static_cast<const double*>(args.t)[row] : static_cast<const float*>(args.t)[row];
    t += args.offset;
    T::Bits* x = static_cast<T::Bits*>(args.x) + row * static_cast<long long>(args.dim);
#pragma unroll 1
    for (unsigned pair = threadIdx.x * W; pair < args.pairs; pair += blockDim.x * W) {
        float first[W], second[W];
        waves<W>(args, t, pair, first, second);
        Pack<W> a = pack(first), b = pack(second);
        if (args.interleaved) merge(a, b);
        unsigned at = args.interleaved ? 2 * pair : pair;
        a.store(x + at);
        b.store(x + (args.interleaved ? at + W : pair + args.second));
    }
    // The last channel of an odd dim: one wave more, or a zero.
    if (args.rest && threadIdx.x == 0) {
        float first[1] = {0.0f}, second[1];
        if (args.rest == 1) waves<1>(args, t, args.pairs, first, second);
        pack(first).store(x + args.rest_channel);
    }
}

extern "C" __global__ void __launch_bounds__(128) ENTRY(timestep_wide)(const TimestepArgs args) { timestep<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(timestep_one)(const TimestepArgs args) { timestep<1>(args); }
