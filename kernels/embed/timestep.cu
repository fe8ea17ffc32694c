// Timestep embedding:  x = wave(2 pi * (t + offset) * turns).
//
// x      [times, dim] rows `stride` elements apart, channels contiguous
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

template <int W> __device__ void timestep(const TimestepArgs& args) {
    unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= args.times) return;
    wait_for_predecessor();
    double t = args.double_time ? static_cast<const double*>(args.t)[row] : static_cast<const float*>(args.t)[row];
    t += args.offset;
    bool zero = args.padded && t == args.padding;
    unsigned ahead = args.cosine_first ? 1 : 0;
    const Turns* turns = static_cast<const Turns*>(args.turns);
    T::Bits* x = static_cast<T::Bits*>(args.x) + row * static_cast<long long>(args.stride);
    // Behind the pairs, the last channel of an odd dim, in narrow accesses alone: one wave more, or a zero.
    unsigned end = args.pairs + (W == 1 && args.last != LastChannel::NONE ? 1 : 0);
#pragma unroll 1
    for (unsigned pair = threadIdx.x * W; pair < end; pair += blockDim.x * W) {
        Pack<W> a, b;
        if constexpr (W == 1) {
            bool last = pair == args.pairs;
            Angle angle{};
            if (!zero && !(last && args.last == LastChannel::ZERO)) angle = Angle(t, turns[pair]);
            float first[1] = {angle.wave(ahead)}, second[1] = {angle.wave(1 - ahead)};
            a = pack(first), b = pack(second);
            if (last) {
                a.store(x + args.last_channel);
                break;
            }
        } else {
            Pushed<W> firsts, seconds;
#pragma unroll 1
            for (int i = zero ? W : 0; i < W; i += 2) {
                Angle one(t, turns[pair + i]), two(t, turns[pair + i + 1]);
                firsts.push(one.wave(ahead), two.wave(ahead));
                seconds.push(one.wave(1 - ahead), two.wave(1 - ahead));
            }
            a = firsts.pack(), b = seconds.pack();
        }
        if (args.interleaved) merge(a, b);
        unsigned at = args.interleaved ? 2 * pair : pair;
        a.store(x + at);
        b.store(x + (args.interleaved ? at + W : pair + args.second));
    }
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(timestep_wide) { timestep<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) KERNEL(timestep_one) { timestep<1>(args); }
