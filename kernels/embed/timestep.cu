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

__device__ inline void wave(const TimestepArgs& args, double t, unsigned pair, float& first, float& second) {
    double sin, cos;
    sincos_turns(t, static_cast<const Turns*>(args.turns)[pair], sin, cos);
    // A row of zeros by its bits: without a branch around every pair.
    int kept = args.padded && t == args.padding ? 0 : -1;
    first = __int_as_float(__float_as_int(to_float(args.cosine_first ? cos : sin)) & kept);
    second = __int_as_float(__float_as_int(to_float(args.cosine_first ? sin : cos)) & kept);
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
        Pack<W> a, b;
        if constexpr (W == 1) {
            float first[1], second[1];
            wave(args, t, pair, first[0], second[0]);
            a = pack(first), b = pack(second);
        } else {
            Pushed<W> firsts, seconds;
#pragma unroll 1
            for (int i = 0; i < W; i += 2) {
                float first[2], second[2];
#pragma unroll
                for (int j = 0; j < 2; ++j) wave(args, t, pair + i + j, first[j], second[j]);
                firsts.push(first[0], first[1]);
                seconds.push(second[0], second[1]);
            }
            a = firsts.pack(), b = seconds.pack();
        }
        if (args.interleaved) merge(a, b);
        unsigned at = args.interleaved ? 2 * pair : pair;
        a.store(x + at);
        b.store(x + (args.interleaved ? at + W : pair + args.second));
    }
    // The last channel of an odd dim: one wave more, or a zero.
    if (args.rest && threadIdx.x == 0) {
        float first[1] = {0.0f}, second[1];
        if (args.rest == 1) wave(args, t, args.pairs, first[0], second[0]);
        pack(first).store(x + args.rest_channel);
    }
}

extern "C" __global__ void __launch_bounds__(128) ENTRY(timestep_wide)(const TimestepArgs args) { timestep<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(timestep_one)(const TimestepArgs args) { timestep<1>(args); }
