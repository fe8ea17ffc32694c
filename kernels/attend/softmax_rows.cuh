// The softmax of softmax.cuh for rows of one chunk that stay in registers: scale, and a slope for each side or nothing.
//
// LANES threads have a row and PACKS packs of 16 bytes each, LANES packs apart, both fixed at compile time, so that all
// accesses lie at constant distances from one address and a warp's are 512 bytes in a row: each sector is read and
// written once. FULL: every key is seen and there is a key for each place. Otherwise whole warps pass over packs of
// which no key is seen, and packs at an edge are masked. Shared memory serves the meetings of a block's warps alone.
//
// The bits are those of softmax.cuh. Rows whose largest z is far from 0 or no number, whose slope masks a side, or
// whose query is 2^23 positions away go another way: from memory, one pack after another.
#pragma once
#include "attend/power.cuh"
#include "bias/forms.cuh"
#include "common/barrier.cuh"
#include "common/keys.cuh"
#include "common/reduce.cuh"

// Threads of a block of several rows.
constexpr int SMALL_BLOCK = 128;

template <int LANES> struct TeamSpace {
    int max[LANES / 32];
    float sum[LANES];
};
template <> struct TeamSpace<16> {};
template <> struct TeamSpace<32> {};

// The sums and maxima of Team in reduce.cuh, for a number of lanes that is known.
template <int LANES> struct FixedTeam {
    TeamSpace<LANES>& space;

    // A call of `sum` or a barrier must lie between two calls.
    __device__ __forceinline__ int max(int most) const {
        if constexpr (LANES < 32) {
#pragma unroll
            for (int apart = LANES / 2; apart; apart /= 2) most = ::max(most, __shfl_xor_sync(ALL_LANES, most, apart));
        } else {
            most = warp_max(most);
        }
        if constexpr (LANES > 32) {
            if (threadIdx.x % 32 == 0) space.max[threadIdx.x / 32] = most;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < LANES / 32; ++i) most = ::max(most, space.max[i]);
        }
        return most;
    }

    // A call of `max` or a barrier must lie between two calls.
    __device__ __forceinline__ float sum(float x) const {
        if constexpr (LANES > 32) {
            space.sum[threadIdx.x] = x;
            __syncthreads();
            float warp[LANES / 32];
#pragma unroll
            for (int i = 0; i < LANES / 32; ++i) warp[i] = space.sum[threadIdx.x % 32 + 32 * i];
            x = tree(warp);
        }
#pragma unroll
        for (int apart = (LANES < 32 ? LANES : 32) / 2; apart; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
        return x;
    }

    // The numbers that are farthest apart first.
    template <int N> static __device__ __forceinline__ float tree(const float (&x)[N]) {
        if constexpr (N == 1) {
            return x[0];
        } else {
            float half[N / 2];
#pragma unroll
            for (int i = 0; i < N / 2; ++i) half[i] = x[i] + x[i + N / 2];
            return tree(half);
        }
    }
};

// One row: where it lies, which keys it sees, and its line.
template <int LANES, bool FULL> struct RowInRegisters {
    unsigned row, batch, head, query;
    bool live, any;
    // keys from `low` to below `high` are seen
    int low, high;
    // distance of key 0, or its position where that is all the bias knows
    int shift;
    float left, right;

    __device__ __forceinline__ explicit RowInRegisters(const SoftmaxArgs& args) {
        const BiasArgs& bias = args.bias;
        row = LANES > 32 ? blockIdx.x : blockIdx.x * (SMALL_BLOCK / LANES) + threadIdx.x / LANES;
        // More than a warp are a block, and there are as many of these as rows.
        live = LANES > 32 || row < args.team.rows;
        // Beside a live row of its warp it reads that row's numbers, before they are written.
        if (LANES < 32 && !live) row = args.team.rows - 1;
        head = divide(row, bias.by_queries);
        query = row - head * bias.queries;
        batch = divide(head, bias.by_heads);
        head -= batch * bias.heads;
        int queries = bias.queries;
        low = 0, high = bias.keys, any = true;
        if (!FULL) {
            const int* query_lengths = static_cast<const int*>(bias.query_lengths);
            const int* key_lengths = static_cast<const int*>(bias.key_lengths);
            if (query_lengths) queries = max(0, min(queries, query_lengths[batch]));
            if (key_lengths) high = max(0, min(high, key_lengths[batch]));
            any = static_cast<int>(query) < queries;
        }
        int at = (bias.last ? high - queries : bias.query_start) + static_cast<int>(query);
        const int* positions = static_cast<const int*>(bias.query_positions);
        if (positions) at = positions[static_cast<long long>(batch) * bias.queries + query];
        if (!FULL) {
            if (!any) high = 0;
            // 64 bits: positions lie within 2^30, and a window may be as wide as 2^31.
            long long own = static_cast<long long>(at) - bias.key_start;
            if (args.law.left != 0x7fffffff)
                low = static_cast<int>(max(0ll, min(own - args.law.left, static_cast<long long>(high))));
            if (args.law.right != 0x7fffffff)
                high = static_cast<int>(
                    max(static_cast<long long>(low), min(own + args.law.right + 1, static_cast<long long>(high))));
        }
        shift = bias.key_start - (bias.key_only ? 0 : at);
        left = right = 0.0f;
        if (bias.kind == BiasKind::SLOPES) {
            long long index = static_cast<long long>(batch) * bias.slopes_stride + head;
            left = static_cast<const float*>(bias.values)[index];
            right = static_cast<const float*>(bias.more)[index];
        }
    }

    __device__ __forceinline__ long long offset(const long long (&strides)[3]) const {
        return batch * strides[0] + head * strides[1] + query * strides[2];
    }

    // -inf: the row has none.
    __device__ float sink(const SoftmaxArgs& args) const {
        const float* sinks = static_cast<const float*>(args.sinks);
        return sinks && any ? sinks[head] : -infinity();
    }
};

// A row of which something is out of the ordinary, three times from memory: for its largest, its sum, and to be
// written.
template <int LANES, int PACKS, bool FULL>
__device__ __forceinline__ void careful_row(const SoftmaxArgs& args, const RowInRegisters<LANES, FULL>& row,
                                            FixedTeam<LANES> team) {
    const T::Bits* x = static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides);
    T::Bits* y = static_cast<T::Bits*>(args.y) + row.offset(args.y_strides);
    // As in softmax.cuh: finite logits below the range of f32 are all alike, and seen keys of a row without a number
    // are NaN.
    bool small = false;
    float mark = 1.0f, largest = 0.0f;
    Powers powers(0.0f);
    Part whole = {0.0f, 0.0f};
    Shares shares(whole, 0.0f);
#pragma unroll 1
    for (int pass = 0; pass < 3;) {
        float log2e = small ? LOG2E / 256.0f : LOG2E;
        float past = row.left * log2e, future = -row.right * log2e, scale = args.law.scale * log2e;
        float most = -infinity(), part = 0.0f, waits[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        // In the order of the reversed bits of their index, so that a tree's neighbours follow one another.
#pragma unroll 1
        for (unsigned j = 0; j < PACKS; ++j) {
            int k = PACKS == 1 ? 0 : static_cast<int>(__brev(j) / (0x80000000u / (PACKS > 1 ? PACKS / 2 : 1)));
            int key = (k * LANES + static_cast<int>(threadIdx.x % LANES)) * WIDE;
            bool seen = row.live && key < row.high && key + WIDE > row.low;
            float z[WIDE];
            if (seen) {
                unpack(Pack<WIDE>::load(x + key), z);
                int from = row.shift + key;
                float start = static_cast<float>(from);
#pragma unroll
                for (int i = 0; i < WIDE; ++i) {
                    float slope = from + i > 0 ? future : past;
                    float bias = SlopesBias::along(slope, i, start);
                    // An infinite slope masks its side.
                    if (!(fabsf(slope) < infinity())) {
                        bias = from + i == 0 ? 0.0f : slope * static_cast<float>(from + i);
                    }
                    z[i] = key + i < row.low || key + i >= row.high ? -infinity() : fmaf(z[i], scale, bias);
                }
                if (pass == 0) most = max_nan(most, max_pack(z));
            }
            if (pass == 0) continue;
#pragma unroll
            for (int i = 0; i < WIDE; ++i) {
                if (!seen) {
                    z[i] = 0.0f;
                } else if (small) {
                    z[i] = z[i] == -infinity() ? 0.0f : mark;
                } else {
                    z[i] = powers.of(powers.base != 0.0f ? z[i] - powers.base : z[i]);
                }
            }
            if (pass == 2) {
#pragma unroll
                for (int i = 0; i < WIDE; ++i) z[i] = seen ? shares.of(z[i]) : 0.0f;
                if (row.live && key < static_cast<int>(args.bias.keys)) store_wide(y + key, pack(z).raw);
                continue;
            }
            part = FixedTeam<LANES>::tree(z);
            // As digits of j carry: each sum waits for its neighbour, which has a digit of 1 where it has 0.
            if (j & 1) {
                part += waits[0];
                if (j & 2) {
                    part += waits[1];
                    if (j & 4) {
                        part += waits[2];
                        if (j & 8) part += waits[3];
                        waits[3] = part;
                    } else {
                        waits[2] = part;
                    }
                } else {
                    waits[1] = part;
                }
            } else {
                waits[0] = part;
            }
        }
        if (pass == 0) {
            if constexpr (LANES > 32) __syncthreads();
            largest = from_ordered(team.max(ordered(most)));
            bool low = largest == -infinity() && !small && row.low < row.high;
            small |= low;
            if (__any_sync(ALL_LANES, low)) continue;
            float m = largest > -infinity() && largest < infinity() ? rintf(largest) : 0.0f;
            if (small) m = largest == -infinity() ? 0.0f : -LARGEST;
            whole.max = m;
            powers = Powers(m);
        } else if (pass == 1) {
            float m = whole.max, total = team.sum(part);
            whole = part_of_sink(row.sink(args));
            whole.add({m, largest < infinity() ? total : __int_as_float(0x7fffffff)});
            shares = Shares(whole, m);
            if (whole.sum != whole.sum) {
                small = true, mark = __int_as_float(0x7fffffff);
                shares = Shares({0.0f, 1.0f}, 0.0f);
            }
        }
        ++pass;
    }
    if (args.lse && row.live && threadIdx.x % LANES == 0) {
        static_cast<float*>(args.lse)[row.row] = whole.log(row.sink(args));
    }
}

template <int LANES, int PACKS, bool FULL> __device__ __forceinline__ void softmax_rows(const SoftmaxArgs& args) {
    constexpr int STEP = LANES * WIDE;
    // Keys of a warp's access.
    constexpr int WARP = (LANES < 32 ? LANES : 32) * WIDE;
    __shared__ TeamSpace<LANES> space;
    FixedTeam<LANES> team{space};
    // A warp without a row; blocks of more than a warp a row have one each.
    if (LANES <= 32 && blockIdx.x * (SMALL_BLOCK / LANES) + (threadIdx.x & ~31u) / LANES >= args.team.rows) return;
    wait_for_predecessor();
    RowInRegisters<LANES, FULL> row(args);
    const int lane = threadIdx.x % LANES, key = lane * WIDE, keys = args.bias.keys;
    const int low = row.low, high = row.high;

    // Of the warp: packs of which a key may be seen, and those whose keys all are.
    unsigned some = 0, all = 0;
    if (!FULL) {
        int least = low, most = high, inner_low = low, inner_high = high;
        if (LANES < 32) {
            // Two rows: both take what one of them needs.
            int other_low = __shfl_xor_sync(ALL_LANES, low, 16), other_high = __shfl_xor_sync(ALL_LANES, high, 16);
            least = min(low, other_low), most = max(high, other_high);
            inner_low = max(low, other_low), inner_high = min(high, other_high);
        }
        int first = LANES < 32 ? 0 : (lane & ~31) * WIDE;
        // How many packs of the warp begin below a key.
        auto below = [&](int limit) { return limit > first ? min((limit - first + STEP - 1) / STEP, PACKS) : 0; };
        auto from_to = [](int from, int to) { return to > from ? (1u << to) - (1u << from) : 0u; };
        if (most > least) some = from_to(below(least - WARP + 1), below(most));
        all = from_to(below(inner_low), below(inner_high - WARP + 1)) & some;
    }
    auto is_seen = [&](int k) { return FULL || (some >> k & 1); };
    auto is_whole = [&](int k) { return FULL || (all >> k & 1); };

    const T::Bits* x = static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides) + key;
    Pack<WIDE> raw[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        if (is_whole(k)) {
            raw[k] = Pack<WIDE>::load(x + k * STEP);
        } else if (is_seen(k)) {
            raw[k].raw = make_uint4(0, 0, 0, 0);
            int begin = key + k * STEP;
            if (begin < high && begin + WIDE > low) raw[k] = Pack<WIDE>::load(x + k * STEP);
        }
    }
    // Threads without a row read that of others, which write it.
    if (LANES < 32) __syncwarp();
    const float scale = args.law.scale * LOG2E, past = row.left * LOG2E, future = -row.right * LOG2E;
    // Within, the distance of each pack's first key is a float plus a constant.
    constexpr int FAR = 1 << 23;
    bool careful = static_cast<unsigned>(row.shift) + FAR > 2 * FAR - CHUNK;

    float z[PACKS][WIDE];
    float most = -infinity();
    const float from = static_cast<float>(row.shift + key);
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        if (!is_seen(k)) continue;
        float start = from + static_cast<float>(k * STEP);
        float slope = start > 0.0f ? future : past;
        float v[WIDE];
        unpack(raw[k], v);
#pragma unroll
        for (int i = 0; i < WIDE; ++i) z[k][i] = fmaf(v[i], scale, SlopesBias::along(slope, i, start));
        if (start <= 0.0f && start > -static_cast<float>(WIDE - 1)) {
            // The query's own position is inside, or before the last key.
#pragma unroll
            for (int i = 1; i < WIDE; ++i) {
                float behind = fmaf(v[i], scale, SlopesBias::along(future, i, start));
                z[k][i] = start + static_cast<float>(i) > 0.0f ? behind : z[k][i];
            }
        }
        if (!is_whole(k)) {
            int begin = key + k * STEP;
#pragma unroll
            for (int i = 0; i < WIDE; ++i) z[k][i] = begin + i < low || begin + i >= high ? -infinity() : z[k][i];
        }
        most = max_nan(most, max_pack(z[k]));
    }
    // Rounded by a sum, whose bits have the order of integers where z is near, and which is beyond where it is not. An
    // infinite slope gives NaN: times 0, or less infinity.
    constexpr float MOST = NEAR - 1.0f;
    const float m = __int_as_float(team.max(__float_as_int(max_nan(most, -MOST) + ROUND))) - ROUND;
    careful |= !(fabsf(m) < MOST);
    if (LANES < 32 ? __any_sync(ALL_LANES, careful) : careful) {
        careful_row<LANES, PACKS>(args, row, team);
        return;
    }

    const Powers powers = Powers::near(m);
    float parts[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        parts[k] = 0.0f;
        if (!is_seen(k)) continue;
#pragma unroll
        for (int i = 0; i < WIDE; ++i) z[k][i] = powers.of(z[k][i]);
        parts[k] = FixedTeam<LANES>::tree(z[k]);
    }
    float total = team.sum(FixedTeam<LANES>::tree(parts));
    Part whole = {m, total};
    Shares shares(total);
    if (args.sinks) {
        whole = part_of_sink(row.sink(args));
        whole.add({m, total});
        shares = Shares(whole, m);
    }
    if (LANES < 32 && !row.live) return;
    T::Bits* y = static_cast<T::Bits*>(args.y) + row.offset(args.y_strides) + key;
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
        Pack<WIDE> out{make_uint4(0, 0, 0, 0)};
        if (is_seen(k)) {
            float p[WIDE];
#pragma unroll
            for (int i = 0; i < WIDE; ++i) p[i] = shares.of(z[k][i]);
            out = pack(p);
        }
        if (FULL || key + k * STEP < keys) store_wide(y + k * STEP, out.raw);
    }
    if (args.lse && lane == 0) static_cast<float*>(args.lse)[row.row] = whole.log(row.sink(args));
}
