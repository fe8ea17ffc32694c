// RoPE whose pairs turn by a sum over axes, with frequencies of their own for each set of heads:
//     angle = sum over axes of position[axis] * frequency[axis, set, pair]
// Rotation, tensors and arguments: rope.cuh.
//
// rates      [axes, sets, pairs] turns per position in units of 2^-64; a phase is a wrapping sum of wrapping products
//
// One thread owns W pairs of one token and walks `heads_per_thread` heads. It asks for a head's elements before it
// makes the angles, which it makes anew for every set.
//
// Bytes: every rotated element is read once and written once; in place nothing else is touched, out of place the other
// channels are copied. Rates are 8 bytes a pair, axis and set, an id up to 8 bytes a token and axis, from a cache after
// their first use.
#include "rotate/rope.cuh"

template <int W>
__device__ void mixed_angles(const RopeArgs& args, const Position& position, unsigned set, unsigned pair,
                             float (&sin)[W], float (&cos)[W]) {
    unsigned long long phase[W] = {};
    const unsigned long long* rates = static_cast<const unsigned long long*>(args.rates);
    rates += static_cast<long long>(set) * args.pairs + pair;
#pragma unroll 1
    for (unsigned axis = 0; axis < args.axis_count; ++axis) {
        unsigned long long at = position.on(args.at, axis);
        if constexpr (W < 4) {
#pragma unroll
            for (int i = 0; i < W; ++i) phase[i] += at * rates[nth<W>(args, i)];
        } else {
            // 16 bytes at a time: a run begins at a multiple of two.
#pragma unroll
            for (int i = 0; i < W; i += 2) {
                ulonglong2 two = *reinterpret_cast<const ulonglong2*>(rates + nth<W>(args, i));
                phase[i] += at * two.x;
                phase[i + 1] += at * two.y;
            }
        }
        rates += static_cast<long long>(args.sets) * args.pairs;
    }
#pragma unroll
    for (int i = 0; i < W; ++i) {
        sincos_phase(phase[i], sin[i], cos[i]);
        cos[i] *= args.factor;
        sin[i] *= args.factor * args.sign;
    }
}

template <int W> __device__ void rope_mixed(const RopeArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    unsigned heads = args.q_heads + args.k_heads;
    unsigned first = (blockIdx.y * blockDim.z + threadIdx.z) * args.heads_per_thread;
    if (token >= args.tokens || first >= heads) return;
    unsigned last = min(first + args.heads_per_thread, heads);
    // Rates may have been written by the kernel before.
    wait_for_predecessor();

    for (unsigned batch = blockIdx.z; batch < args.batch; batch += gridDim.z) {
        Position position(args.at, batch, token);
        for (unsigned pair = threadIdx.x * args.run; pair < args.runs; pair += blockDim.x * args.run) {
            float sin[W], cos[W];
            Sides<W> from = Sides<W>::template of<false>(args, pair, args.interleaved, args.x_second);
            Sides<W> to = Sides<W>::template of<false>(args, pair, args.interleaved_out, args.y_second);
#pragma unroll 1
            for (int keys = 0; keys < 2; ++keys) {
                Walk walk(args, keys, batch, token, first, last);
                unsigned sharing = keys ? args.k_sharing : args.q_sharing;
                unsigned head = keys ? max(first, args.q_heads) - args.q_heads : first;
                unsigned set = walk.count ? divide(head, keys ? args.by_k_sharing : args.by_q_sharing) : 0, left = 0;
                if (walk.count) left = (set + 1) * sharing - head;
                bool made = false;
#pragma unroll 1
                for (; walk.count; walk.next()) {
                    Pack<W> a_pack = Pack<W>::load(walk.x + from.a);
                    Pack<W> b_pack = Pack<W>::load(walk.x + from.b);
                    if (!made) mixed_angles<W>(args, position, set, pair, sin, cos);
                    made = --left;
                    if (!made) ++set, left = sharing;
                    turn_head<W>(args, a_pack, b_pack, sin, cos);
                    a_pack.store(walk.y + to.a);
                    b_pack.store(walk.y + to.b);
                }
            }
        }
        copy_beside<W>(args, batch, token, first, last);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(rope_mixed_wide) { rope_mixed<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(rope_mixed_one) { rope_mixed<1>(args); }
