// The rows that a token reads: ids, the position rule, and what happens to ids outside their table.
#pragma once

#include "args.cuh"
#include "embed/place.cuh"
#include "embed/row.cuh"

enum Rule : unsigned { OFFSET = 0, KEPT_BY_ID = 1, KEPT_BY_MASK = 2 };
enum NormKind : unsigned { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };
enum Which : unsigned { TOKEN = 0, POSITION = 1, TYPE = 2 };

__device__ inline bool kept(const LearnedArgs& args, long long index) {
    if (args.rule == KEPT_BY_MASK) return static_cast<const unsigned char*>(args.mask)[index] != 0;
    return read_id(args.ids, args.id_type, index) != args.padding;
}

// The number of kept tokens before `token` of its sequence, for a block whose first token is `first`. All threads count up
// to that one together, then each goes on alone; every thread of the block must come here.
__device__ inline long long count_kept(const LearnedArgs& args, unsigned batch, unsigned first, unsigned token) {
    __shared__ unsigned counts[8];
    long long sequence = batch * static_cast<long long>(args.tokens);
    unsigned count = 0;
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (unsigned i = thread; i < first; i += blockDim.x * blockDim.y) count += kept(args, sequence + i);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
    if (thread % 32 == 0) counts[thread / 32] = count;
    __syncthreads();
    long long sum = args.positions ? read_id(args.positions, args.position_type, batch * args.sequence_stride) : 0;
#pragma unroll 1
    for (unsigned warp = 0; warp < blockDim.x * blockDim.y / 32; ++warp) sum += counts[warp];
    __syncthreads();
#pragma unroll 1
    for (unsigned i = first; i < min(token, args.tokens); ++i) sum += kept(args, sequence + i);
    return sum;
}

// The position row of a token; `before` counts the kept ones ahead of it.
__device__ inline long long position_row(const LearnedArgs& args, unsigned batch, unsigned token, long long before) {
    if (args.rule == OFFSET) return place(args, batch, token) + args.first;
    return kept(args, batch * static_cast<long long>(args.tokens) + token) ? args.first + before : args.padded;
}

// One token's rows; null where there is no table.
struct Rows {
    const T::Bits *token = nullptr, *position = nullptr, *type = nullptr;
    // No token, or one with an id outside its table: nothing is read, and its sum is NaN.
    bool none = true;

    // A row outside its table is not read. The first one, in the order of tokens, is left in `fault`.
    __device__ const T::Bits* find(const LearnedArgs& args, const void* table, long long row, long long rows, Which which,
                                   long long index) {
        if (row >= 0 && row < rows) return static_cast<const T::Bits*>(table) + row * args.dim;
        none = true;
        if (threadIdx.x == 0 && args.fault) {
            atomicMin(static_cast<unsigned long long*>(args.fault), static_cast<unsigned long long>(index) << 2 | which);
        }
        return nullptr;
    }

    // `source` stands in for a token's row where there is no token table.
    __device__ void look_up(const LearnedArgs& args, const T::Bits* source, unsigned batch, unsigned at, long long before) {
        long long index = batch * static_cast<long long>(args.tokens) + at;
        none = false;
        token = source;
        if (args.token) {
            token = find(args, args.token, read_id(args.ids, args.id_type, index), args.token_rows, TOKEN, index);
        }
        if (args.position) {
            position = find(args, args.position, position_row(args, batch, at, before), args.position_rows, POSITION, index);
        }
        if (args.types) {
            type = find(args, args.types, read_id(args.type_ids, args.type_id_type, index), args.type_rows, TYPE, index);
        }
    }

    template <int W> __device__ void sum(const LearnedArgs& args, unsigned channel, float (&v)[STEP<W>]) const {
        float other[STEP<W>];
        if (none) {
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

// The channels of a row that this thread owns: one unit that it holds in registers (HELD), or every blockDim.x-th unit,
// gathered again for each pass.
template <int W, bool HELD> struct Row {
    const LearnedArgs& args;
    const Rows& rows;
    float v[STEP<W>];

    __device__ Row(const LearnedArgs& args, const Rows& rows) : args(args), rows(rows) {
        if constexpr (HELD) {
            unsigned channel = threadIdx.x * UNIT;
            if (channel < args.dim) rows.template sum<W>(args, channel, v);
        }
    }

    // f(channel, values) for every step of this thread.
    template <class F> __device__ void each(F f) {
        unsigned first = threadIdx.x * UNIT;
        if constexpr (HELD) {
            if (first < args.dim) f(first, v);
        } else {
#pragma unroll 1
            for (; first < args.dim; first += blockDim.x * UNIT) {
                unsigned last = min(first + UNIT, args.dim);
#pragma unroll 1
                for (unsigned channel = first; channel < last; channel += STEP<W>) {
                    rows.template sum<W>(args, channel, v);
                    f(channel, v);
                }
            }
        }
    }
};

// Mean and 1 / sqrt(variance + eps) of a row; the mean is 0 for an RMS norm. Every thread of the block must come here.
struct Moments {
    float mean, inverse;

    template <int W, bool HELD> __device__ Moments(const LearnedArgs& args, Row<W, HELD>& row) {
        float dim = args.dim;
        mean = 0.0f;
        if (args.norm == LAYER_NORM) {
            float sum = 0.0f;
            row.each([&](unsigned, const float(&v)[STEP<W>]) {
#pragma unroll
                for (int i = 0; i < STEP<W>; ++i) sum += v[i];
            });
            mean = sum_row(sum) / dim;
        }
        float square = 0.0f;
        row.each([&](unsigned channel, const float(&v)[STEP<W>]) {
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) {
                float d = channel + i < args.dim ? v[i] - mean : 0.0f;
                square = fmaf(d, d, square);
            }
        });
        inverse = 1.0f / sqrtf(sum_row(square) / dim + args.eps);
    }
};
