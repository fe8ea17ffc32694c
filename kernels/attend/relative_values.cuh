// Keys of a row by their entry of a table of relative positions.
//
// Where keys follow one another and each distance has an entry of its own, the keys of an entry between the ends are
// one, and those of the ends are ranges: `follow`. With a lookup or positions of their own, keys are added to bins.
#pragma once
#include "bias/bins.cuh"
#include "bias/terms.cuh"
#include "common/keys.cuh"

// Rows of a warp: their weights of an entry are one access of shared memory.
constexpr unsigned ROWS = VALUE_ROWS;
static_assert(ROWS == 4, "a float4");
// Channels of a lane, and of all lanes: lane l has l, l + 32, ...
constexpr unsigned OWN = 4;
constexpr unsigned CHANNELS = VALUE_CHANNELS;
static_assert(CHANNELS == 32 * OWN, "channels of a warp");

// The part of a table that a warp works on: the entries from `low` on, `count` of them; and where the weight of an
// entry lies.
struct Tile {
    unsigned low, count;
    float* at;
    // of compensation, for bins alone
    float* rests;
    // from one entry to the next
    unsigned step;

    __device__ void clear(bool bins) const {
#pragma unroll 1
        for (unsigned i = threadIdx.x % 32; i < count; i += 32) {
            at[i * step] = 0.0f;
            if (bins) rests[i * step] = 0.0f;
        }
    }
};

// One row's keys.
struct RowKeys {
    const BiasArgs& bias;
    const TermArgs& term;
    const Row& row;
    // where keys follow one another: key j has the distance start + j * step, counted from the first one with an entry
    long long start;
    int step;

    __device__ RowKeys(const BiasArgs& bias, const TermArgs& term, const Row& row) : bias(bias), term(term), row(row) {
        step = term.reversed ? -1 : 1;
        start = step * (static_cast<long long>(row.key_start) - row.at) - term.first;
    }

    // The keys from `first` to below `end` whose nearest entry is one of the tile; without `clamp` those beyond the
    // table have none.
    __device__ void range(const Tile& tile, bool clamp, int first, int end, int& from, int& to) const {
        constexpr long long FAR = 1ll << 40;
        long long low = tile.low, high = low + tile.count - 1;
        if (clamp && low == 0) low = -FAR;
        if (clamp && high == term.count - 1) high = FAR;
        long long begin = step > 0 ? low - start : start - high;
        long long behind = (step > 0 ? high - start : start - low) + 1;
        from = static_cast<int>(max(first + 0ll, min(begin, end + 0ll)));
        to = static_cast<int>(max(first + 0ll, min(behind, end + 0ll)));
    }

    // The distance of a key as `start` counts it, which may stop 16 beyond the table.
    __device__ int distance(unsigned key) const {
        constexpr long long FAR = (1ll << 30) + 16;
        return static_cast<int>(max(-FAR, min(start + step * static_cast<long long>(key), FAR)));
    }

    // The entry of a key, wherever it is; -1: none.
    __device__ int entry(int key) const {
        int position = bias.key_positions ? row.key_positions(bias)[key] : row.key_start + key;
        return entry_by_distance(term, row.at, position);
    }
};

// Weights of the entries of a tile: sums of the probabilities `p` of a row. All lanes of a warp; a barrier must follow.
//
// A lane takes eight neighbouring keys, counted from the tensor's first, so that the order of a sum does not depend on
// the alignment. Zeros are left out: keys behind those with a weight change no bit.
__device__ __forceinline__ void follow(const T::Bits* p, bool wide, const RowKeys& keys, const Tile& tile) {
    const TermArgs& term = keys.term;
    unsigned lane = threadIdx.x % 32;
    int from, to, last = max(term.count - 1, 1);
    keys.range(tile, !term.zero_outside, keys.row.first, keys.row.keys, from, to);
    Sum ends[2];
#pragma unroll 1
    for (unsigned pack = (from & ~(KEYS - 1)) + lane * KEYS; pack < static_cast<unsigned>(to); pack += 32 * KEYS) {
        float x[KEYS], low[KEYS], high[KEYS];
        load_keys(p + pack, min(KEYS, static_cast<int>(keys.bias.keys - pack)), wide, 0.0f, x);
        int distance = keys.distance(pack);
#pragma unroll
        for (int i = 0; i < KEYS; ++i, distance += keys.step) {
            int key = static_cast<int>(pack) + i;
            bool there = key >= from && key < to;
            low[i] = there && distance <= 0 ? x[i] : 0.0f;
            high[i] = there && distance >= last ? x[i] : 0.0f;
            if (there && distance > 0 && distance < last) tile.at[(distance - tile.low) * tile.step] = x[i];
        }
        float sum = sum_pack(low);
        if (sum != 0.0f) ends[0].add(sum);
        sum = sum_pack(high);
        if (sum != 0.0f) ends[1].add(sum);
    }
    float low = warp_sum(ends[0].total), high = warp_sum(ends[1].total);
    if (lane == 0) {
        if (tile.low == 0) tile.at[0] = low;
        if (tile.low + tile.count == static_cast<unsigned>(term.count)) {
            tile.at[(tile.count - 1) * tile.step] = term.count == 1 ? low + high : high;
        }
    }
}

// The same with a lookup, or where positions are given one by one.
__device__ __forceinline__ void collect(const T::Bits* p, const RowKeys& keys, const Tile& tile) {
    Bins<1> bins{tile.at, tile.rests};
#pragma unroll 1
    for (unsigned first = keys.row.first; first < static_cast<unsigned>(keys.row.keys); first += 32) {
        int key = static_cast<int>(first + threadIdx.x % 32);
        float x[1] = {0.0f};
        int bin = -1;
        if (key < keys.row.keys) {
            int entry = keys.entry(key);
            x[0] = T::widen(p[key]);
            bool own = entry >= 0 && entry - static_cast<int>(tile.low) >= 0;
            if (own && static_cast<unsigned>(entry) - tile.low < tile.count && x[0] != 0.0f) {
                bin = static_cast<int>((entry - tile.low) * tile.step);
            }
        }
        bins.add(bin, x);
    }
}

__device__ __forceinline__ void gather(const T::Bits* p, bool wide, bool bins, const RowKeys& keys, const Tile& tile) {
    tile.clear(bins);
    __syncwarp();
    if (bins) {
        collect(p, keys, tile);
    } else {
        follow(p, wide, keys, tile);
    }
}

// Element (channel, head, entry) of the table.
__device__ __forceinline__ float table_number(const TermArgs& term, long long channel_stride, unsigned head,
                                              unsigned entry, unsigned channel) {
    long long index = head * term.strides[1] + entry * term.strides[4] + channel * channel_stride;
    return TermsBias::number(term, term.values, index);
}
