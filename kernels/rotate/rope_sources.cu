// RoPE from other sources of angles than rope.cu's, or with accesses of one element: see rope.cuh.
#include "common/exp.cuh"
#include "rotate/rope.cuh"

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
        Position position(args.at, batch, token);
        float at = static_cast<float>(static_cast<long long>(position.on(args.at, 0)));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (args.axes) at = static_cast<float>(static_cast<long long>(position.on(args.at, axes[nth<W>(args, i)])));
            sincos_radians(at * frequencies[nth<W>(args, i)], sin[i], cos[i]);
        }
    }
};

// xPos: the exact phase, times a power of two whose exponent is a product of the distance from the center and a
// constant of the pair and the side. Where one of the pairs' powers would leave the range of f32, NaN.
struct XPos {
    static constexpr bool BY_SIDE = true;
    static constexpr bool BLOCKS = false;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool keys, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        Exact::angles<W>(args, keys, batch, token, pair, sin, cos);
        scale<W>(args, keys, batch, token, pair, sin, cos);
    }

    template <int W>
    static __device__ void scale(const RopeArgs& args, bool keys, unsigned batch, unsigned token, unsigned pair,
                                 float (&sin)[W], float (&cos)[W]) {
        const long long* exponents = static_cast<const long long*>(args.exponents) + (keys ? args.pairs : 0) + pair;
        // Wraps for positions at the end of 64 bits, which then are as far away on the other side.
        unsigned long long at = Position(args.at, batch, token).on(args.at, 0);
        long long distance = static_cast<long long>(at - args.center);
        bool within = -args.reach <= distance && distance <= args.reach;
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float scale = within ? exp2_fixed(distance * exponents[nth<W>(args, i)]) : __int_as_float(0x7fffffff);
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
        Position position(args.at, batch, token);
        long long at = position.on(args.at, 0), row = clamp(args, at);
        // Bit i: pair i has no row.
        unsigned beyond = 0;
        if (args.table_aligned && !args.axes) {
            read<W>(args, args.rates, row * args.table_stride + pair, cos);
            read<W>(args, args.sines, row * args.table_stride + pair, sin);
        } else {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if (args.axes) {
                    at = position.on(args.at, axes[nth<W>(args, i)]);
                    row = clamp(args, at);
                    beyond |= at == row ? 0 : 1u << i;
                }
                cos[i] = read_one(args, args.rates, row * args.table_stride + pair + nth<W>(args, i));
                sin[i] = read_one(args, args.sines, row * args.table_stride + pair + nth<W>(args, i));
            }
        }
        if (args.out_of_range == OutOfRange::CLAMP) return;
        if (!args.axes && at != row) beyond = (1u << W) - 1;
        if (beyond && args.flag) atomicOr(static_cast<unsigned*>(args.flag), 1u);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (beyond >> i & 1) cos[i] = sin[i] = __int_as_float(0x7fffffff);
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

    // W values in one or two runs, which begin at multiples of their own access.
    template <int W> static __device__ void read(const RopeArgs& args, const void* table, long long at, float (&x)[W]) {
        if (W == 1 || !args.apart) {
            read_run<W>(args, table, at, x);
        } else {
            read_run<W / 2>(args, table, at, x);
            read_run<W / 2>(args, table, at + nth<W>(args, W / 2), x + W / 2);
        }
    }

    template <int N> static __device__ void read_run(const RopeArgs& args, const void* table, long long at, float* x) {
        if (args.table_is_f32) {
            const float* from = static_cast<const float*>(table) + at;
            if constexpr (N % 4 == 0) {
#pragma unroll
                for (int i = 0; i < N; i += 4) {
                    uint4 raw = *reinterpret_cast<const uint4*>(from + i);
                    x[i] = f32::widen(raw.x), x[i + 1] = f32::widen(raw.y);
                    x[i + 2] = f32::widen(raw.z), x[i + 3] = f32::widen(raw.w);
                }
            } else {
#pragma unroll
                for (int i = 0; i < N; ++i) x[i] = from[i];
            }
        } else if constexpr (N > 0) {
            float values[N];
            unpack(Pack<N>::load(static_cast<const T::Bits*>(table) + at), values);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = values[i];
        }
    }
};

// Any of them, by what the arguments hold.
struct Any {
    static constexpr bool BY_SIDE = true;
    static constexpr bool BLOCKS = true;

    template <int W>
    static __device__ void angles(const RopeArgs& args, bool keys, unsigned batch, unsigned token, unsigned pair,
                                  float (&sin)[W], float (&cos)[W]) {
        if (args.sines) {
            Table::angles<W>(args, keys, batch, token, pair, sin, cos);
        } else if (args.compat) {
            Compat::angles<W>(args, keys, batch, token, pair, sin, cos);
        } else {
            Exact::angles<W>(args, keys, batch, token, pair, sin, cos);
            if (args.exponents) XPos::scale<W>(args, keys, batch, token, pair, sin, cos);
        }
    }
};

#define BOUNDS __launch_bounds__(256, 4)

extern "C" __global__ void BOUNDS KERNEL(rope_blocks_wide) { rope<WIDE, ExactBlocks>(args); }
extern "C" __global__ void BOUNDS KERNEL(rope_compat_wide) { rope<WIDE, Compat>(args); }
extern "C" __global__ void BOUNDS KERNEL(rope_table_wide) { rope<WIDE, Table>(args); }
extern "C" __global__ void BOUNDS KERNEL(rope_table_mid) { rope<MID, Table>(args); }
// xPos needs two registers more than four blocks leave at compute capability 12.0.
extern "C" __global__ void __launch_bounds__(256, WIDE == 4 ? 5 : 3) KERNEL(rope_xpos_wide) { rope<WIDE, XPos>(args); }

extern "C" __global__ void BOUNDS KERNEL(rope_one) { rope<1, Any>(args); }
