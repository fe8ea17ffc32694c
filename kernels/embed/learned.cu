// Learned tables:  v = token[id] * scale + position[row] + type[kind],  then nothing, layer norm or RMS norm.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; written, and read in place of
//            token rows where there is no token table
// token, position, types   [rows, dim]
// ids, type_ids, mask      [batch, tokens]
// gain, bias               [dim], or null
//
// The threads of a row own its units of 8 channels in turn. A norm passes over a row three times: up to 2048 channels with
// wide accesses it is held in registers (`short`), else it is gathered again, from a cache.
//
// Bytes: one row of each table is read and one is written; ids once. A table's rows come from a cache where they are
// read again: the position table, when the batch is larger than 1, and the type table always.
#include "embed/gather.cuh"

template <int W, bool HELD, bool NORM> __device__ void learned(const LearnedArgs& args) {
    unsigned first = blockIdx.x * blockDim.y;
    unsigned token = first + threadIdx.y;
    bool live = token < args.tokens;
    wait_for_predecessor();
#pragma unroll 1
    for (unsigned batch = blockIdx.y; batch < args.batch; batch += gridDim.y) {
        long long at = batch * args.strides[0] + token * args.strides[1];
        T::Bits* x = static_cast<T::Bits*>(args.x) + at;
        long long before = args.position && args.rule != OFFSET ? count_kept(args, batch, first, token) : 0;
        Rows rows;
        if (live) rows.look_up(args, static_cast<const T::Bits*>(args.source) + at, batch, token, before);
        if constexpr (NORM) {
            Row<W, HELD> row(args, rows);
            Moments moments(args, row);
            if (!live) continue;
            row.each([&](unsigned channel, const float(&v)[STEP<W>]) {
                float gain[STEP<W>], bias[STEP<W>], y[STEP<W>];
                if (args.gain) load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
                if (args.bias) load_step<W>(static_cast<const T::Bits*>(args.bias), channel, args.dim, bias);
#pragma unroll
                for (int i = 0; i < STEP<W>; ++i) {
                    y[i] = (v[i] - moments.mean) * moments.inverse;
                    if (args.gain) y[i] = y[i] * gain[i];
                    if (args.bias) y[i] = y[i] + bias[i];
                }
                store_step<W>(x, channel, args.dim, y);
            });
        } else if (live) {
            Row<W, false>(args, rows).each(
                [&](unsigned channel, const float(&v)[STEP<W>]) { store_step<W>(x, channel, args.dim, v); });
        }
    }
}

// The row of the position table that each token reads, for the gradient of that table.
__device__ void rows(const LearnedArgs& args) {
    unsigned first = blockIdx.x * blockDim.x * blockDim.y;
    unsigned token = first + threadIdx.y * blockDim.x + threadIdx.x;
    wait_for_predecessor();
#pragma unroll 1
    for (unsigned batch = blockIdx.y; batch < args.batch; batch += gridDim.y) {
        long long before = args.rule != OFFSET ? count_kept(args, batch, first, token) : 0;
        if (token >= args.tokens) continue;
        static_cast<long long*>(args.x)[batch * static_cast<long long>(args.tokens) + token] =
            position_row(args, batch, token, before);
    }
}

#define LEARNED(name, W, HELD, NORM)                                                        \
    extern "C" __global__ void __launch_bounds__(256) ENTRY(name)(const LearnedArgs args) { \
        learned<W, HELD, NORM>(args);                                                       \
    }

LEARNED(learned_wide, WIDE, false, false)
LEARNED(learned_mid, MID, false, false)
LEARNED(learned_one, 1, false, false)
LEARNED(learned_norm_short, WIDE, true, true)
LEARNED(learned_norm_wide, WIDE, false, true)
LEARNED(learned_norm_one, 1, false, true)

extern "C" __global__ void __launch_bounds__(256) ENTRY(learned_rows)(const LearnedArgs args) { rows(args); }
