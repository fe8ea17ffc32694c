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
#include "bias/row.cuh"
#include "common/keys.cuh"

// One query, as a term sees it.
struct TermQuery {
    // its position, or its coordinate
    int at;
    // its row and column in the window, scaled; `state`: 0 outside, 1 in the window, 2 before it
    int y, x, state;

    __device__ TermQuery(const TermArgs& term, const BiasArgs& args, const Row& row) {
        at = row.at;
        if (term.query_at) {
            at = static_cast<const int*>(term.query_at)[static_cast<long long>(row.batch) * args.queries + row.query];
        }
        y = x = state = 0;
        if (term.kind == TermKind::GRID || term.kind == TermKind::SHIFTED) {
            state = place(term, term.query, at, y, x);
            if (term.kind == TermKind::SHIFTED) at = region(term, row, y, x);
        }
    }

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
        unsigned window = row.batch % term.windows[0];
        unsigned line = window / term.windows[1];
        int iy = static_cast<int>(line) * term.window[0] + y;
        int ix = static_cast<int>(window - line * term.windows[1]) * term.window[1] + x;
        int vertical = (iy >= term.last[0]) + (iy >= term.wrapped[0]);
        int horizontal = (ix >= term.last[1]) + (ix >= term.wrapped[1]);
        return 3 * vertical + horizontal;
    }

    // The entry for a key at `position`; -1: nothing is added.
    __device__ int entry(const TermArgs& term, const Row& row, int position) const {
        if (term.kind == TermKind::DISTANCE) {
            long long distance = static_cast<long long>(position) - at;
            long long n = (term.reversed ? -distance : distance) - term.first;
            if (term.zero_outside && (n < 0 || n >= term.count)) return -1;
            int near = static_cast<int>(max(0ll, min(n, term.count - 1ll)));
            return term.more ? static_cast<const unsigned short*>(term.more)[near] : near;
        }
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
        for (int i = 0; i < KEYS; ++i) at[i] = given ? (i < count ? given[key + i] : 0) : row.key_start + key + i;
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
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                int entry = i < count ? query.entry(term, row, at[i]) : -1;
                value[i] = entry < 0 ? 0.0f : number(term, term.values, base + i * strides[3] + entry * strides[4]);
            }
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = fmaf(term.factor, value[i], bias[i]);
        }
        if (args.gates) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] *= row.gate;
        }
    }

private:
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
};
