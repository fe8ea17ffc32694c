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
#pragma unroll 1
        for (unsigned warp = 0; warp < threads / 32; ++warp) own.before += counts[warp];
        __syncthreads();
    }
    return own;
}

// The position row of a token, for a block whose first token is `first`; every thread of the block must come here.
__device__ inline long long position_row(const LearnedArgs& args, unsigned batch, unsigned first, unsigned token) {
    long long index = batch * args.sequence_stride, step = 0;
    if (args.rule == OFFSET) {
        if (token < args.tokens) locate(args, batch, token, index, step);
    } else {
        Counted counted = count_kept(args, batch, first, token);
        if (!counted.kept) return args.padded;
        step = counted.before;
    }
    if (args.positions) step += read_id(args.positions, args.position_type, index);
    return args.first + step;
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

    // A step of the sum, if there is a row of tokens; without one it is NaN.
    template <int W> __device__ void sum(const LearnedArgs& args, unsigned channel, float (&v)[STEP<W>]) const {
        float other[STEP<W>];
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
    template <int N> static __device__ void fill(float (&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = __int_as_float(0x7fffffff);
    }
};

// f(channel) for every step of this thread in a row of which it owns every blockDim.x-th unit, or with `spread` channel.
template <int W, class F> __device__ void each_step(unsigned dim, bool spread, F f) {
    unsigned unit = W == 1 && spread ? 1 : UNIT;
    unsigned channel = threadIdx.x * unit;
#pragma unroll 1
    while (channel < dim) {
        f(channel);
        channel += STEP<W>;
        // A whole unit is done: the next one of this thread.
        if (STEP<W> == UNIT || channel % unit == 0) channel += (blockDim.x - 1) * unit;
    }
}

// Mean and 1 / sqrt(variance + eps) of a row; the mean is 0 for an RMS norm.
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
        float all[1] = {sum};
        sum_row(all);
        sum = 0.0f;
        if (pass == 1) inverse = 1.0f / sqrtf(all[0] * args.share + args.eps);
        else if (args.norm == LAYER_NORM) mean = all[0] * args.share;
    }
};

// Gathers a row into the first array of `held` and makes its moments. Every thread of the block must come here.
template <class Held> __device__ Moments hold_row(const LearnedArgs& args, const Rows& rows, unsigned dim, Held held) {
    Moments moments;
    if (rows.token) {
        held.each(dim, [&](unsigned channel, unsigned at) {
            float v[UNIT];
            rows.sum<WIDE>(args, channel, v);
            moments.gather<WIDE>(args, 0, channel, v);
            Held::template store<0>(at, v);
        });
    } else {
        held.each(dim, [&](unsigned, unsigned at) {
            float v[UNIT];
            Rows::fill(v);
            Held::template store<0>(at, v);
        });
    }
    moments.finish(args, 0);
    held.each(dim, [&](unsigned channel, unsigned at) {
        float v[UNIT];
        Held::template load<0>(at, v);
        moments.gather<WIDE>(args, 1, channel, v);
    });
    moments.finish(args, 1);
    return moments;
}

// Passes over a row that is not held: for its mean, for its variance, and for results.
__device__ inline int first_pass(const LearnedArgs& args) {
    return args.norm == LAYER_NORM ? 0 : args.norm == RMS_NORM ? 1 : 2;
}
