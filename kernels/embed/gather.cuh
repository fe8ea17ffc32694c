// The rows that a token reads: ids, the position rule, and what happens to ids outside their table.
#pragma once

#include "args.cuh"
#include "embed/place.cuh"
#include "embed/row.cuh"

enum Rule : unsigned { OFFSET = 0, KEPT_BY_ID = 1, KEPT_BY_MASK = 2 };
enum NormKind : unsigned { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };

__device__ inline bool kept(const LearnedArgs& args, long long index) {
    if (args.rule == KEPT_BY_MASK) return static_cast<const unsigned char*>(args.mask)[index] != 0;
    return read_id(args.ids, args.id_type, index) != args.padding;
}

// The kept tokens before a token of its sequence, and whether it is one.
struct Counted {
    long long before = 0;
    bool kept = false;
};

// Counts for a block whose first token is `first`: all threads together up to that one, then each goes on alone to `token`.
// Every thread of the block must come here.
__device__ inline Counted count_kept(const LearnedArgs& args, unsigned batch, unsigned first, unsigned token) {
    __shared__ unsigned counts[8];
    long long sequence = batch * static_cast<long long>(args.tokens);
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    Counted own;
    // One loop's code for both counts.
#pragma unroll 1
    for (int alone = 0; alone < 2; ++alone) {
        unsigned i = alone ? first : thread, end = alone ? min(token + 1, args.tokens) : first, count = 0;
#pragma unroll 1
        for (; i < end; i += alone ? 1 : threads) {
            own.kept = kept(args, sequence + i);
            count += own.kept;
        }
        if (alone) {
            own.before += count - own.kept;
            continue;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
        if (thread % 32 == 0) counts[thread / 32] = count;
        __syncthreads();
        if (args.positions) own.before = read_id(args.positions, args.position_type, batch * args.sequence_stride);
#pragma unroll 1
        for (unsigned warp = 0; warp < threads / 32; ++warp) own.before += counts[warp];
        __syncthreads();
    }
    return own;
}

// The position row of a token, for a block whose first token is `first`; every thread of the block must come here.
__device__ inline long long position_row(const LearnedArgs& args, unsigned batch, unsigned first, unsigned token) {
    if (args.rule == OFFSET) return (token < args.tokens ? place(args, batch, token) : 0) + args.first;
    Counted counted = count_kept(args, batch, first, token);
    return counted.kept ? args.first + counted.before : args.padded;
}

// One token's rows; null where there is no table.
struct Rows {
    // Null too for a token with an id outside its table: nothing is read, and its sum is NaN.
    const T::Bits* token = nullptr;
    const T::Bits *position = nullptr, *type = nullptr;

    // The rows of `token` in a block whose first token is `first`; every thread of the block must come here. `source` stands
    // in for a token's row where there is no token table. An id outside its table is not followed; the first one, in the
    // order of tokens, is left in `fault`.
    __device__ Rows(const LearnedArgs& args, const T::Bits* source, unsigned batch, unsigned first, unsigned at) {
        long long row = args.position ? position_row(args, batch, first, at) : 0;
        if (at >= args.tokens) return;
        long long index = batch * static_cast<long long>(args.tokens) + at;
        const void* tables[3] = {args.token, args.position, args.types};
        const T::Bits* found[3] = {source, nullptr, nullptr};
        long long wanted[3] = {0, row, 0}, rows[3] = {args.token_rows, args.position_rows, args.type_rows};
        if (args.token) wanted[0] = read_id(args.ids, args.id_type, index);
        if (args.types) wanted[2] = read_id(args.type_ids, args.type_id_type, index);
        unsigned wrong = 3;
#pragma unroll
        for (int which = 2; which >= 0; --which) {
            if (!tables[which]) continue;
            if (static_cast<unsigned long long>(wanted[which]) < static_cast<unsigned long long>(rows[which])) {
                found[which] = static_cast<const T::Bits*>(tables[which]) + wanted[which] * args.dim;
            } else {
                wrong = which;
            }
        }
        token = wrong == 3 ? found[0] : nullptr;
        position = found[1];
        type = found[2];
        if (wrong != 3 && threadIdx.x == 0 && args.fault) {
            atomicMin(static_cast<unsigned long long*>(args.fault), static_cast<unsigned long long>(index) << 2 | wrong);
        }
    }

    template <int W> __device__ void sum(const LearnedArgs& args, unsigned channel, float (&v)[STEP<W>]) const {
        float other[STEP<W>];
        if (!token) {
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) v[i] = __int_as_float(0x7fffffff);
            return;
        }
        load_step<W>(token, channel, args.dim, v);
        if (position) {
            load_step<W>(position, channel, args.dim, other);
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) v[i] = fmaf(v[i], args.scale, other[i]);
        } else {
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) v[i] = v[i] * args.scale;
        }
        if (type) {
            load_step<W>(type, channel, args.dim, other);
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) v[i] = v[i] + other[i];
        }
    }
};

// The channels of a token's row that this thread owns: one unit that it holds in registers (HELD), or every blockDim.x-th
// one, gathered again for each pass over the row, from a cache.
template <int W, bool HELD> struct Row {
    // Passes over a held row are unrolled; over others they share one loop, so that the gather stands in the code once.
    static constexpr int UNROLL = HELD ? 4 : 1;

    Rows rows;
    bool live;
    float v[STEP<W>];

    // Every thread of the block must come here.
    __device__ Row(const LearnedArgs& args, const T::Bits* source, unsigned batch, unsigned first, unsigned token)
        : rows(args, source, batch, first, token) {
        live = token < args.tokens && threadIdx.x * (W == 1 ? 1 : UNIT) < args.dim;
        if (HELD && live) rows.template sum<W>(args, threadIdx.x * UNIT, v);
    }

    // f(channel, values) for every step of this thread.
    template <class F> __device__ void each(const LearnedArgs& args, F f) {
        if constexpr (HELD) {
            if (live) f(threadIdx.x * UNIT, v);
        } else {
            // Without sums no order has to be kept, and narrow accesses lie side by side.
            unsigned unit = W == 1 && args.norm == NO_NORM ? 1 : UNIT;
            unsigned channel = live ? threadIdx.x * unit : args.dim;
#pragma unroll 1
            while (channel < args.dim) {
                rows.template sum<W>(args, channel, v);
                f(channel, v);
                channel += STEP<W>;
                // A whole unit is done: the next one of this thread.
                if (STEP<W> == UNIT || channel % unit == 0) channel += (blockDim.x - 1) * unit;
            }
        }
    }
};

// Mean and 1 / sqrt(variance + eps) of a row, made in the first two passes over it; the mean is 0 for an RMS norm.
struct Moments {
    float mean = 0.0f, inverse = 1.0f, sum = 0.0f;

    // A thread's part: of the mean in pass 0, of the variance in pass 1.
    template <int W> __device__ void gather(const LearnedArgs& args, int pass, unsigned channel, const float (&v)[STEP<W>]) {
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) {
            bool inside = i < W || channel + i / W * W < args.dim;
            float d = inside ? v[i] - mean : 0.0f;
            sum = pass == 0 ? sum + d : fmaf(d, d, sum);
        }
    }

    // Ends pass 0 or 1. Every thread of the block must come here.
    __device__ void finish(const LearnedArgs& args, int pass) {
        float all = sum_row(sum) * args.share;
        sum = 0.0f;
        if (pass == 0) mean = all;
        else inverse = 1.0f / sqrtf(all + args.eps);
    }
};

// A row is passed over for its mean, for its variance, and for the result.
__device__ inline int first_pass(const LearnedArgs& args) {
    return args.norm == LAYER_NORM ? 0 : args.norm == RMS_NORM ? 1 : 2;
}
