// out[b, h, row, entry] = factor * sum over the pairs (b, h, i, j) that read the number of grad[b, h, i, j] * gate[b,
// h, i]
//
// grad   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// out    f32 by strides in elements; a batch or head dimension of 1 sums over sequences or heads, its members
// sums   f32 [items, parts, numbers of an item]: partial sums of blocks that share an item
//
//     table     a number for all queries and keys       a warp walks rows: bins of entries in shared memory
//     queries   a row of numbers for each query         a warp owns the row: bins of its entries
//     keys      a row of numbers for each key           a block owns 8 to 32 keys: tiles of grad, transposed in shared
//                                                       memory, then bins of each key
//     columns   a number for each key                   a lane owns eight keys, a warp walks every eighth row
//     whole     a number for each query and key         a thread owns eight keys and adds members
//
// Rows of more entries than shared memory has bins for are cut into chunks: a warp or block computes entries first and
// loads grad for those of its chunk alone. Every sum has one order, which follows from the shape; no number is added by
// an atomic. grad is read once, with chunks once for each chunk that a sector has entries of.
#include "bias/bins.cuh"
#include "bias/terms.cuh"
#include "common/barrier.cuh"

extern __shared__ float4 shared[];

constexpr int STEP = GRAD_STEP;
static_assert(STEP == 32 * KEYS, "eight keys for each lane");

// The entries that a warp or block has bins for.
struct Chunk {
    int low;
    unsigned count;

    __device__ Chunk(const TermGradArgs& args, unsigned chunk) {
        low = static_cast<int>(chunk * args.chunk);
        count = min(args.chunk, args.entries - chunk * args.chunk);
    }

    // The bin of an entry, or -1.
    __device__ int bin(int entry) const {
        // An entry of -1 is none, wherever the chunk begins.
        bool inside = entry >= low && static_cast<unsigned>(entry - low) < count;
        return inside ? entry - low : -1;
    }
};

// A batch and a head of the output, and the sequences and heads that it is the sum of.
struct Group {
    unsigned batch, head;

    __device__ Group(const TermGradArgs& args, unsigned group) {
        batch = group / args.heads;
        head = group - batch * args.heads;
    }

    __device__ Row row(const TermGradArgs& args, unsigned member, unsigned query) const {
        unsigned sequence = member / args.head_members;
        return Row(args.call.bias, batch + sequence, head + member - sequence * args.head_members, query);
    }

    __device__ float* out(const TermGradArgs& args, unsigned row, int entry) const {
        const long long (&strides)[4] = args.out_strides;
        return static_cast<float*>(args.call.out) + batch * strides[0] + head * strides[1] + row * strides[2] +
               entry * strides[3];
    }
};

__device__ __forceinline__ int key_position(const TermArgs& term, const BiasArgs& args, const Row& row, int key) {
    if (term.key_at) {
        const int* given = static_cast<const int*>(term.key_at);
        return TermQuery::coordinate(given[static_cast<long long>(row.batch) * args.keys + key]);
    }
    return args.key_positions ? row.key_positions(args)[key] : row.key_start + key;
}

// Adds 32 numbers to bins, all lanes of a warp; a bin below 0 is none. Lanes of one bin are added as a tree.
__device__ __forceinline__ void add(const Bins<1>& bins, int bin, float x) {
    unsigned lane = threadIdx.x % 32;
    int first = __shfl_sync(ALL_LANES, bin, 0);
    if (__all_sync(ALL_LANES, bin == first)) {
        if (first < 0) return;
        float sum[1] = {warp_sum(x)};
        // What other lanes wrote in the last call is seen.
        __syncwarp();
        if (lane == 0) bins.put(bin, sum);
        return;
    }
    unsigned group = __match_any_sync(ALL_LANES, bin), low = __ffs(group) - 1, run = group >> low;
    if (!__all_sync(ALL_LANES, (run & (run + 1)) == 0)) {
        float own[1] = {x};
        bins.add(bin, own);
        return;
    }
    // Neighbouring lanes share a bin, as buckets do: each adds those behind it, and the first has the sum.
    if (__any_sync(ALL_LANES, run != 1)) {
        unsigned end = low + __popc(group);
#pragma unroll
        for (unsigned apart = 1; apart < 32; apart *= 2) {
            float next = __shfl_down_sync(ALL_LANES, x, apart);
            if (lane + apart < end) x += next;
        }
    }
    __syncwarp();
    float sum[1] = {x};
    if (bin >= 0 && lane == low) bins.put(bin, sum);
}

// A warp's copy of `STEP` keys of a row, from `step` on, by 16-byte accesses where they fit.
__device__ __forceinline__ void stage(float* to, const T::Bits* grad, const Row& row, long long step, bool aligned) {
    unsigned lane = threadIdx.x % 32;
    __syncwarp();
    if (aligned && step >= row.first && step + STEP <= row.keys) {
        float x[KEYS];
        load_keys(grad + step + lane * KEYS, KEYS, true, 0.0f, x);
        float4* at = reinterpret_cast<float4*>(to) + 2 * lane;
        at[0] = make_float4(x[0], x[1], x[2], x[3]);
        at[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            long long key = step + 32 * i + lane;
            to[32 * i + lane] = key >= row.first && key < row.keys ? T::widen(grad[key]) : 0.0f;
        }
    }
    __syncwarp();
}

// Entries of a row's keys where they follow one another, by distance without a look-up: clamp(from + step * key). Or
// where there is one entry.
struct Line {
    static constexpr int NONE = -1, SEVERAL = -2;

    // No line: every key's entry is asked for.
    bool straight;
    int step;
    // Keys from `inner` to below `outer` have an entry each, of which the low 32 bits of `from` tell enough.
    int inner, outer;
    unsigned from;
    // The entry of keys before and behind, or NONE.
    int before, behind;

    __device__ Line(const TermGradArgs& args, const Row& row, const TermQuery& query) {
        const TermArgs& term = args.term;
        bool counted = !term.key_at && !args.call.bias.key_positions;
        bool one = term.kind == TermKind::WHOLE || term.kind == TermKind::ENDPOINTS;
        straight = one || (counted && term.kind == TermKind::DISTANCE && !term.more);
        step = term.reversed ? -1 : 1;
        inner = outer = row.keys;
        from = 0;
        before = behind = 0;
        if (!straight || one) return;
        long long start = step * (static_cast<long long>(row.key_start) - query.at) - term.first;
        long long low = term.reversed ? start - term.count + 1 : -start;
        inner = static_cast<int>(max(row.first + 0ll, min(low, row.keys + 0ll)));
        outer = static_cast<int>(max(row.first + 0ll, min(low + term.count, row.keys + 0ll)));
        from = static_cast<unsigned>(start);
        int last = term.count - 1;
        before = term.zero_outside ? NONE : term.reversed ? last : 0;
        behind = term.zero_outside ? NONE : term.reversed ? 0 : last;
    }

    __device__ int own(int key) const { return static_cast<int>(from + static_cast<unsigned>(step * key)); }

    __device__ int entry(int key) const { return key < inner ? before : key >= outer ? behind : own(key); }

    // The one entry of all keys from `first` to below `end`; or NONE; or SEVERAL.
    __device__ int same(int first, int end) const {
        if (!straight) return SEVERAL;
        return end <= inner ? before : first >= outer ? behind : SEVERAL;
    }
};

__device__ __forceinline__ int entry(const TermGradArgs& args, const Row& row, const TermQuery& query, const Line& line,
                                     int key) {
    if (line.straight) return line.entry(key);
    return query.entry(args.term, row, key_position(args.term, args.call.bias, row, key));
}

// Adds a row of grad to a warp's bins.
__device__ __forceinline__ void add_row(const TermGradArgs& args, const Row& row, const Chunk& chunk,
                                        const Bins<1>& bins, float* staged) {
    const BiasArgs& bias = args.call.bias;
    const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.offset(args.call.strides);
    TermQuery query(args.term, bias, row);
    Line line(args, row, query);
    bool whole = args.chunk >= args.entries;
    int lane = threadIdx.x % 32;
    // 64 bits: the last step may leave 32.
#pragma unroll 1
    for (long long step = row.first / STEP * STEP; step < row.keys; step += STEP) {
        int same =
            line.same(static_cast<int>(max(step, row.first + 0ll)), static_cast<int>(min(step + STEP, row.keys + 0ll)));
        if (same == Line::NONE) continue;
        if (whole || same >= 0) stage(staged, grad, row, step, args.call.aligned);
        if (same >= 0) {
            float x[KEYS];
#pragma unroll
            for (int i = 0; i < KEYS; ++i) x[i] = staged[32 * i + lane];
            float sum[1] = {warp_sum(sum_pack(x)) * row.gate};
            if (lane == 0) bins.put(same, sum);
            continue;
        }
#pragma unroll 1
        for (int i = 0; i < KEYS && step + 32 * i < row.keys; ++i) {
            // Below 2^31, but for lanes beyond the row.
            int at = 32 * i + lane, first = static_cast<int>(step) + 32 * i;
            unsigned key = static_cast<unsigned>(first) + lane;
            if (whole && line.straight && first >= line.inner && line.outer - first >= 32) {
                float own[1] = {staged[at] * row.gate};
                // What other lanes wrote to these bins is seen.
                __syncwarp();
                bins.put(line.own(static_cast<int>(key)), own);
                continue;
            }
            int bin = -1;
            if (key < static_cast<unsigned>(row.keys) && static_cast<int>(key) >= row.first) {
                bin = chunk.bin(entry(args, row, query, line, static_cast<int>(key)));
            }
            float x = 0.0f;
            if (bin >= 0) x = (whole ? staged[at] : T::widen(grad[key])) * row.gate;
            add(bins, bin, x);
        }
    }
}

// The last of the `parts` blocks of an item adds what they left, `numbers` sums each: `put(index, sum)`.
template <class F> __device__ __forceinline__ void finish(const TermGradArgs& args, unsigned item, unsigned numbers,
                                                          F put) {
    unsigned parts = args.call.splits;
    if (!last_of(static_cast<unsigned*>(args.call.counters) + item, parts)) return;
    const float* sums = static_cast<const float*>(args.call.sums) + static_cast<long long>(item) * parts * args.left;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < numbers; i += blockDim.x) {
        Sum sum;
#pragma unroll 1
        for (unsigned part = 0; part < parts; part += 4) {
            float x[4];
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) {
                x[k] = part + k < parts ? sums[static_cast<long long>(part + k) * args.left + i] : 0.0f;
            }
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) sum.add(x[k]);
        }
        put(i, sum.total);
    }
}

// A block's item and part; its place for partial sums.
struct Share {
    unsigned item, part;

    __device__ explicit Share(const TermGradArgs& args) {
        item = divide(blockIdx.x, args.by_parts);
        part = blockIdx.x - item * args.call.splits;
    }

    __device__ float* left(const TermGradArgs& args) const {
        // The block's number: item * parts + part.
        return static_cast<float*>(args.call.sums) + static_cast<long long>(blockIdx.x) * args.left;
    }
};

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(term_grad_table) {
    wait_for_predecessor();
    const BiasArgs& bias = args.call.bias;
    Share share(args);
    unsigned number = share.item / args.chunks;
    Group group(args, number);
    Chunk chunk(args, share.item - number * args.chunks);
    unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float* staged = reinterpret_cast<float*>(shared) + warp * args.space;
    Bins<1> bins{staged + STEP, staged + STEP + args.chunk};
    bins.clear(chunk.count);
    // Rows of the group, queries first.
    unsigned first = (share.part * warps + warp) * args.call.rows;
    unsigned member = divide(first, bias.by_queries), query = first - member * bias.queries;
#pragma unroll 1
    for (unsigned rows = args.call.rows; rows && member < args.members; --rows) {
        add_row(args, group.row(args, member, query), chunk, bins, staged);
        if (++query == bias.queries) {
            query = 0;
            ++member;
        }
    }
    __syncthreads();
    bool alone = args.call.splits == 1;
    float* left = share.left(args);
    auto put = [&](unsigned i, float sum) { *group.out(args, 0, chunk.low + i) = sum * args.call.factor; };
    const float* totals = reinterpret_cast<const float*>(shared) + STEP;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < chunk.count; i += blockDim.x) {
        Sum sum;
        for (unsigned w = 0; w < warps; ++w) sum.add(totals[w * args.space + i]);
        if (alone) {
            put(i, sum.total);
        } else {
            left[i] = sum.total;
        }
    }
    if (!alone) finish(args, share.item, chunk.count, put);
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(term_grad_queries) {
    unsigned warp = threadIdx.x / 32;
    unsigned item = blockIdx.x * (blockDim.x / 32) + warp;
    if (item >= args.items) return;
    wait_for_predecessor();
    unsigned index = item / args.chunks;
    unsigned number = divide(index, args.call.bias.by_queries);
    unsigned query = index - number * args.call.bias.queries;
    Group group(args, number);
    Chunk chunk(args, item - index * args.chunks);
    float* staged = reinterpret_cast<float*>(shared) + warp * args.space;
    Bins<1> bins{staged + STEP, staged + STEP + args.chunk};
    bins.clear(chunk.count);
#pragma unroll 1
    for (unsigned member = 0; member < args.members; ++member) {
        add_row(args, group.row(args, member, query), chunk, bins, staged);
    }
    __syncwarp();
    unsigned lane = threadIdx.x % 32;
    float* out = group.out(args, query, chunk.low + static_cast<int>(lane));
#pragma unroll 1
    for (unsigned i = lane; i < chunk.count; i += 32, out += 32 * args.out_strides[3]) {
        *out = bins.totals[i] * args.call.factor;
    }
}

// A tile of grad: queries of one member from `query` on, `count` of them, and the block's keys.
struct Tile {
    unsigned member, query, count;
    int key;
};

// The rows of a tile.
struct TileRows {
    const TermGradArgs& args;
    const Group& group;
    const Tile& tile;
    Row first;
    // Queries follow one another, and how many of them from the tile's first on are there.
    bool counted;
    int there;

    __device__ TileRows(const TermGradArgs& args, const Group& group, const Tile& tile)
        : args(args), group(group), tile(tile), first(group.row(args, tile.member, tile.query)) {
        const BiasArgs& bias = args.call.bias;
        const int* lengths = static_cast<const int*>(bias.query_lengths);
        counted = !bias.sequences && !bias.query_positions;
        there = static_cast<int>(bias.queries);
        if (counted && lengths) there = lengths[first.batch];
        there -= static_cast<int>(tile.query);
    }

    __device__ Row of(unsigned own) const {
        if (!counted) return group.row(args, tile.member, tile.query + own);
        Row row = first;
        row.query += own;
        row.at += static_cast<int>(own);
        if (static_cast<int>(own) >= there) row.first = row.keys = 0;
        const BiasArgs& bias = args.call.bias;
        if (bias.gates) {
            long long index = (static_cast<long long>(row.batch) * bias.heads + row.head) * bias.queries + row.query;
            row.gate = static_cast<const float*>(bias.gates)[index];
        }
        return row;
    }

    // True if no pair of the tile has an entry of the chunk, as far as the distances of its corners tell.
    __device__ bool misses(const Chunk& chunk) const {
        const TermArgs& term = args.term;
        bool keys_counted = !term.key_at && !args.call.bias.key_positions;
        bool straight = keys_counted && counted && !term.query_at && term.kind == TermKind::DISTANCE && !term.more;
        if (!straight || args.chunk >= args.entries) return false;
        long long key = static_cast<long long>(first.key_start) + tile.key;
        long long low = key - first.at - (tile.count - 1), high = key + (args.keys - 1) - first.at;
        long long from = (term.reversed ? -high : low) - term.first, to = (term.reversed ? -low : high) - term.first;
        from = max(0ll, min(from, term.count - 1ll));
        to = max(0ll, min(to, term.count - 1ll));
        return to < chunk.low || from >= chunk.low + static_cast<long long>(chunk.count);
    }
};

// Loads a tile, row after row, keys side by side; one more number in a row of the tile keeps columns in banks of
// their own.
__device__ __forceinline__ void load_tile(const TermGradArgs& args, const TileRows& rows, const Chunk& chunk,
                                          float* to) {
    const BiasArgs& bias = args.call.bias;
    const Tile& tile = rows.tile;
    unsigned keys = args.keys;
    const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + rows.first.offset(args.call.strides) + tile.key;
    // `keys` is a power of two.
    unsigned log = __ffs(keys) - 1;
    if (args.chunk >= args.entries) {
#pragma unroll
        for (unsigned i = 0; i < GRAD_TILE / 256; ++i) {
            unsigned at = threadIdx.x + 256 * i, query = at >> log, key = at & (keys - 1);
            bool there = query < tile.count && tile.key + static_cast<int>(key) < static_cast<int>(bias.keys);
            to[query * (keys + 1) + key] = there ? T::widen(grad[query * args.call.strides[2] + key]) : 0.0f;
        }
        return;
    }
#pragma unroll 1
    for (unsigned at = threadIdx.x; at < GRAD_TILE; at += 256) {
        unsigned query = at >> log, key = at & (keys - 1);
        float x = 0.0f;
        if (query < tile.count) {
            Row row = rows.of(query);
            int own = tile.key + static_cast<int>(key);
            if (own >= row.first && own < row.keys) {
                TermQuery from(args.term, bias, row);
                Line line(args, row, from);
                bool inside = chunk.bin(entry(args, row, from, line, own)) >= 0;
                if (inside) x = T::widen(grad[query * args.call.strides[2] + key]);
            }
        }
        to[query * (keys + 1) + key] = x;
    }
}

// Adds a tile's columns to the bins of their keys: a warp has every eighth key, a lane one of 32 queries.
__device__ __forceinline__ void add_columns(const TermGradArgs& args, const TileRows& rows, const Chunk& chunk,
                                            const float* from, float* bins) {
    const Tile& tile = rows.tile;
    unsigned lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned step = 0; step < tile.count; step += 32) {
        unsigned own = min(step + lane, tile.count - 1);
        Row row = rows.of(own);
        TermQuery query(args.term, args.call.bias, row);
        Line line(args, row, query);
#pragma unroll 1
        for (unsigned k = threadIdx.x / 32; k < args.keys; k += 8) {
            int key = tile.key + static_cast<int>(k), bin = -1;
            if (step + lane < tile.count && key >= row.first && key < row.keys) {
                bin = chunk.bin(entry(args, row, query, line, key));
            }
            float x = bin < 0 ? 0.0f : from[own * (args.keys + 1) + k] * row.gate;
            float* totals = bins + 2 * k * args.chunk;
            add({totals, totals + args.chunk}, bin, x);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(term_grad_keys) {
    wait_for_predecessor();
    const BiasArgs& bias = args.call.bias;
    Share share(args);
    unsigned index = share.item / args.chunks;
    Chunk chunk(args, share.item - index * args.chunks);
    unsigned number = index / args.key_blocks;
    Group group(args, number);
    Tile tile;
    tile.key = static_cast<int>((index - number * args.key_blocks) * args.keys);
    float* numbers = reinterpret_cast<float*>(shared);
    float* bins = numbers + GRAD_TILE_SPACE;
    for (unsigned i = threadIdx.x; i < 2 * args.keys * args.chunk; i += 256) bins[i] = 0.0f;
    // Rows of the group, queries first.
    unsigned first = share.part * args.call.rows, rows = args.call.rows, most = GRAD_TILE >> (__ffs(args.keys) - 1);
    tile.member = divide(first, bias.by_queries);
    tile.query = first - tile.member * bias.queries;
#pragma unroll 1
    while (rows && tile.member < args.members) {
        tile.count = min(min(bias.queries - tile.query, most), rows);
        TileRows queries(args, group, tile);
        // The same for all threads.
        if (!queries.misses(chunk)) {
            load_tile(args, queries, chunk, numbers);
            __syncthreads();
            add_columns(args, queries, chunk, numbers, bins);
            __syncthreads();
        }
        rows -= tile.count;
        tile.query += tile.count;
        if (tile.query == bias.queries) {
            tile.query = 0;
            ++tile.member;
        }
    }
    __syncthreads();
    // The keys that are there, `chunk.count` numbers each.
    unsigned all = min(args.keys, bias.keys - tile.key) * chunk.count;
    bool alone = args.call.splits == 1;
    float* left = share.left(args);
    auto put = [&](unsigned i, float sum) {
        unsigned key = i / chunk.count;
        *group.out(args, tile.key + key, chunk.low + static_cast<int>(i - key * chunk.count)) = sum * args.call.factor;
    };
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < all; i += 256) {
        unsigned key = i / chunk.count;
        float sum = bins[2 * key * args.chunk + i - key * chunk.count];
        if (alone) {
            put(i, sum);
        } else {
            left[i] = sum;
        }
    }
    if (!alone) finish(args, share.item, all, put);
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(term_grad_columns) {
    wait_for_predecessor();
    const BiasArgs& bias = args.call.bias;
    Share share(args);
    unsigned number = share.item / args.key_blocks;
    Group group(args, number);
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int block = static_cast<int>((share.item - number * args.key_blocks) * STEP);
    int key = block + static_cast<int>(lane) * KEYS;
    int count = min(KEYS, static_cast<int>(bias.keys) - key);
    // Rows of the group, queries first: a warp has every eighth of the part.
    unsigned first = share.part * args.call.rows + warp;
    unsigned member = divide(first, bias.by_queries), query = first - member * bias.queries;
    Sum sums[KEYS];
#pragma unroll 1
    for (unsigned i = warp; i < args.call.rows && member < args.members; i += 8) {
        Row row = group.row(args, member, query);
        if (key < row.keys && key + KEYS > row.first) {
            const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.offset(args.call.strides);
            float x[KEYS];
            load_keys(grad + key, count, args.call.aligned, 0.0f, x);
#pragma unroll
            for (int k = 0; k < KEYS; ++k) {
                if (key + k >= row.first && key + k < row.keys) sums[k].add(x[k] * row.gate);
            }
        }
        query += 8;
        while (query >= bias.queries) {
            query -= bias.queries;
            ++member;
        }
    }
    float* all = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int k = 0; k < KEYS; ++k) all[warp * STEP + lane * KEYS + k] = sums[k].total;
    __syncthreads();
    bool alone = args.call.splits == 1;
    auto put = [&](unsigned i, float sum) { *group.out(args, block + i, 0) = sum * args.call.factor; };
    unsigned keys = min(static_cast<unsigned>(STEP), bias.keys - block);
    if (threadIdx.x < keys) {
        Sum sum;
#pragma unroll
        for (unsigned w = 0; w < 8; ++w) sum.add(all[w * STEP + threadIdx.x]);
        if (alone) {
            put(threadIdx.x, sum.total);
        } else {
            share.left(args)[threadIdx.x] = sum.total;
        }
    }
    if (!alone) finish(args, share.item, keys, put);
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(term_grad_whole) {
    const BiasArgs& bias = args.call.bias;
    unsigned index = blockIdx.x * blockDim.y + threadIdx.y;
    if (index >= args.items) return;
    wait_for_predecessor();
    unsigned number = divide(index, bias.by_queries), query = index - number * bias.queries;
    Group group(args, number);
    // 64 bits: the last step may leave 32.
#pragma unroll 1
    for (long long at = threadIdx.x * KEYS; at < bias.keys; at += blockDim.x * KEYS) {
        int key = static_cast<int>(at);
        int count = min(KEYS, static_cast<int>(bias.keys) - key);
        Sum sums[KEYS];
#pragma unroll 1
        for (unsigned member = 0; member < args.members; ++member) {
            Row row = group.row(args, member, query);
            if (key >= row.keys || key + KEYS <= row.first) continue;
            const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.offset(args.call.strides);
            float x[KEYS];
            load_keys(grad + key, count, args.call.aligned, 0.0f, x);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (key + i >= row.first && key + i < row.keys) sums[i].add(x[i] * row.gate);
            }
        }
        float* out = group.out(args, query, key);
        float y[KEYS];
#pragma unroll
        for (int i = 0; i < KEYS; ++i) y[i] = sums[i].total * args.call.factor;
        if (args.out_aligned && count == KEYS) {
#pragma unroll
            for (int i = 0; i < KEYS; i += 4) {
                uint4 raw =
                    make_uint4(f32::narrow(y[i]), f32::narrow(y[i + 1]), f32::narrow(y[i + 2]), f32::narrow(y[i + 3]));
                store_wide(out + i, raw);
            }
        } else {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (i < count) out[i * args.out_strides[3]] = y[i];
            }
        }
    }
}
