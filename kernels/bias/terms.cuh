// A bias as a sum of terms: each reads one number of an array, chosen by query and key.
//
//     bias(b, h, i, j) = sum over terms of factor * values[b, h, i, j, entry(i, j)]
//
// An array has strides for batch, head, query, key and entry, 0 where it has no such dimension: a table of a window or
// of distances has heads and entries, products of states and a table have queries (or keys) and entries, a dense bias
// has queries and keys. The entry is arithmetic, so that no array of indices is read, but for TermKind::GIVEN.
//
//     DISTANCE    +-(key - query) - first, clamped, or nothing outside; then through a table of entries, if there is
// one
//     GRID        (yq - yk) * steps[0] + (xq - xk) * steps[1] + origin, signed, mirrored or by size
//     SHIFTED     `factor` where the shifted window has query and key in two regions
//     GIVEN       more[b, i, j]
//     ENDPOINTS   values[b, h, i] - more[b, h, j], each of which may be two floats
//
// A new kind is a code in TermKind, a line here, and a branch in `entry`.
#pragma once
#include "bias/bias.cuh"
#include "bias/row.cuh"
#include "common/keys.cuh"

// The entry of a query and a key at these positions; -1: nothing is added.
__device__ __forceinline__ int entry_by_distance(const TermArgs& term, int query, int key) {
    int near = posenc_distance_entry(term.reversed ? query - key : key - query, term.first, term.count,
                                     term.zero_outside != 0);
    return term.more && near >= 0 ? static_cast<const unsigned short*>(term.more)[near] : near;
}

// One query, as a term sees it.
struct TermQuery {
    // its position, or its coordinate
    int at;
    // its row and column in the window, scaled; `state`: 0 outside, 1 in the window, 2 before it
    int y, x, state;

    __device__ TermQuery(const TermArgs& term, const BiasArgs& args, const Row& row) {
        at = row.at;
        if (term.query_at) {
            const int* given = static_cast<const int*>(term.query_at);
            at = coordinate(given[static_cast<long long>(row.batch) * args.queries + row.query]);
        }
        y = x = state = 0;
        if (term.kind == TermKind::GRID || term.kind == TermKind::SHIFTED) {
            state = place(term, term.query, at, y, x);
            if (term.kind == TermKind::SHIFTED) at = region(term, row, y, x);
        }
    }

    // Coordinates count as the nearest that positions may have, from -2^30 to below 2^30, so that no difference leaves
    // 32 bits.
    static __device__ int coordinate(int at) { return max(-(1 << 30), min(at, (1 << 30) - 1)); }

    // Row and column of a token; what `state` says of it.
    static __device__ int place(const TermArgs& term, const WindowArgs& window, int token, int& y, int& x) {
        if (static_cast<unsigned>(token) >= window.tokens) return 0;
        if (static_cast<unsigned>(token) < term.prefix) return 2;
        unsigned own = static_cast<unsigned>(token) - term.prefix;
        unsigned line = divide(own, window.by_width);
        y = static_cast<int>(line) * window.scale;
        x = static_cast<int>(own - line * window.width) * window.scale;
        return 1;
    }

    // The region of the image that a token of a shifted window comes from.
    static __device__ int region(const TermArgs& term, const Row& row, int y, int x) {
        unsigned window = row.batch - divide(row.batch, term.by_image) * term.windows[0];
        unsigned line = divide(window, term.by_row);
        int iy = static_cast<int>(line) * term.window[0] + y;
        int ix = static_cast<int>(window - line * term.windows[1]) * term.window[1] + x;
        int vertical = (iy >= term.last[0]) + (iy >= term.wrapped[0]);
        int horizontal = (ix >= term.last[1]) + (ix >= term.wrapped[1]);
        return 3 * vertical + horizontal;
    }

    // The entry for a key at `position`; -1: nothing is added.
    __device__ int entry(const TermArgs& term, const Row& row, int position) const {
        if (term.kind == TermKind::DISTANCE) return entry_by_distance(term, at, position);
        if (term.kind == TermKind::GRID) {
            int key_y = 0, key_x = 0;
            int key = place(term, term.key, position, key_y, key_x);
            if (!state || !key) return -1;
            if (state == 2 || key == 2) {
                return term.prefix_entry < 0 ? -1 : term.prefix_entry + (state == 2 ? (key == 2 ? 2 : 0) : 1);
            }
            int dy = y + key_y, dx = x + key_x;
            if (term.absolute) dy = abs(dy), dx = abs(dx);
            return dy * term.steps[0] + dx * term.steps[1] + term.origin;
        }
        if (term.kind == TermKind::GIVEN) {
            if (at < 0 || at >= term.rows || position < 0 || position >= term.count) return -1;
            long long index = row.batch * term.more_strides[0] + at * term.more_strides[1] + position;
            int id;
            if (term.index_type == IndexType::U8) {
                id = static_cast<const unsigned char*>(term.more)[index];
            } else if (term.index_type == IndexType::U16) {
                id = static_cast<const unsigned short*>(term.more)[index];
            } else {
                id = static_cast<const int*>(term.more)[index];
            }
            return id >= 0 && id < term.entries ? id : -1;
        }
        return 0;
    }
};

// The sum of the terms of one row; its functions are those of RowBias.
struct TermsBias {
    static constexpr bool SIDED = false;

    const TermsArgs& terms;

    __device__ TermsBias(const BiasArgs&, const Row&, const TermsArgs& terms) : terms(terms) {}

    // What multiplies the logits of a head. Read for each pack, from a cache: held for the row it would be one more
    // register.
    __device__ float scale(const SoftmaxLaw& law, const Row& row) const { return scale(law, row, terms); }
    static __device__ float scale(const SoftmaxLaw& law, const Row& row, const TermsArgs& terms) {
        return terms.scales ? law.scale * static_cast<const float*>(terms.scales)[row.head] : law.scale;
    }

    static __device__ float number(const TermArgs& term, const void* values, long long index) {
        return term.values_f32 ? static_cast<const float*>(values)[index]
                               : T::widen(static_cast<const T::Bits*>(values)[index]);
    }

    // The positions of the `count` keys from `key` on, or their coordinates.
    static __device__ void positions(const TermArgs& term, const BiasArgs& args, const Row& row, int key, int count,
                                     int (&at)[KEYS]) {
        const int* given = args.key_positions ? row.key_positions(args) : nullptr;
        if (term.key_at) given = static_cast<const int*>(term.key_at) + static_cast<long long>(row.batch) * args.keys;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) at[i] = given && i < count ? given[key + i] : row.key_start + key + i;
        if (term.key_at) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) at[i] = TermQuery::coordinate(at[i]);
        }
    }

    // The bias of the `count` keys from `key` on, 1 to 8 of them; the others get anything.
    __device__ void of(const BiasArgs& args, const Row& row, int key, int count, float (&bias)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] = 0.0f;
#pragma unroll 1
        for (unsigned t = 0; t < terms.count; ++t) {
            const TermArgs& term = terms.terms[t];
            if (term.kind == TermKind::ENDPOINTS) {
                endpoints(term, row, key, count, bias);
                continue;
            }
            int at[KEYS];
            positions(term, args, row, key, count, at);
            TermQuery query(term, args, row);
            if (term.kind == TermKind::SHIFTED) {
                shifted(term, row, query, at, bias);
                continue;
            }
            const long long (&strides)[5] = term.strides;
            long long base = row.batch * strides[0] + row.head * strides[1] + row.query * strides[2] + key * strides[3];
            float value[KEYS];
            bool follow = !args.key_positions && !term.key_at && count == KEYS;
            if (!follow || !neighbours(term, query, at[0], base, value)) {
#pragma unroll
                for (int i = 0; i < KEYS; ++i) {
                    int entry = i < count ? query.entry(term, row, at[i]) : -1;
                    value[i] = entry < 0 ? 0.0f : number(term, term.values, base + i * strides[3] + entry * strides[4]);
                }
            }
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = fmaf(term.factor, value[i], bias[i]);
        }
        if (args.gates) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] *= row.gate;
        }
    }

    // The same times `factor`, as a softmax adds it.
    __device__ void weighted(const BiasArgs& args, const Row& row, int key, int count, float factor,
                             float (&bias)[KEYS]) const {
        of(args, row, key, count, bias);
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] *= factor;
    }

private:
    // Eight keys that follow one another, if their entries do so too, all lie outside, or all lie inside a window.
    static __device__ bool neighbours(const TermArgs& term, const TermQuery& query, int position, long long base,
                                      float (&value)[KEYS]) {
        if (term.kind == TermKind::GRID) return inside(term, query, position, base, value);
        if (term.kind == TermKind::WHOLE) {
            return term.strides[3] == 1 && load_run(term, base, base, base + KEYS, false, value);
        }
        if (term.kind != TermKind::DISTANCE) return false;
        // The distances of the first key and of the last.
        int first = term.reversed ? query.at - position : position - query.at;
        int low = term.reversed ? first - (KEYS - 1) : first, high = low + (KEYS - 1);
        int last = term.first + (term.count - 1);
        if (term.zero_outside && (low > last || high < term.first)) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) value[i] = 0.0f;
            return true;
        }
        if (term.strides[3] != 0 || low < term.first || high > last) return false;
        int entry = low - term.first;
        if (term.more) {
            // Entries that never fall and never skip one: equal, or one after another, if their ends are.
            if (!term.smooth) return false;
            const unsigned short* lookup = static_cast<const unsigned short*>(term.more) + entry;
            entry = lookup[0];
            int rise = lookup[KEYS - 1] - entry;
            if (rise == 0) {
                float one = number(term, term.values, base + entry * term.strides[4]);
#pragma unroll
                for (int i = 0; i < KEYS; ++i) value[i] = one;
                return true;
            }
            if (rise != KEYS - 1) return false;
        }
        return term.strides[4] == 1 && load_run(term, base + entry, base, base + term.entries, term.reversed, value);
    }

    static __device__ void shifted(const TermArgs& term, const Row& row, const TermQuery& query, const int (&at)[KEYS],
                                   float (&bias)[KEYS]) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            int y = 0, x = 0;
            int state = TermQuery::place(term, term.key, at[i], y, x);
            bool apart = query.state && state && TermQuery::region(term, row, y, x) != query.at;
            bias[i] += apart ? term.factor : 0.0f;
        }
    }

    // A number of the query less one of the key; with second floats the difference of those too.
    static __device__ void endpoints(const TermArgs& term, const Row& row, int key, int count, float (&bias)[KEYS]) {
        const long long (&strides)[5] = term.strides;
        long long own = row.batch * strides[0] + row.head * strides[1] + row.query * strides[2];
        long long base =
            row.batch * term.more_strides[0] + row.head * term.more_strides[1] + key * term.more_strides[2];
        float first = number(term, term.values, own);
        float second = term.second[0] ? number(term, term.values, own + term.second[0]) : 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            if (i >= count) continue;
            long long index = base + i * term.more_strides[2];
            float value = first - number(term, term.more, index);
            if (term.second[1]) value += second - number(term, term.more, index + term.second[1]);
            bias[i] = fmaf(term.factor, value, bias[i]);
        }
    }

    // Eight keys that all lie in the window: a division for the first of them.
    static __device__ bool inside(const TermArgs& term, const TermQuery& query, int position, long long base,
                                  float (&value)[KEYS]) {
        int first = position - static_cast<int>(term.prefix), tokens = static_cast<int>(term.key.tokens - term.prefix);
        if (query.state != 1 || first < 0 || first > tokens - KEYS) return false;
        int y, x, scale = term.key.scale;
        TermQuery::place(term, term.key, position, y, x);
        int end = static_cast<int>(term.key.width) * scale;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            int dy = query.y + y, dx = query.x + x;
            if (term.absolute) dy = abs(dy), dx = abs(dx);
            long long entry = dy * term.steps[0] + dx * term.steps[1] + term.origin;
            value[i] = number(term, term.values, base + i * term.strides[3] + entry * term.strides[4]);
            x += scale;
            if (x == end) x = 0, y += scale;
        }
        return true;
    }

    // The eight numbers from element `index` on, backwards if `reversed`, by aligned accesses of 16 bytes; false if one
    // of these would leave the elements from `begin` to below `end`.
    static __device__ bool load_run(const TermArgs& term, long long index, long long begin, long long end,
                                    bool reversed, float (&value)[KEYS]) {
        float run[KEYS];
        bool there = term.values_f32 ? load_words<f32>(term.values, index, begin, end, run)
                                     : load_words<T>(term.values, index, begin, end, run);
#pragma unroll
        for (int i = 0; i < KEYS; ++i) value[i] = reversed ? run[KEYS - 1 - i] : run[i];
        return there;
    }

    template <class E>
    static __device__ bool load_words(const void* values, long long index, long long begin, long long end,
                                      float (&run)[KEYS]) {
        constexpr int SIZE = sizeof(typename E::Bits), PACKS = KEYS * SIZE / 16 + 1, WORDS = KEYS * SIZE / 4;
        long long start = reinterpret_cast<long long>(values), from = start + index * SIZE, aligned = from & ~15ll;
        unsigned skip = static_cast<unsigned>(from - aligned);
        // Without a rest the last access is not needed.
        long long bytes = skip ? PACKS * 16 : (PACKS - 1) * 16;
        if (aligned < start + begin * SIZE || aligned + bytes > start + end * SIZE) return false;
        unsigned word[4 * PACKS];
        const uint4* at = reinterpret_cast<const uint4*>(aligned);
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            uint4 pack = i + 1 < PACKS || skip ? at[i] : make_uint4(0, 0, 0, 0);
            word[4 * i] = pack.x, word[4 * i + 1] = pack.y, word[4 * i + 2] = pack.z, word[4 * i + 3] = pack.w;
        }
        // By two words, by one, and by half a word.
#pragma unroll
        for (int i = 0; i < WORDS + 2; ++i) word[i] = skip & 8 ? word[i + 2] : word[i];
#pragma unroll
        for (int i = 0; i < WORDS + 1; ++i) word[i] = skip & 4 ? word[i + 1] : word[i];
        if constexpr (SIZE == 2) {
#pragma unroll
            for (int i = 0; i < WORDS; ++i) {
                unsigned both = __funnelshift_r(word[i], word[i + 1], (skip & 2) * 8);
                run[2 * i] = E::widen(static_cast<typename E::Bits>(both & 0xffff));
                run[2 * i + 1] = E::widen(static_cast<typename E::Bits>(both >> 16));
            }
        } else {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) run[i] = E::widen(word[i]);
        }
        return true;
    }
};
