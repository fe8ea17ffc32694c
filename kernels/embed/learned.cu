// Learned tables:  v = token[id] * scale + position[row] + type[kind],  then nothing, layer norm or RMS norm.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; written, and read in place of
//            token rows where there is no token table
// token, position, types   [rows, dim]
// ids, type_ids, mask      [batch, tokens]
// gain, bias               [dim], or null
//
// Without a norm the threads of a row take its accesses of 16 bytes in turn, up to four each. With one they own units
// of 8 channels, and pass over a row three times: it is held in shared memory, or, where accesses are narrow or the row
// is too long, gathered again, from a cache.
//
// Bytes: one row of each table is read and one is written; ids once. A table's rows come from a cache where they are
// read again: the position table, when the batch is larger than 1, and the type table always.
#include "embed/gather.cuh"

// Scales and moves a step of a normalised row, and writes it.
template <int W> __device__ void finish(const LearnedArgs& args, T::Bits* x, const Moments& moments, unsigned channel,
                                        float (&v)[STEP<W>]) {
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
    store_step<W>(x, channel, args.dim, v);
}

// each_group for the tokens of a block.
template <class F> __device__ void own_groups(const LearnedArgs& args, F f) {
    unsigned first = blockIdx.y * args.tokens_per_block;
    wait_for_predecessor();
    each_group(args, blockIdx.x, first, min(first + args.tokens_per_block, args.tokens), f);
}

// f(x, rows, dim) for every token of a block's row of threads: where it is written, its rows, its channels (0 behind
// the last token).
template <class F> __device__ void each_token(const LearnedArgs& args, F f) {
    own_groups(args, [&](unsigned first, Before& before) {
        // Behind the last token the last one again, of which no channel is written.
        unsigned token = min(first + threadIdx.y, args.tokens - 1);
        long long at = blockIdx.x * args.strides[0] + token * args.strides[1];
        Rows rows(args, static_cast<const T::Bits*>(args.source) + at, blockIdx.x, first, token, before);
        f(pinned(static_cast<T::Bits*>(args.x) + at), rows, token == first + threadIdx.y ? args.dim : 0);
    });
}

__device__ void plain(const LearnedArgs& args) {
    each_token(args, [&](T::Bits* x, const Rows& rows, unsigned dim) {
    // One access at a time, side by side with those of the other threads.
#pragma unroll 1
        for (unsigned channel = threadIdx.x * WIDE; channel < dim; channel += blockDim.x * WIDE) {
            float v[WIDE];
            if (rows.token) {
                rows.sum<WIDE>(args, channel, v);
            } else {
                Rows::fill(v);
            }
            pack(v).store(x + channel);
        }
    });
}

__device__ void norm(const LearnedArgs& args) {
    HeldRow<1> held(args.dim);
    each_token(args, [&](T::Bits* x, const Rows& rows, unsigned dim) {
        Moments moments = hold_row(args, rows, dim, held, [&](unsigned channel, unsigned, float (&v)[UNIT]) {
            rows.sum<WIDE>(args, channel, v);
        });
        held.each(dim, [&](unsigned channel, unsigned at) {
            float v[UNIT];
            held.load<0>(at, v);
            finish<WIDE>(args, x, moments, channel, v);
        });
    });
}

// With or without a norm.
__device__ void narrow(const LearnedArgs& args) {
    each_token(args, [&](T::Bits* x, const Rows& rows, unsigned dim) {
        Moments moments;
#pragma unroll 1
        for (int pass = first_pass(args); pass < 3; ++pass) {
            // Without sums no order has to be kept, and narrow accesses lie side by side.
            each_channel(dim, args.norm == NormKind::NONE, [&](unsigned channel) {
                float v[1];
                rows.fill(v);
                if (rows.token) rows.sum<1>(args, channel, v);
                if (pass < 2) {
                    moments.gather<1>(args, pass, channel, v);
                } else if (args.norm == NormKind::NONE) {
                    store_step<1>(x, channel, args.dim, v);
                } else {
                    finish<1>(args, x, moments, channel, v);
                }
            });
            if (pass < 2) moments.finish(args, pass);
        }
    });
}

// The row of the position table that each token reads, for the gradient of that table.
__device__ void rows(const LearnedArgs& args) {
    own_groups(args, [&](unsigned first, Before& before) {
        unsigned token = first + threadIdx.y;
        long long row = position_row(args, blockIdx.x, first, min(token, args.tokens - 1), before);
        if (token < args.tokens)
            static_cast<long long*>(args.x)[blockIdx.x * static_cast<long long>(args.tokens) + token] = row;
    });
}

#define LEARNED(name, f, blocks) \
    extern "C" __global__ void __launch_bounds__(256, blocks) KERNEL(name) { f(args); }

LEARNED(learned_wide, plain, 5)
LEARNED(learned_norm, norm, 4)
LEARNED(learned_narrow, narrow, 4)
LEARNED(learned_rows, rows, 4)
