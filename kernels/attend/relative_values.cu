// z[b, i, h, :] += sum over keys j of p[b, h, i, j] * table[h or 0, entry(i, j), :]
// dp[b, h, i, j] (+)= sum over channels c of dz[b, i, h, c] * table[h or 0, entry(i, j), c]
//
// p, dp   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// z, dz   [batch, queries, heads, dim] by strides, channels contiguous
// table   [heads or 1, entries, dim] by strides, of f32 or of the tensors' type
//
// A warp has up to four rows of one table. `relative_values`: first the weight of each entry in shared memory, a sum of
// probabilities; then weights times table, channels across lanes, each number of the table read once for four rows.
// `relative_values_grad`: first the product of dz and each entry, then each key takes its entry's. Tables of more than
// 512 entries are walked in tiles. Bytes: each key that has an entry is read, or written, once; with a lookup or
// positions of their own once a tile; beyond 128 channels a table of several tiles reads p again.
#include "attend/relative_values.cuh"

extern __shared__ float4 shared[];

namespace {

// The rows of this warp: `count` of them from `first` on, of one table.
struct Rows {
    unsigned first, count, head;
    // false: a warp beyond the last one
    bool any;
    // lane r: where row r of z or dz lies, and whether it belongs to its sequence
    long long z;
    bool has;
    float4* weights;
    float* rests;

    __device__ explicit Rows(const RelativeValuesArgs& args) {
        unsigned warp = threadIdx.x / 32;
        unsigned index = blockIdx.x * (blockDim.x / 32) + warp;
        any = index < args.warps;
        if (!any) index = 0;
        unsigned group = divide(index, args.by_group);
        unsigned own = (index - group * args.group_warps) * args.rows;
        first = group * args.group_rows + own;
        count = min(args.rows, args.group_rows - own);
        Row row(args.bias, first + min(threadIdx.x % 32, count - 1));
        z = row.batch * args.z_strides[0] + row.query * args.z_strides[1] + row.head * args.z_strides[2];
        head = row.head;
        has = row.any;
        weights = shared + warp * args.tile * (args.bins ? 2 : 1);
        rests = reinterpret_cast<float*>(weights + args.tile);
    }

    __device__ Tile tile(const RelativeValuesArgs& args, unsigned low, unsigned row) const {
        unsigned count = min(args.tile, static_cast<unsigned>(args.term.entries) - low);
        return {low, count, reinterpret_cast<float*>(weights) + row, rests + row, ROWS};
    }
};

// Weights of all rows of the warp.
__device__ __forceinline__ void weigh(const RelativeValuesArgs& args, const Rows& rows, unsigned low) {
    __syncwarp();
#pragma unroll 1
    for (unsigned r = 0; r < ROWS; ++r) {
        Tile tile = rows.tile(args, low, r);
        if (r >= rows.count) {
            tile.clear(false);
            continue;
        }
        Row row(args.bias, rows.first + r);
        const T::Bits* p = static_cast<const T::Bits*>(args.p) + row.offset(args.p_strides);
        gather(p, args.aligned, args.bins, RowKeys(args.bias, args.term, row), tile);
    }
    __syncwarp();
}

// acc[r] += weight of row r * table. An entry without weight adds nothing, whatever the table holds.
__device__ __forceinline__ void accumulate(const RelativeValuesArgs& args, const Rows& rows, unsigned low,
                                           unsigned channel, float (&acc)[ROWS][OWN]) {
    unsigned count = rows.tile(args, low, 0).count;
#pragma unroll 1
    for (unsigned e = 0; e < count; ++e) {
        float4 all = rows.weights[e];
        float w[ROWS] = {all.x, all.y, all.z, all.w};
        if (w[0] == 0.0f && w[1] == 0.0f && w[2] == 0.0f && w[3] == 0.0f) continue;
#pragma unroll
        for (unsigned k = 0; k < OWN; ++k) {
            if (channel + 32 * k >= args.dim) break;
            float a = table_number(args.term, args.channel_stride, rows.head, low + e, channel + 32 * k);
#pragma unroll
            for (unsigned r = 0; r < ROWS; ++r) acc[r][k] = w[r] == 0.0f ? acc[r][k] : fmaf(w[r], a, acc[r][k]);
        }
    }
}

// The sums over all lanes of four numbers: lane l gets that of number l / 8.
__device__ __forceinline__ float sum_rows(const float (&x)[ROWS]) {
    unsigned lane = threadIdx.x % 32;
    bool upper = lane & 16;
    float a = upper ? x[2] : x[0], b = upper ? x[3] : x[1];
    a += __shfl_xor_sync(ALL_LANES, upper ? x[0] : x[2], 16);
    b += __shfl_xor_sync(ALL_LANES, upper ? x[1] : x[3], 16);
    bool odd = lane & 8;
    float y = odd ? b : a;
    y += __shfl_xor_sync(ALL_LANES, odd ? a : b, 8);
#pragma unroll
    for (int apart = 4; apart; apart /= 2) y += __shfl_xor_sync(ALL_LANES, y, apart);
    return y;
}

// The products of dz and the entries of a tile, in place of weights.
__device__ __forceinline__ void multiply(const RelativeValuesArgs& args, const Rows& rows, unsigned low) {
    unsigned lane = threadIdx.x % 32, count = rows.tile(args, low, 0).count;
    float* products = reinterpret_cast<float*>(rows.weights);
#pragma unroll 1
    for (unsigned first = 0; first < args.dim; first += CHANNELS) {
        unsigned channel = first + lane;
        float dz[ROWS][OWN];
#pragma unroll
        for (unsigned r = 0; r < ROWS; ++r) {
            const T::Bits* at = static_cast<const T::Bits*>(args.dz) + __shfl_sync(ALL_LANES, rows.z, r);
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) {
                dz[r][k] = channel + 32 * k < args.dim ? T::widen(at[channel + 32 * k]) : 0.0f;
            }
        }
#pragma unroll 1
        for (unsigned e = 0; e < count; ++e) {
            float sums[ROWS] = {};
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) {
                if (channel + 32 * k >= args.dim) break;
                float a = table_number(args.term, args.channel_stride, rows.head, low + e, channel + 32 * k);
#pragma unroll
                for (unsigned r = 0; r < ROWS; ++r) sums[r] = fmaf(dz[r][k], a, sums[r]);
            }
            float sum = sum_rows(sums);
            if (lane % 8 == 0) {
                float* at = products + e * ROWS + lane / 8;
                *at = first == 0 ? sum : *at + sum;
            }
        }
    }
}

// Eight keys of dp from `x`: those of `mask`.
__device__ __forceinline__ void put_keys(const RelativeValuesArgs& args, T::Bits* at, unsigned mask, float (&x)[KEYS]) {
    constexpr unsigned ALL = (1u << KEYS) - 1;
    if (mask == ALL) {
        if (args.add) {
            float old[KEYS];
            load_keys(at, KEYS, args.aligned, 0.0f, old);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) x[i] += old[i];
        }
        store_keys(at, KEYS, args.aligned, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
        if (mask >> i & 1) at[i] = T::narrow(args.add ? T::widen(at[i]) + x[i] : x[i]);
    }
}

// Gives each key of a row its entry's product. A key without one gets 0 where dp is written.
__device__ __forceinline__ void scatter(const RelativeValuesArgs& args, const RowKeys& keys, const Tile& tile,
                                        T::Bits* dp) {
    const TermArgs& term = args.term;
    const Row& row = keys.row;
    unsigned lane = threadIdx.x % 32;
    int from, to;
    if (args.add) {
        keys.range(tile, !term.zero_outside, row.first, row.keys, from, to);
    } else {
        keys.range(tile, true, 0, static_cast<int>(args.bias.keys), from, to);
    }
#pragma unroll 1
    for (unsigned pack = (from & ~(KEYS - 1)) + lane * KEYS; pack < static_cast<unsigned>(to); pack += 32 * KEYS) {
        float x[KEYS];
        unsigned mask = 0;
        int distance = keys.distance(pack);
#pragma unroll
        for (int i = 0; i < KEYS; ++i, distance += keys.step) {
            int key = static_cast<int>(pack) + i;
            int near = max(0, min(distance, term.count - 1));
            bool there = key >= from && key < to;
            bool has = key >= row.first && key < row.keys && (!term.zero_outside || near == distance);
            x[i] = there && has ? tile.at[(near - tile.low) * tile.step] : 0.0f;
            mask |= static_cast<unsigned>(there) << i;
        }
        put_keys(args, dp + pack, mask, x);
    }
}

// The same with a lookup, or where positions are given one by one.
__device__ __forceinline__ void scatter_each(const RelativeValuesArgs& args, const RowKeys& keys, const Tile& tile,
                                             T::Bits* dp) {
    const Row& row = keys.row;
#pragma unroll 1
    for (unsigned key = threadIdx.x % 32; key < args.bias.keys; key += 32) {
        bool there = static_cast<int>(key) >= row.first && static_cast<int>(key) < row.keys;
        int entry = there ? keys.entry(static_cast<int>(key)) : -1;
        if (entry < 0) {
            if (!args.add && tile.low == 0) dp[key] = T::narrow(0.0f);
        } else if (static_cast<unsigned>(entry) - tile.low < tile.count) {
            float x = tile.at[(entry - tile.low) * tile.step];
            dp[key] = T::narrow(args.add ? T::widen(dp[key]) + x : x);
        }
    }
}

}  // namespace

extern "C" __global__ void KERNEL(relative_values) {
    wait_for_predecessor();
    Rows rows(args);
    if (!rows.any) return;
    unsigned entries = static_cast<unsigned>(args.term.entries);
    bool once = entries <= args.tile;
    if (once) weigh(args, rows, 0);
#pragma unroll 1
    for (unsigned first = 0; first < args.dim; first += CHANNELS) {
        unsigned channel = first + threadIdx.x % 32;
        float acc[ROWS][OWN] = {};
#pragma unroll 1
        for (unsigned low = 0; low < entries; low += args.tile) {
            if (!once) weigh(args, rows, low);
            accumulate(args, rows, low, channel, acc);
        }
#pragma unroll
        for (unsigned r = 0; r < ROWS; ++r) {
            T::Bits* z = static_cast<T::Bits*>(args.z) + __shfl_sync(ALL_LANES, rows.z, r);
            if (!__shfl_sync(ALL_LANES, rows.has, r) || r >= rows.count) continue;
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) {
                unsigned c = channel + 32 * k;
                if (c < args.dim) z[c] = T::narrow(T::widen(z[c]) + acc[r][k]);
            }
        }
    }
}

extern "C" __global__ void KERNEL(relative_values_grad) {
    wait_for_predecessor();
    Rows rows(args);
    if (!rows.any) return;
#pragma unroll 1
    for (unsigned low = 0; low < static_cast<unsigned>(args.term.entries); low += args.tile) {
        __syncwarp();
        multiply(args, rows, low);
        __syncwarp();
#pragma unroll 1
        for (unsigned r = 0; r < rows.count; ++r) {
            Row row(args.bias, rows.first + r);
            RowKeys keys(args.bias, args.term, row);
            T::Bits* dp = static_cast<T::Bits*>(args.dp) + row.offset(args.p_strides);
            if (args.bins) {
                scatter_each(args, keys, rows.tile(args, low, r), dp);
            } else {
                scatter(args, keys, rows.tile(args, low, r), dp);
            }
        }
    }
}
