// The rows that a token reads: ids, the position rule, and what happens to ids outside their table.
#pragma once

#include "args.cuh"
#include "common/position.cuh"
#include "embed/row.cuh"

// No token.
constexpr unsigned NONE = 0xffffffffu;

__device__ inline unsigned lane() {
    unsigned lane;
    asm("mov.u32 %0, %laneid;" : "=r"(lane));
    return lane;
}

__device__ inline bool kept(const LearnedArgs& args, long long index) {
    if (args.rule == RowRule::KEPT_BY_MASK) return static_cast<const unsigned char*>(args.mask)[index] != 0;
    return read_id(args.ids, args.id_type, index) != args.padding;
}

// The kept ones among 16 bytes of the mask or of ids.
__device__ inline unsigned count_kept(const LearnedArgs& args, ulonglong2 raw) {
    constexpr unsigned long long LOW = 0x7f7f7f7f7f7f7f7full;
    unsigned count = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        unsigned long long x = i ? raw.y : raw.x;
        if (args.rule == RowRule::KEPT_BY_MASK) {
            count += __popcll((((x & LOW) + LOW) | x) & ~LOW);
        } else if (args.id_type == IdType::I64) {
            count += x != static_cast<unsigned long long>(args.padding);
        } else {
            // A launch with padding beyond 32 bits counts nothing.
            unsigned padding = static_cast<unsigned>(args.padding);
            count += (static_cast<unsigned>(x) != padding) + (static_cast<unsigned>(x >> 32) != padding);
        }
    }
    return count;
}

// What a sequence has before a block's next token.
struct Before {
    // Kept tokens that are counted.
    unsigned kept = 0;
    // -32 if up to 32 tokens are not yet, else 0.
    int begin = 0;
    // This lane's one of those, or none.
    unsigned edge;
};

// Counts the first `end` tokens of a sequence but for the edges of what is aligned to 16 bytes, at most 30 tokens.
// Every thread of the block must come here.
__device__ inline Before count_before(const LearnedArgs& args, unsigned batch, unsigned end) {
    __shared__ unsigned all;
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread == 0) all = 0;
    __syncthreads();
    unsigned shift = args.rule == RowRule::KEPT_BY_MASK ? 0 : args.id_type == IdType::I64 ? 3 : 2;
    const char* from = static_cast<const char*>(args.rule == RowRule::KEPT_BY_MASK ? args.mask : args.ids) +
                       (batch * static_cast<long long>(args.tokens) << shift);
    unsigned head = min((static_cast<unsigned>(-reinterpret_cast<long long>(from)) & 15u) >> shift, end);
    unsigned packs = (end - head) >> (4 - shift);
    const ulonglong2* pack = reinterpret_cast<const ulonglong2*>(from + (head << shift));
    unsigned count = 0;
#pragma unroll 1
    for (unsigned i = thread; i < packs; i += blockDim.x * blockDim.y) count += count_kept(args, pack[i]);
    atomicAdd(&all, count);
    __syncthreads();
    Before before;
    before.kept = all;
    before.begin = -32;
    before.edge = lane() < head ? lane() : lane() + (packs << (4 - shift));
    if (before.edge >= end) before.edge = NONE;
    return before;
}

// f(first, before) for every group of blockDim.y tokens of a sequence from token `first` to `end`, at least one: the
// group's first token and what lies before it, to which f adds the group.
//
// Tokens are counted once, for the first group. So what counting costs in all grows with the number of blocks, and a
// launch that counts gives each of a few blocks many groups.
template <class F> __device__ void each_group(const LearnedArgs& args, unsigned batch, unsigned first, unsigned end,
                                              F f) {
    Before before;
    // At most once in a block: only its first group may stand within a sequence.
    if (args.rule != RowRule::OFFSET && first > 0) before = count_before(args, batch, first);
    end = pinned(end);
#pragma unroll 1
    do {
        f(first, before);
        first += blockDim.y;
    } while (first < end);
}

// The position row of token `at`, one of the group that begins with `first`; `before` gains the tokens of the group.
// Every thread of the block must come here.
__device__ inline long long position_row(const LearnedArgs& args, unsigned batch, unsigned first, unsigned at,
                                         Before& before) {
    Position position(batch * args.at.sequence_stride, 0);
    if (args.rule == RowRule::OFFSET) {
        position = Position(args.at, batch, at);
    } else {
        unsigned own = before.kept, is_kept = 0;
        // What is not counted yet, as if it were the 32 tokens before the group.
#pragma unroll 1
        for (int word = before.begin; word < static_cast<int>(blockDim.y); word += 32) {
            unsigned other = word < 0 ? before.edge : word + lane() < blockDim.y ? first + word + lane() : NONE;
            bool counts = other < args.tokens && kept(args, batch * static_cast<long long>(args.tokens) + other);
            unsigned bits = __ballot_sync(0xffffffffu, counts);
            before.kept += __popc(bits);
            // Shifts by 32 and more leave nothing.
            int lower = static_cast<int>(at - first) - word;
            own += __popc(__funnelshift_lc(0, bits, max(32 - lower, 0)));
            is_kept |= __funnelshift_rc(bits, 0, lower);
        }
        before.begin = 0;
        if (!(is_kept & 1u)) return args.padded;
        position.step = own;
    }
    return args.first + position.value(args.at);
}

// One token's rows; null where there is no table.
struct Rows {
    // Null too for a token with an id outside its table: nothing is read, and its sum is NaN.
    const T::Bits* token;
    const T::Bits *position = nullptr, *type = nullptr;

    // The rows of token `at`, as in position_row. `source` stands in for a token's row where there is no token table.
    // An id outside its table is not followed; the first one, in the order of tokens, is left in `flag`.
    __device__ Rows(const LearnedArgs& args, const T::Bits* source, unsigned batch, unsigned first, unsigned at,
                    Before& before)
        : token(source) {
        long long index = batch * static_cast<long long>(args.tokens) + at;
        // Both are on their way while the position is looked for.
        RawId id, kind;
        if (args.token) id.load(args.id_type, RawId::at(args.ids, args.id_type, index));
        if (args.types) kind.load(args.type_id_type, RawId::at(args.type_ids, args.type_id_type, index));
        long long row = args.position ? position_row(args, batch, first, at, before) : 0;
        bool inside[3] = {true, true, true};
        auto find = [&](const T::Bits*& found, const void* table, long long wanted, long long rows, bool& inside) {
            found = static_cast<const T::Bits*>(table) + wanted * args.dim;
            inside = static_cast<unsigned long long>(wanted) < static_cast<unsigned long long>(rows);
        };
        if (args.token) find(token, args.token, id.value(args.id_type), args.token_rows, inside[0]);
        if (args.position) find(position, args.position, row, args.position_rows, inside[1]);
        if (args.types) find(type, args.types, kind.value(args.type_id_type), args.type_rows, inside[2]);
        if (inside[0] && inside[1] && inside[2]) return;
        token = nullptr;
        unsigned wrong = !inside[0] ? 0 : !inside[1] ? 1 : 2;
        if (threadIdx.x == 0 && args.flag) {
            atomicMin(static_cast<unsigned long long*>(args.flag), static_cast<unsigned long long>(index) << 2 | wrong);
        }
    }

    // A step of the sum, N channels, if there is a row of tokens; without one it is NaN.
    template <int W, int N> __device__ void sum(const LearnedArgs& args, unsigned channel, float (&v)[N]) const {
        RawStep<W, N> raw[3];
        raw[0].load(token, channel, args.dim);
        if (position) raw[1].load(position, channel, args.dim);
        if (type) raw[2].load(type, channel, args.dim);
        sum(args, raw, v);
    }
    // The same from what was loaded of the tables that there are.
    template <int W, int N> __device__ void sum(const LearnedArgs& args, const RawStep<W, N> (&raw)[3],
                                                float (&v)[N]) const {
        float other[N];
        raw[0].open(v);
        if (position) {
            raw[1].open(other);
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = fmaf(v[i], args.scale, other[i]);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = v[i] * args.scale;
        }
        if (type) {
            raw[2].open(other);
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = v[i] + other[i];
        }
    }
    template <int N> static __device__ void fill(float (&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = __int_as_float(0x7fffffff);
    }
};

// f(channel) for every channel of this thread in a row of which it owns every blockDim.x-th unit, or with `spread`
// channel.
template <class F> __device__ void each_channel(unsigned dim, bool spread, F f) {
    unsigned unit = spread ? 1 : UNIT;
    unsigned channel = threadIdx.x * unit;
#pragma unroll 1
    while (channel < dim) {
        f(channel);
        ++channel;
        // A whole unit is done: the next one of this thread.
        if (channel % unit == 0) channel += (blockDim.x - 1) * unit;
    }
}

// Mean and 1 / sqrt(variance + eps) of a row; the mean is 0 for an RMS norm.
struct Moments {
    float mean = 0.0f, inverse = 1.0f, sum = 0.0f;

    // A thread's part: of the mean in pass 0, of the variance in pass 1.
    template <int W> __device__ void gather(const LearnedArgs& args, int pass, unsigned channel,
                                            const float (&v)[STEP<W>]) {
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
        else if (args.norm == NormKind::LAYER) mean = all[0] * args.share;
    }
};

// Makes a row in the first array of `held`, from `sum(channel, at, v)`, and its moments. Every thread of the block must
// come here.
template <class Held, class F>
__device__ Moments hold_row(const LearnedArgs& args, const Rows& rows, unsigned dim, Held held, F sum) {
    Moments moments;
    held.each(dim, [&](unsigned channel, unsigned at) {
        float v[UNIT];
        if (rows.token) {
            sum(channel, at, v);
        } else {
            Rows::fill(v);
        }
        moments.gather<WIDE>(args, 0, channel, v);
        Held::template store<0>(at, v);
    });
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
    return args.norm == NormKind::LAYER ? 0 : args.norm == NormKind::RMS ? 1 : 2;
}
