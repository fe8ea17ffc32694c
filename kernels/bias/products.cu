// write:  x[b, h, i, j] = factor * a . R[b, h, entry(i, j), :]
// add:    x[b, h, i, j] += factor * a . R[b, h, entry(i, j), :]
//
//     a       states of the queries, or of the keys, [batch, tokens, heads, width] by strides; with state_bias
//             [heads, width] the sum of both, rounded once to T
//     R       [batch or 1, heads or 1, entries, width] by strides
//     entry   that of a term by distance (terms.cuh)
//
// The products of states and table, [batch, heads, tokens, entries], are not stored. A block of four warps takes 64
// states and walks tiles of 64 columns, which are the keys of queries' states and the queries of keys' states. Where
// positions follow one another, such a tile has 127 distances: their rows of the table wait in shared memory, a ring in
// which a step to the next tile replaces 64. A warp multiplies its 16 states with the 79 rows that they meet, ten
// columns of mma.sync, lays the band of 16 x 80 sums into shared memory of its own, half of the columns at a time, and
// reads it along its diagonals, eight neighbouring keys a lane. Tiles outside a band that ends in zeros are passed
// over; where all distances have the first entry, or the last, two columns take the place of ten.
//
// Where positions are given one by one, and where a tile has several packed sequences, each pair's row of the table is
// read for itself: the same steps on the same operands, one row of 16 used.
//
// A pair's sum takes its channels in steps of 16, from the first on, in f32, whatever the tile; f32, and the half types
// before 8.0, one channel after another by fmaf. So chunks of batch, heads, queries and keys are slices of the whole.
#include "bias/row.cuh"
#include "common/exp.cuh"
#include "common/keys.cuh"
#include "common/matrix.cuh"

extern __shared__ uint4 shared[];

constexpr int WARPS = PRODUCT_TILE / 16, THREADS = 32 * WARPS;
constexpr bool MATRIX = HasMatrix<T>::value;
// Columns of 8 of a warp's band, those that half of a tile's columns needs, and floats from one row of them to the
// next: 24 banks apart, so that neither stores nor loads along diagonals meet a bank twice.
constexpr int BAND_COLUMNS = 10, HALF_COLUMNS = 6, STAGED_ROW = PRODUCT_STAGED / 16;
// Where no MATRIX is, a lane's rows and columns: eight keys, and four queries.
template <bool BY_KEYS> constexpr int LANE_ROWS = BY_KEYS ? 8 : 4;
template <bool BY_KEYS> constexpr int LANE_COLUMNS = BY_KEYS ? 4 : 8;

enum class Pairs {
    // distances follow the place in the tensor
    FOLLOW,
    // each has its own
    EACH,
    // of two sequences all of them
    APART
};

// The 64 states of a block, their rows, and a tile's columns.
template <bool BY_KEYS> struct Tile {
    const ProductsArgs& args;
    const BiasArgs& bias;
    unsigned batch, head;
    int row0, column0, rows, columns;
    // Distances follow the place in the tensor for columns from `begin` to below `end`; all others are of another
    // sequence.
    bool follow;
    int begin, end;
    // the distance at offset 0, and whether it falls from there
    int origin;
    bool falls;
    int warp, lane;
    // elements of the table that this head has, and of its states
    const T::Bits *table, *states;
    // its logits
    T::Bits* x;
    const float* state_bias;
    // 16-byte packs from one row in shared memory to the next: odd, so that rows are in different banks
    int stride;

    __device__ Tile(const ProductsArgs& args, unsigned line) : args(args), bias(args.call.bias) {
        unsigned sequence_head = divide(line, args.by_row_tiles);
        row0 = static_cast<int>(line - sequence_head * args.row_tiles) * PRODUCT_TILE;
        batch = divide(sequence_head, bias.by_heads);
        head = sequence_head - batch * bias.heads;
        rows = static_cast<int>(BY_KEYS ? bias.keys : bias.queries);
        columns = static_cast<int>(BY_KEYS ? bias.queries : bias.keys);
        warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
        table = static_cast<const T::Bits*>(args.table) + batch * args.table_strides[0] + head * args.table_strides[1];
        states =
            static_cast<const T::Bits*>(args.states) + batch * args.state_strides[0] + head * args.state_strides[2];
        state_bias = static_cast<const float*>(args.state_bias);
        if (state_bias) state_bias += static_cast<long long>(head) * args.width;
        x = static_cast<T::Bits*>(args.call.x) + batch * args.call.strides[0] + head * args.call.strides[1];
        stride = static_cast<int>(args.packs) + 1;
        place();
    }

    __device__ void place() {
        follow = !bias.query_positions && !bias.key_positions;
        begin = origin = 0, end = columns, falls = BY_KEYS != (args.reversed == 1);
        int query = BY_KEYS ? 0 : row0;
        if (bias.sequences) {
            const int* own = static_cast<const int*>(BY_KEYS ? bias.key_lengths : bias.query_lengths);
            const int* other = static_cast<const int*>(BY_KEYS ? bias.query_lengths : bias.key_lengths);
            unsigned sequence = find_sequence(own, bias.sequences, row0);
            follow = follow && row0 >= own[sequence] && end_of(row0, rows) <= own[sequence + 1];
            begin = max(0, other[sequence]), end = min(columns, other[sequence + 1]);
            if (BY_KEYS) query = begin;
        }
        if (!follow || begin >= end) return;
        Row row(bias, batch, head, static_cast<unsigned>(query));
        int delta = row.key_start - (row.at - query);
        origin = args.reversed ? -delta : delta;
    }

    // The end of a tile that begins at `at`, which may lie beyond 32 bits.
    static __device__ int end_of(int at, int size) { return size - at < PRODUCT_TILE ? size : at + PRODUCT_TILE; }

    __device__ Pairs pairs() const {
        if (!follow) return Pairs::EACH;
        if (!bias.sequences) return Pairs::FOLLOW;
        int last = end_of(column0, columns);
        if (last <= begin || column0 >= end) return Pairs::APART;
        return column0 >= begin && last <= end ? Pairs::FOLLOW : Pairs::EACH;
    }

    // ------------------------------------------------------------------------------------------------------- distances

    // The distance of two neighbours `offset` = column - row. Of pairs beyond the tensor alone it may wrap.
    __device__ int distance(int offset) const {
        return static_cast<int>(static_cast<unsigned>(origin) + (falls ? -offset : offset));
    }

    // True if it has an entry of its own.
    __device__ bool has(int distance) const {
        return static_cast<unsigned>(distance) - static_cast<unsigned>(args.first) < static_cast<unsigned>(args.count);
    }

    // Its entry; -1: nothing is added.
    __device__ int entry(int distance) const {
        if (args.zero_outside && !has(distance)) return -1;
        int near = max(args.first, min(distance, args.first + (args.count - 1))) - args.first;
        return args.lookup ? static_cast<const unsigned short*>(args.lookup)[near] : near;
    }

    // Of the offsets from `low` to `high`: none has an entry, or all have the same end.
    __device__ bool outside(int low, int high) const { return args.zero_outside && beyond(low, high, 0); }
    __device__ bool constant(int low, int high) const { return !args.zero_outside && beyond(low, high, 1); }

    // All distances lie below the first one that has an entry plus `inside`, or all above the last one less `inside`.
    __device__ bool beyond(int low, int high, int inside) const {
        // If one of the two wraps, they are at both ends of 32 bits, and the answer is no.
        long long a = distance(low), b = distance(high), first = args.first;
        return max(a, b) < first + inside || min(a, b) > first + args.count - 1 - inside;
    }

    // The entry of a pair wherever it lies, and whether both are of one sequence.
    __device__ int entry_of(const Row& row, int key, bool& apart) const {
        apart = bias.sequences && (key < row.first || key >= row.keys);
        int distance = row.distance(bias, key);
        return entry(args.reversed ? -distance : distance);
    }

    // ---------------------------------------------------------------------------------------------------------- memory

    __device__ uint4* ring(int offset) const { return shared + (offset & (PRODUCT_BAND - 1)) * stride; }
    __device__ uint4* state_row(int row) const { return shared + (PRODUCT_BAND + row) * stride; }
    __device__ float* staged() const {
        return reinterpret_cast<float*>(shared + (PRODUCT_BAND + PRODUCT_TILE) * stride) + warp * PRODUCT_STAGED;
    }

    // Channel `channel` of a state.
    __device__ T::Bits state(int row, int channel) const {
        if (row >= rows || channel >= static_cast<int>(args.width)) return 0;
        T::Bits bits = states[row * args.state_strides[1] + channel];
        return state_bias ? T::narrow(T::widen(bits) + state_bias[channel]) : bits;
    }

    __device__ T::Bits number(int entry, int channel) const {
        if (entry < 0 || channel >= static_cast<int>(args.width)) return 0;
        return table[entry * args.table_strides[2] + channel * args.table_strides[3]];
    }

    // A pack whose elements `element` gives.
    template <class Element> static __device__ uint4 gather_pack(Element element) {
        unsigned word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (WIDE == 4) {
                word[i] = element(i);
            } else {
                word[i] = element(2 * i) | static_cast<unsigned>(element(2 * i + 1)) << 16;
            }
        }
        return make_uint4(word[0], word[1], word[2], word[3]);
    }

    // Packs of `count` rows of the ring from offset `begin` on, which are packs `from` on of rows of the table.
    __device__ void put_table(int begin, int count, int from, int packs) const {
        each_row(count, args.wide_table, [&](int row, int lane, int lanes) {
            uint4* to = ring(begin + row);
            int entry = this->entry(distance(begin + row));
            const T::Bits* at = table + entry * args.table_strides[2] + from * WIDE;
            bool wide = args.wide_table && entry >= 0;
            for (int pack = lane; pack < packs; pack += lanes) {
                int channel = (from + pack) * WIDE;
                if (wide && channel + WIDE <= static_cast<int>(args.width)) {
                    fetch(to + pack, at + pack * WIDE);
                } else {
                    to[pack] = gather_pack([&](int i) { return number(entry, channel + i); });
                }
            }
        });
    }

    // The same of the block's states.
    __device__ void put_states(int from, int packs) const {
        each_row(PRODUCT_TILE, args.wide_states, [&](int row, int lane, int lanes) {
            uint4* to = state_row(row);
            int token = row0 + row;
            const T::Bits* at = states + token * args.state_strides[1] + from * WIDE;
            bool wide = args.wide_states && token < rows;
            for (int pack = lane; pack < packs; pack += lanes) {
                int channel = (from + pack) * WIDE;
                if (!wide || channel + WIDE > static_cast<int>(args.width)) {
                    to[pack] = gather_pack([&](int i) { return state(token, channel + i); });
                } else if (state_bias) {
                    to[pack] = biased(at + pack * WIDE, channel);
                } else {
                    fetch(to + pack, at + pack * WIDE);
                }
            }
        });
    }

    // A pack of states from channel `channel` on, with state_bias.
    __device__ uint4 biased(const T::Bits* at, int channel) const {
        float x[WIDE];
        unpack(Pack<WIDE>::load(at), x);
#pragma unroll
        for (int i = 0; i < WIDE; ++i) x[i] += state_bias[channel + i];
        return pack(x).raw;
    }

    // `put(row, lane, lanes)` for all rows, each of which has four neighbouring threads, 64 bytes, where it is
    // contiguous, and one where neighbouring rows may be.
    template <class Put> static __device__ void each_row(int count, bool wide, Put put) {
        int log = wide ? 2 : 0, lanes = 1 << log, thread = static_cast<int>(threadIdx.x);
        for (int row = thread >> log; row < count; row += THREADS >> log) put(row, thread & (lanes - 1), lanes);
    }

    // ---------------------------------------------------------------------------------------------------------- result

    // Eight neighbouring keys of a query, from their products.
    __device__ void emit(int query, int key, Pairs pairs, const float (&dot)[KEYS]) const {
        int keys = static_cast<int>(bias.keys), count = min(KEYS, keys - key);
        if (query >= static_cast<int>(bias.queries) || count <= 0) return;
        T::Bits* at = logits(query, key);
        float value[KEYS];
#pragma unroll
        for (int i = 0; i < KEYS; ++i) value[i] = 0.0f;
        if (args.call.add) load_keys(at, count, args.call.aligned, 0.0f, value);
        if (pairs == Pairs::FOLLOW && !args.zero_outside) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) value[i] = sum(value[i], dot[i]);
        } else if (pairs == Pairs::EACH) {
            Row row(bias, batch, head, static_cast<unsigned>(query));
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                bool apart = false, there = i < count && entry_of(row, key + i, apart) >= 0;
                value[i] = apart ? value[i] - infinity() : there ? sum(value[i], dot[i]) : value[i];
            }
        } else {
            int first = distance(BY_KEYS ? query - key : key - query), step = args.reversed ? -1 : 1;
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                float added = has(first + step * i) ? sum(value[i], dot[i]) : value[i];
                value[i] = pairs == Pairs::APART ? value[i] - infinity() : added;
            }
        }
        store_keys(at, count, args.call.aligned, value);
    }

    // Not called where nothing is added: there a logit keeps its bits, the sign of a zero too.
    __device__ float sum(float value, float dot) const { return fmaf(args.factor, dot, value); }

    __device__ T::Bits* logits(int query, int key) const { return x + query * args.call.strides[2] + key; }

    // Begins to move a tile's logits into the L2 cache, where they wait for the products.
    __device__ void prefetch() const {
        constexpr int LINE = 128 / sizeof(T::Bits);
        int i = static_cast<int>(threadIdx.x) % 2;
        int query = (BY_KEYS ? column0 : row0) + static_cast<int>(threadIdx.x) / 2;
        int key = (BY_KEYS ? row0 : column0) + i * min(LINE, PRODUCT_TILE - 1);
        if (query >= static_cast<int>(bias.queries) || key >= static_cast<int>(bias.keys)) return;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(logits(query, key))));
    }

    // The tile without products: nothing has an entry, or all are of two sequences.
    __device__ void fill(Pairs pairs) const {
        float none[KEYS] = {};
        int query0 = BY_KEYS ? column0 : row0, key0 = BY_KEYS ? row0 : column0;
        for (int i = static_cast<int>(threadIdx.x); i < PRODUCT_TILE * PRODUCT_TILE / KEYS; i += THREADS) {
            emit(query0 + i / (PRODUCT_TILE / KEYS), key0 + i % (PRODUCT_TILE / KEYS) * KEYS, pairs, none);
        }
    }
};

// ------------------------------------------------------------------------------------------------------- by mma.sync

#if __CUDA_ARCH__ >= 800
template <bool BY_KEYS> struct MatrixProducts {
    const Tile<BY_KEYS>& tile;
    float sums[BAND_COLUMNS][4];

    __device__ explicit MatrixProducts(const Tile<BY_KEYS>& tile) : tile(tile) { clear(); }

    __device__ void clear() {
#pragma unroll
        for (int n = 0; n < BAND_COLUMNS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
        }
    }

    // Adds the products of `packs` packs with the rows of the ring from `base` on; of a constant tile with the first.
    __device__ void add(int base, bool constant, int packs) {
        int lane = tile.lane;
        const uint4* state = tile.state_row(16 * tile.warp + lane % 16) + lane / 16;
        const uint4* row[BAND_COLUMNS / 2];
#pragma unroll
        for (int n = 0; n < BAND_COLUMNS / 2; ++n) {
            row[n] = tile.ring(base + 16 * n + lane % 8 + lane / 16 * 8) + lane / 8 % 2;
        }
#pragma unroll 1
        for (int pack = 0; pack < packs; pack += 2) {
            unsigned a[4], b[4];
            load_matrices(a, state + pack);
#pragma unroll
            for (int n = 0; n < BAND_COLUMNS / 2; ++n) {
                if (n > 0 && constant) continue;
                load_matrices(b, row[n] + pack);
                multiply_add(T{}, sums[2 * n], a, b[0], b[1]);
                multiply_add(T{}, sums[2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // Two neighbouring channels as an operand has them.
    template <class Element> static __device__ unsigned two(int channel, Element element) {
        return element(channel) | static_cast<unsigned>(element(channel + 1)) << 16;
    }

    // Lays a column of the sums into the warp's memory.
    __device__ void stage(int column, const float (&of)[4]) const {
        float* to = tile.staged() + tile.lane / 4 * STAGED_ROW + 8 * column + 2 * (tile.lane % 4);
        *reinterpret_cast<float2*>(to) = make_float2(of[0], of[1]);
        *reinterpret_cast<float2*>(to + 8 * STAGED_ROW) = make_float2(of[2], of[3]);
    }

    // Half of the columns, along the band's diagonals.
    __device__ void emit(int half, Pairs pairs) const {
        int lane = tile.lane, row0 = tile.row0 + 16 * tile.warp, column0 = tile.column0 + 32 * half;
#pragma unroll 1
        for (int pass = 0; pass < 2; ++pass) {
            float dot[KEYS];
            int row = BY_KEYS ? 8 * (lane % 2) : 8 * pass + lane / 4;
            int column = BY_KEYS ? lane / 2 + 16 * pass : 8 * (lane % 4);
            const float* from = tile.staged() + diagonal(row, column);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) dot[i] = from[BY_KEYS ? diagonal(i, 0) - diagonal(0, 0) : i];
            int query = BY_KEYS ? column0 + column : row0 + row, key = BY_KEYS ? row0 + row : column0 + column;
            tile.emit(query, key, pairs, dot);
        }
    }

    // Where the sum of a row and a column lies in the warp's memory.
    static __device__ constexpr int diagonal(int row, int column) { return row * STAGED_ROW + column + 15 - row; }

    __device__ void finish(bool constant) {
        if (constant) {
            // The first eight columns are one.
#pragma unroll
            for (int n = 1; n < BAND_COLUMNS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[n][i] = sums[0][i];
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            __syncwarp();
#pragma unroll
            for (int n = 0; n < HALF_COLUMNS; ++n) stage(n, sums[4 * half + n]);
            __syncwarp();
            emit(half, Pairs::FOLLOW);
        }
    }

    // The tile with a row of the table for each pair.
    __device__ void each() const {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            __syncwarp();
#pragma unroll 1
            for (int i = 0; i < 4 * 16; ++i) {
                int row = i % 16, column = i / 16;
                each_column(row, column, tile.column0 + 32 * half + 8 * column + tile.lane / 4);
            }
            __syncwarp();
            emit(half, Pairs::EACH);
        }
    }

    // A state's products with the rows of eight columns, of which this lane has `column`.
    __device__ void each_column(int row, int to, int column) const {
        int lane = tile.lane, row0 = tile.row0 + 16 * tile.warp, entry = -1;
        if (row0 + row < tile.rows && column < tile.columns) {
            int query = BY_KEYS ? column : row0 + row, key = BY_KEYS ? row0 + row : column;
            bool apart;
            entry = tile.entry_of(Row(tile.bias, tile.batch, tile.head, static_cast<unsigned>(query)), key, apart);
            if (apart) entry = -1;
        }
        auto state = [&](int channel) { return tile.state(row0 + row, channel); };
        auto number = [&](int channel) { return tile.number(entry, channel); };
        float sum[4] = {};
#pragma unroll 1
        for (int channel = 2 * (lane % 4); channel - 2 * (lane % 4) < static_cast<int>(tile.args.width);
             channel += 16) {
            // All rows are the one state, so that every lane that has a row of sums has this one's.
            unsigned low = two(channel, state), high = two(channel + 8, state);
            unsigned a[4] = {low, low, high, high};
            multiply_add(T{}, sum, a, two(channel, number), two(channel + 8, number));
        }
        if (lane / 4 == row % 8) {
            float* at = tile.staged() + diagonal(row, 8 * to + 2 * (lane % 4));
            at[0] = sum[0], at[1] = sum[1];
        }
    }
};
#endif

// ------------------------------------------------------------------------------------------------------------ by fmaf

template <bool BY_KEYS> struct PlainProducts {
    static constexpr int ROWS = LANE_ROWS<BY_KEYS>, COLUMNS = LANE_COLUMNS<BY_KEYS>;
    const Tile<BY_KEYS>& tile;
    // this lane's first row of the warp's 16, and column of 64
    int row0, column0;
    float sums[ROWS][COLUMNS];

    __device__ explicit PlainProducts(const Tile<BY_KEYS>& tile) : tile(tile) {
        row0 = tile.lane % (16 / ROWS) * ROWS;
        column0 = tile.lane / (16 / ROWS) * COLUMNS;
        clear();
    }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) sums[i][j] = 0.0f;
        }
    }

    __device__ void add(int base, bool constant, int packs) {
        // The band's column of this lane's last row and first column.
        int first = base + column0 - row0 + 15 - (ROWS - 1);
#pragma unroll 1
        for (int four = 0; four < packs * WIDE; four += 4) {
            float state[ROWS][4], row[4];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) load_four(tile.state_row(16 * tile.warp + row0 + i), four, state[i]);
#pragma unroll
            for (int d = 0; d < ROWS + COLUMNS - 1; ++d) {
                load_four(tile.ring(constant ? base : first + d), four, row);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    int j = d - (ROWS - 1) + i;
                    if (j < 0 || j >= COLUMNS) continue;
#pragma unroll
                    for (int c = 0; c < 4; ++c) sums[i][j] = fmaf(state[i][c], row[c], sums[i][j]);
                }
            }
        }
    }

    static __device__ void load_four(const uint4* row, int from, float (&x)[4]) {
        unpack(Pack<4>::load(reinterpret_cast<const T::Bits*>(row) + from), x);
    }

    __device__ void finish(bool) const {
        constexpr int QUERIES = BY_KEYS ? COLUMNS : ROWS;
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            float dot[KEYS];
#pragma unroll
            for (int i = 0; i < KEYS; ++i) dot[i] = BY_KEYS ? sums[i % ROWS][q % COLUMNS] : sums[q % ROWS][i % COLUMNS];
            emit(q, Pairs::FOLLOW, dot);
        }
    }

    // The eight keys of this lane's query `q`.
    __device__ void emit(int q, Pairs pairs, float (&dot)[KEYS]) const {
        // A sum of 0 has no sign, however many channels of padding it had.
#pragma unroll
        for (int i = 0; i < KEYS; ++i) dot[i] += 0.0f;
        tile.emit(query(q), key(), pairs, dot);
    }

    __device__ int query(int q) const {
        return BY_KEYS ? tile.column0 + column0 + q : tile.row0 + 16 * tile.warp + row0 + q;
    }
    __device__ int key() const { return BY_KEYS ? tile.row0 + 16 * tile.warp + row0 : tile.column0 + column0; }

    __device__ void each() const {
#pragma unroll 1
        for (int q = 0; q < (BY_KEYS ? COLUMNS : ROWS); ++q) {
            float dot[KEYS];
#pragma unroll 1
            for (int i = 0; i < KEYS; ++i) {
                float one = each_pair(query(q), key() + i);
#pragma unroll
                for (int k = 0; k < KEYS; ++k) dot[k] = k == i ? one : dot[k];
            }
            emit(q, Pairs::EACH, dot);
        }
    }

    __device__ float each_pair(int query, int key) const {
        if (query >= static_cast<int>(tile.bias.queries) || key >= static_cast<int>(tile.bias.keys)) return 0.0f;
        bool apart;
        int entry = tile.entry_of(Row(tile.bias, tile.batch, tile.head, static_cast<unsigned>(query)), key, apart);
        if (apart) return 0.0f;
        float sum = 0.0f;
#pragma unroll 1
        for (int c = 0; c < static_cast<int>(tile.args.width); ++c) {
            sum = fmaf(T::widen(tile.state(BY_KEYS ? key : query, c)), T::widen(tile.number(entry, c)), sum);
        }
        return sum;
    }
};

// ------------------------------------------------------------------------------------------------------------- kernel

#if __CUDA_ARCH__ >= 800
template <bool BY_KEYS, bool> struct ProductsOf {
    using Type = MatrixProducts<BY_KEYS>;
};
template <bool BY_KEYS> struct ProductsOf<BY_KEYS, false> {
    using Type = PlainProducts<BY_KEYS>;
};
#else
template <bool BY_KEYS, bool> struct ProductsOf {
    using Type = PlainProducts<BY_KEYS>;
};
#endif

template <bool BY_KEYS> __device__ __forceinline__ void walk(const ProductsArgs& args) {
    wait_for_predecessor();
    unsigned line = divide(blockIdx.x, args.by_walks);
    Tile<BY_KEYS> tile(args, line);
    typename ProductsOf<BY_KEYS, MATRIX>::Type products(tile);
    // Packs of a row of the table in pairs, the 16 channels of a step of a half type.
    const int all_packs = static_cast<int>((args.width + 2 * WIDE - 1) / (2 * WIDE)) * 2, packs = args.packs;
    const bool whole = all_packs <= packs;
    // The end of the offsets whose rows are there.
    constexpr int NONE = -(1 << 31);
    int end = NONE;
    bool states = false;
    int first = static_cast<int>((blockIdx.x - line * args.walks) * args.walk);
    int tiles = (tile.columns - 1) / PRODUCT_TILE + 1;
#pragma unroll 1
    for (int t = first; t < min(first + static_cast<int>(args.walk), tiles); ++t) {
        tile.column0 = t * PRODUCT_TILE;
        Pairs pairs = tile.pairs();
        int low = tile.column0 - tile.row0 - (PRODUCT_TILE - 1);
        if (pairs == Pairs::EACH) {
            products.each();
            continue;
        }
        if (pairs == Pairs::APART || tile.outside(low, low + 2 * PRODUCT_TILE - 2)) {
            if (pairs == Pairs::APART || !args.call.add) tile.fill(pairs);
            continue;
        }
        // All rows of a constant tile are one, and 16 of them are a step's.
        bool constant = tile.constant(low, low + 2 * PRODUCT_TILE - 2);
        int base = constant ? low : low + 16 * (WARPS - 1 - tile.warp);
        // A warp's own band may lie outside, or be constant, where its tile is not.
        bool none = tile.row0 + 16 * tile.warp >= tile.rows || tile.outside(base, base + 78);
        bool own = constant || tile.constant(base, base + 78);
        if (args.call.add) tile.prefetch();
        products.clear();
#pragma unroll 1
        for (int from = 0; from < all_packs; from += packs) {
            int here = min(packs, all_packs - from);
            int begin = whole && !constant && end > low && end <= low + PRODUCT_BAND ? end : low;
            // Everyone is done with what is replaced.
            __syncthreads();
            tile.put_table(begin, low + (constant ? 16 : PRODUCT_BAND) - begin, from, here);
            if (!whole || !states) tile.put_states(from, here);
            fetched();
            __syncthreads();
            if (!none) products.add(base, own, here);
        }
        states = true, end = constant ? NONE : low + PRODUCT_BAND;
        if (tile.row0 + 16 * tile.warp < tile.rows && !(none && args.call.add)) products.finish(own);
    }
}

// Blocks of a multiprocessor that registers are kept for.
constexpr int BLOCKS = MATRIX ? 4 : 3;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(products_queries) { walk<false>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) KERNEL(products_keys) { walk<true>(args); }
