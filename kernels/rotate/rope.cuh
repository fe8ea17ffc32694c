// RoPE:  a' = a cos - b sin,  b' = a sin + b cos,  with the angle position * rate of the pair (a, b).
//
// q, k       [batch, tokens, heads, dim] by strides in elements (64 bits), channels contiguous; x is read and y written
// at         token positions: position.cuh
// rates      [pairs] turns per position in units of 2^-64 (exact), frequencies in f32 (compat), or cosines by row
// (table)
// sines      sines by row (table)
// axes       [pairs] axis of each pair, or null
// exponents  [2, pairs] xPos: exponents per position in units of 2^-56, of the queries' factors and of the keys'
//
// One thread owns W pairs of one token: two accesses of W elements. It makes their angles once and walks
// `heads_per_thread` heads, the queries' first and then the keys'. In halves the accesses are the two sides of W pairs
// in a row. Interleaved pairs are two runs of W / 2, half of the head apart, so that threads side by side access packs
// side by side: no sector of 32 bytes is read or written in two halves.
//
// Bytes: every rotated element is read once and written once; in place nothing else is touched, out of place the other
// channels are copied. A rate is 8 bytes a pair and an id up to 8 bytes a token, from a cache after their first use.
#pragma once
#include "args.cuh"
#include "common/angle.cuh"
#include "common/position.cuh"
#include "common/scalar.cuh"

// The i-th of a thread's W pairs, from its first: the second half of them may lie `args.apart` further. In 64 bits, so
// that one address serves all of a half.
template <int W> __device__ long long nth(const RopeArgs& args, int i) {
    return W > 1 && i >= W / 2 ? static_cast<long long>(args.apart) + i : i;
}

// Where the pairs of one thread lie, from the head's first element: W elements at `a` and W at `b`. With BLOCKS and in
// halves, each block of channels has its own; blocks are as long as one another, and the axis of a pair is the number
// of its block.
template <int W> struct Sides {
    unsigned a, b;

    // `second`: elements from one access to the other.
    template <bool BLOCKS>
    static __device__ Sides of(const RopeArgs& args, unsigned first_pair, unsigned interleaved, unsigned second) {
        Sides sides;
        sides.a = args.offset + (first_pair << interleaved);
        if constexpr (BLOCKS) {
            if (args.block != args.pairs && !interleaved) {
                sides.a += static_cast<const unsigned char*>(args.axes)[first_pair] * args.block;
            }
        }
        sides.b = sides.a + second;
        return sides;
    }
};

// Sources of cosine and sine for the W pairs whose first is `pair`. What they read before `wait_for_predecessor` is the
// plan's own. A source that is BY_SIDE makes them anew for the keys, one with BLOCKS knows blocks of channels.

// The exact phase, position * rate modulo one turn.
struct Exact {
    static constexpr bool BY_SIDE = false;
    static constexpr bool BLOCKS = false;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        const unsigned long long* rates = static_cast<const unsigned long long*>(args.rates) + pair;
        const unsigned char* axes = static_cast<const unsigned char*>(args.axes) + pair;
        unsigned long long rate[W];
        if constexpr (W < 4) {
#pragma unroll
            for (int i = 0; i < W; ++i) rate[i] = rates[nth<W>(args, i)];
        } else {
            // 16 bytes at a time: a run begins at a multiple of two.
#pragma unroll
            for (int i = 0; i < W; i += 2) {
                ulonglong2 two = *reinterpret_cast<const ulonglong2*>(rates + nth<W>(args, i));
                rate[i] = two.x;
                rate[i + 1] = two.y;
            }
        }
        wait_for_predecessor();
        Position position(args.at, batch, token);
        unsigned long long at = position.on(args.at, 0);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (args.axes) at = position.on(args.at, axes[nth<W>(args, i)]);
            sincos_phase(at * rate[i], sin[i], cos[i]);
        }
    }
};

// The heads of one token that one thread walks in the queries, or in the keys.
struct Walk {
    const T::Bits* x;
    T::Bits* y;
    long long x_step, y_step;
    unsigned count;

    // `first` and `last` count the heads of both tensors, queries first.
    __device__ Walk(const RopeArgs& args, bool keys, unsigned batch, unsigned token, unsigned first, unsigned last) {
        // `y` through the struct that is chosen, the rest field by field: every other mixture that was tried takes more
        // registers on some architecture, or more instructions.
        const HeadsArgs& of = keys ? args.k : args.q;
        const long long* in = keys ? args.k.x_strides : args.q.x_strides;
        const long long* out = keys ? args.k.y_strides : args.q.y_strides;
        unsigned from = keys ? max(first, args.q_heads) : first;
        unsigned to = keys ? last : min(last, args.q_heads);
        unsigned own = keys ? from - args.q_heads : from;
        count = to > from ? to - from : 0;
        x_step = in[2];
        y_step = out[2];
        x = static_cast<const T::Bits*>(keys ? args.k.x : args.q.x) + batch * in[0] + token * in[1] + own * x_step;
        y = static_cast<T::Bits*>(of.y) + batch * out[0] + token * out[1] + own * y_step;
    }

    __device__ void next() {
        x += x_step;
        y += y_step;
        --count;
    }
};

// Rotates the W pairs of two packs as they lie in a head.
template <int W>
__device__ void turn_head(const RopeArgs& args, Pack<W>& a_pack, Pack<W>& b_pack, const float (&sin)[W],
                          const float (&cos)[W]) {
    if (args.interleaved) split(a_pack, b_pack);
    float a[W], b[W];
    unpack(a_pack, a);
    unpack(b_pack, b);
    float a_out[W], b_out[W];
#pragma unroll
    for (int i = 0; i < W; ++i) turn_pair(a[i], b[i], sin[i], cos[i], a_out[i], b_out[i]);
    a_pack = pack(a_out);
    b_pack = pack(b_out);
    if (args.interleaved_out) merge(a_pack, b_pack);
}

// Out of place: the channels before and after the rotated ones, of the heads from `first` to `last`.
template <int W>
__device__ void copy_beside(const RopeArgs& args, unsigned batch, unsigned token, unsigned first, unsigned last) {
    // Where nothing is rotated, nothing has waited yet.
    if (args.pairs == 0) wait_for_predecessor();
#pragma unroll 1
    for (unsigned c = threadIdx.x * W; c < args.copied; c += blockDim.x * W) {
        unsigned channel = c < args.offset ? c : c + 2 * args.pairs;
#pragma unroll 1
        for (int keys = 0; keys < 2; ++keys) {
            // One of the two may be in place.
            if (!(keys ? args.k_copied : args.q_copied)) continue;
#pragma unroll 1
            for (Walk walk(args, keys, batch, token, first, last); walk.count; walk.next()) {
                Pack<W>::load(walk.x + channel).store(walk.y + channel);
            }
        }
    }
}

template <int W, class Source> __device__ void rope(const RopeArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    unsigned heads = args.q_heads + args.k_heads;
    unsigned first = (blockIdx.y * blockDim.z + threadIdx.z) * args.heads_per_thread;
    if (token >= args.tokens || first >= heads) return;
    unsigned last = min(first + args.heads_per_thread, heads);

    for (unsigned batch = blockIdx.z; batch < args.batch; batch += gridDim.z) {
        for (unsigned pair = threadIdx.x * args.run; pair < args.runs; pair += blockDim.x * args.run) {
            float sin[W], cos[W];
            auto turn = [&](bool keys) {
                Source::template angles<W>(args, keys, batch, token, pair, sin, cos);
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    cos[i] *= args.factor;
                    sin[i] *= args.factor * args.sign;
                }
            };
            if constexpr (!Source::BY_SIDE) turn(false);
            Sides<W> from = Sides<W>::template of<Source::BLOCKS>(args, pair, args.interleaved, args.x_second);
            Sides<W> to = Sides<W>::template of<Source::BLOCKS>(args, pair, args.interleaved_out, args.y_second);
#pragma unroll 1
            for (int keys = 0; keys < 2; ++keys) {
                Walk walk(args, keys, batch, token, first, last);
                if constexpr (Source::BY_SIDE) {
                    // Keys have angles of their own, or no query has made them.
                    if (walk.count && (!keys || args.exponents || first >= args.q_heads)) turn(keys);
                }
#pragma unroll 1
                for (; walk.count; walk.next()) {
                    Pack<W> a_pack = Pack<W>::load(walk.x + from.a);
                    Pack<W> b_pack = Pack<W>::load(walk.x + from.b);
                    turn_head<W>(args, a_pack, b_pack, sin, cos);
                    a_pack.store(walk.y + to.a);
                    b_pack.store(walk.y + to.b);
                }
            }
        }
        copy_beside<W>(args, batch, token, first, last);
    }
}
