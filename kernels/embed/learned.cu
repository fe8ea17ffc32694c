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
    wait_for_predecessor();
#pragma unroll 1
    for (unsigned batch = blockIdx.y; batch < args.batch; batch += gridDim.y) {
        long long at = batch * args.strides[0] + token * args.strides[1];
        T::Bits* x = static_cast<T::Bits*>(args.x) + at;
        Row<W, HELD> row(args, static_cast<const T::Bits*>(args.source) + at, batch, first, token);
        Moments moments;
        // The mean, the variance, the result.
        constexpr int UNROLL = Row<W, HELD>::UNROLL;
#pragma unroll UNROLL
        for (int pass = NORM ? 0 : 2; pass < 3; ++pass) {
            if (pass < first_pass(args)) continue;
            row.each(args, [&](unsigned channel, float(&v)[STEP<W>]) {
                if (pass < 2) {
                    moments.gather<W>(args, pass, channel, v);
                    return;
                }
                if (NORM && args.norm != NO_NORM) {
                    float vector[STEP<W>];
#pragma unroll
                    for (int i = 0; i < STEP<W>; ++i) v[i] = (v[i] - moments.mean) * moments.inverse;
                    if (args.gain) {
                        load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, vector);
#pragma unroll
                        for (int i = 0; i < STEP<W>; ++i) v[i] = v[i] * vector[i];
                    }
                    if (args.bias) {
                        load_step<W>(static_cast<const T::Bits*>(args.bias), channel, args.dim, vector);
#pragma unroll
                        for (int i = 0; i < STEP<W>; ++i) v[i] = v[i] + vector[i];
                    }
                }
                store_step<W>(x, channel, args.dim, v);
            });
            if (pass < 2) moments.finish(args, pass);
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
        long long row = position_row(args, batch, first, token);
        if (token < args.tokens) static_cast<long long*>(args.x)[batch * static_cast<long long>(args.tokens) + token] = row;
    }
}

#define LEARNED(name, f) \
    extern "C" __global__ void __launch_bounds__(256, 4) ENTRY(name)(const LearnedArgs args) { f(args); }

LEARNED(learned_wide, (learned<WIDE, false, false>))
LEARNED(learned_norm_short, (learned<WIDE, true, true>))
LEARNED(learned_norm_wide, (learned<WIDE, false, true>))
LEARNED(learned_narrow, (learned<1, false, true>))
LEARNED(learned_rows, rows)
