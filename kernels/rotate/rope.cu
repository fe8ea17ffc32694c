// RoPE:  a' = a cos - b sin,  b' = a sin + b cos,  with the angle position * rate of the pair (a, b).
//
// q, q_out   [batch, tokens, q_heads, dim] by strides in elements (64 bits), channels contiguous; k, k_out likewise
// positions  ids [axes][batch, tokens], or one start for each sequence
// rates      [pairs] turns per position in units of 2^-64 (exact), frequencies in f32 (compat), or cosines by row (table)
// sines      sines by row (table)
// axes       [pairs] axis of each pair, or null
// exponents  [2, pairs] xPos: exponents per position in units of 2^-56, of the queries' factors and of the keys'
//
// One thread owns W pairs of one token: two accesses of W elements, one for each side of the pairs. It makes their
// angles once and walks `heads_per_thread` heads, the queries' first and then the keys'.
//
// Bytes: every rotated element is read once and written once; in place nothing else is touched, out of place the other
// channels are copied. A rate is 8 bytes a pair and an id up to 8 bytes a token, from a cache after their first use.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/exp.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

// Where the pairs of one thread lie, from the head's first element: W elements at `a` and W at `b`. With BLOCKS and in halves,
// each block of channels has its own; blocks are as long as one another, and the axis of a pair is the number of its block.
template <int W> struct Sides {
    unsigned a, b;

    template <bool BLOCKS>
    static __device__ Sides of(const RopeArgs& args, unsigned first_pair, bool interleaved) {
        Sides sides;
        sides.a = args.offset + (interleaved ? 2 * first_pair : first_pair);
        sides.b = interleaved ? sides.a + W : sides.a + args.pairs;
        if constexpr (BLOCKS) {
            if (args.block != args.pairs && !interleaved) {
                sides.a += static_cast<const unsigned char*>(args.axes)[first_pair] * args.block;
                sides.b = sides.a + args.block;
            }
        }
        return sides;
    }
};

// Position of one token on each axis: ids[index + axis * axis_stride] + step, or step alone without ids.
struct Place {
    long long index, step;

    __device__ Place(const RopeArgs& args, unsigned batch, unsigned token) {
        if (args.position_kind == 0) {
            index = batch * args.sequence_stride + token;
            step = 0;
        } else if (args.position_kind == 1) {
            index = batch * args.sequence_stride;
            step = token;
        } else {
            const int* indptr = static_cast<const int*>(args.indptr);
            index = find_sequence(indptr, args.sequences, token);
            step = static_cast<long long>(token) - indptr[index];
        }
    }

    __device__ unsigned long long on(const RopeArgs& args, unsigned axis) const {
        if (!args.positions) return step;
        return read_id(args.positions, args.position_type, index + axis * args.axis_stride) + step;
    }
};

// Sources of cosine and sine for the W pairs from `pair` on. What they read before `wait_for_predecessor` is the plan's own.
// A source that is BY_SIDE makes them anew for the keys, one with BLOCKS knows blocks of channels.

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
#pragma unroll
        for (int i = 0; i < W; ++i) rate[i] = rates[i];
        wait_for_predecessor();
        Place place(args, batch, token);
        unsigned long long at = place.on(args, 0);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (args.axes) at = place.on(args, axes[i]);
            sincos_phase(at * rate[i], sin[i], cos[i]);
        }
    }
};

struct ExactBlocks : Exact {
    static constexpr bool BLOCKS = true;
};

// Hugging Face's: frequency and position in f32, their product rounded once, then an accurate cosine and sine of it.
struct Compat {
    static constexpr bool BY_SIDE = false;
    static constexpr bool BLOCKS = true;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        const float* frequencies = static_cast<const float*>(args.rates) + pair;
        const unsigned char* axes = static_cast<const unsigned char*>(args.axes) + pair;
        wait_for_predecessor();
        Place place(args, batch, token);
        float at = static_cast<float>(static_cast<long long>(place.on(args, 0)));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (args.axes) at = static_cast<float>(static_cast<long long>(place.on(args, axes[i])));
            sincos_radians(at * frequencies[i], sin[i], cos[i]);
        }
    }
};

// xPos: the exact phase, times a power of two whose exponent is a product of the distance from the center and a constant of
// the pair and the side. Where one of the pairs' powers would leave the range of f32, NaN.
struct XPos {
    static constexpr bool BY_SIDE = true;
    static constexpr bool BLOCKS = false;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool keys, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        Exact::angles<W>(args, keys, batch, token, pair, sin, cos);
        const long long* exponents = static_cast<const long long*>(args.exponents) + (keys ? args.pairs : 0) + pair;
        // Wraps for positions at the end of 64 bits, which then are as far away on the other side.
        unsigned long long position = Place(args, batch, token).on(args, 0);
        long long distance = static_cast<long long>(position - static_cast<unsigned long long>(args.center));
        bool within = -args.reach <= distance && distance <= args.reach;
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float scale = within ? exp2_fixed(distance * exponents[i]) : __int_as_float(0x7fffffff);
            sin[i] *= scale;
            cos[i] *= scale;
        }
    }
};

// The caller's rows of cosines and sines.
struct Table {
    static constexpr bool BY_SIDE = false;
    static constexpr bool BLOCKS = true;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        const unsigned char* axes = static_cast<const unsigned char*>(args.axes) + pair;
        wait_for_predecessor();
        Place place(args, batch, token);
        long long row = clamp(args, place.on(args, 0));
        if (args.table_aligned && !args.axes) {
            read<W>(args, args.rates, row * args.table_stride + pair, cos);
            read<W>(args, args.sines, row * args.table_stride + pair, sin);
        } else {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if (args.axes) row = clamp(args, place.on(args, axes[i]));
                cos[i] = read_one(args, args.rates, row * args.table_stride + pair + i);
                sin[i] = read_one(args, args.sines, row * args.table_stride + pair + i);
            }
        }
        if (args.beyond) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                long long at = place.on(args, args.axes ? axes[i] : 0);
                if (at != clamp(args, at)) {
                    cos[i] = sin[i] = __int_as_float(0x7fffffff);
                    if (args.flag) atomicOr(static_cast<unsigned*>(args.flag), 1u);
                }
            }
        }
    }

private:
    static __device__ long long clamp(const RopeArgs& args, long long row) {
        return row < 0 ? 0 : row < args.table_rows ? row : args.table_rows - 1;
    }

    static __device__ float read_one(const RopeArgs& args, const void* table, long long at) {
        if (args.table_is_f32) return static_cast<const float*>(table)[at];
        return T::widen(static_cast<const T::Bits*>(table)[at]);
    }

    // W values that begin at a multiple of their own access.
    template <int W>
    static __device__ void read(const RopeArgs& args, const void* table, long long at, float (&x)[W]) {
        if (args.table_is_f32) {
            const float* from = static_cast<const float*>(table) + at;
            if constexpr (W % 4 == 0) {
#pragma unroll
                for (int i = 0; i < W; i += 4) {
                    uint4 raw = *reinterpret_cast<const uint4*>(from + i);
                    x[i] = f32::widen(raw.x), x[i + 1] = f32::widen(raw.y);
                    x[i + 2] = f32::widen(raw.z), x[i + 3] = f32::widen(raw.w);
                }
            } else {
#pragma unroll
                for (int i = 0; i < W; ++i) x[i] = from[i];
            }
        } else {
            unpack(Pack<W>::load(static_cast<const T::Bits*>(table) + at), x);
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
        const long long* in = keys ? args.k_strides : args.q_strides;
        const long long* out = keys ? args.k_out_strides : args.q_out_strides;
        unsigned from = keys ? max(first, args.q_heads) : first;
        unsigned to = keys ? last : min(last, args.q_heads);
        unsigned own = keys ? from - args.q_heads : from;
        count = to > from ? to - from : 0;
        x_step = in[2];
        y_step = out[2];
        x = static_cast<const T::Bits*>(keys ? args.k : args.q) + batch * in[0] + token * in[1] + own * x_step;
        y = static_cast<T::Bits*>(keys ? args.k_out : args.q_out) + batch * out[0] + token * out[1] + own * y_step;
    }

    __device__ void next() {
        x += x_step;
        y += y_step;
        --count;
    }
};

template <int W, class Source> __device__ void rope(const RopeArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    unsigned heads = args.q_heads + args.k_heads;
    unsigned first = (blockIdx.y * blockDim.z + threadIdx.z) * args.heads_per_thread;
    if (token >= args.tokens || first >= heads) return;
    unsigned last = min(first + args.heads_per_thread, heads);

    for (unsigned batch = blockIdx.z; batch < args.batch; batch += gridDim.z) {
        for (unsigned pair = threadIdx.x * W; pair < args.pairs; pair += blockDim.x * W) {
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
            Sides<W> from = Sides<W>::template of<Source::BLOCKS>(args, pair, args.interleaved);
            Sides<W> to = Sides<W>::template of<Source::BLOCKS>(args, pair, args.interleaved_out);
#pragma unroll 1
            for (int keys = 0; keys < 2; ++keys) {
                Walk walk(args, keys, batch, token, first, last);
                if constexpr (Source::BY_SIDE) {
                    if (walk.count) turn(keys);
                }
#pragma unroll 1
                for (; walk.count; walk.next()) {
                    Pack<W> a_pack = Pack<W>::load(walk.x + from.a);
                    Pack<W> b_pack = Pack<W>::load(walk.x + from.b);
                    if (args.interleaved) split(a_pack, b_pack);
                    float a[W], b[W];
                    unpack(a_pack, a);
                    unpack(b_pack, b);
                    float a_out[W], b_out[W];
#pragma unroll
                    for (int i = 0; i < W; ++i) {
                        a_out[i] = fmaf(a[i], cos[i], -(b[i] * sin[i]));
                        b_out[i] = fmaf(a[i], sin[i], b[i] * cos[i]);
                    }
                    a_pack = pack(a_out);
                    b_pack = pack(b_out);
                    if (args.interleaved_out) merge(a_pack, b_pack);
                    a_pack.store(walk.y + to.a);
                    b_pack.store(walk.y + to.b);
                }
            }
        }
        // Out of place: the channels before and after the rotated ones.
#pragma unroll 1
        for (unsigned c = threadIdx.x * W; c < args.copied; c += blockDim.x * W) {
            unsigned channel = c < args.offset ? c : c + 2 * args.pairs;
#pragma unroll 1
            for (int keys = 0; keys < 2; ++keys) {
#pragma unroll 1
                for (Walk walk(args, keys, batch, token, first, last); walk.count; walk.next()) {
                    Pack<W>::load(walk.x + channel).store(walk.y + channel);
                }
            }
        }
    }
}

// 48 registers hold the 16 angles and both packs without spills from compute capability 9.0 on: five blocks of 256 a
// multiprocessor. Before it the compiler needs 64.
#if __CUDA_ARCH__ >= 900
#define BOUNDS __launch_bounds__(256, 5)
#else
#define BOUNDS __launch_bounds__(256, 4)
#endif
#define LOOSE __launch_bounds__(256, 4)
// xPos needs two registers more than four blocks leave at compute capability 12.0.
#define LOOSER __launch_bounds__(256, 3)

extern "C" __global__ void BOUNDS ENTRY(rope_wide)(const RopeArgs args) { rope<WIDE, Exact>(args); }
extern "C" __global__ void BOUNDS ENTRY(rope_mid)(const RopeArgs args) { rope<MID, Exact>(args); }
extern "C" __global__ void BOUNDS ENTRY(rope_one)(const RopeArgs args) { rope<1, Exact>(args); }

extern "C" __global__ void LOOSE ENTRY(rope_blocks_wide)(const RopeArgs args) { rope<WIDE, ExactBlocks>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_blocks_mid)(const RopeArgs args) { rope<MID, ExactBlocks>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_blocks_one)(const RopeArgs args) { rope<1, ExactBlocks>(args); }

extern "C" __global__ void LOOSE ENTRY(rope_compat_wide)(const RopeArgs args) { rope<WIDE, Compat>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_compat_mid)(const RopeArgs args) { rope<MID, Compat>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_compat_one)(const RopeArgs args) { rope<1, Compat>(args); }

extern "C" __global__ void LOOSE ENTRY(rope_table_wide)(const RopeArgs args) { rope<WIDE, Table>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_table_mid)(const RopeArgs args) { rope<MID, Table>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_table_one)(const RopeArgs args) { rope<1, Table>(args); }

extern "C" __global__ void LOOSER ENTRY(rope_xpos_wide)(const RopeArgs args) { rope<WIDE, XPos>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_xpos_mid)(const RopeArgs args) { rope<MID, XPos>(args); }
extern "C" __global__ void LOOSE ENTRY(rope_xpos_one)(const RopeArgs args) { rope<1, XPos>(args); }
