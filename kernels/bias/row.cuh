// One row of logits: which query it is, which keys it sees, and the bias of eight of them at a time.
#pragma once
#include "args.cuh"
#include "bias/bias.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

// A thread takes eight neighbouring keys, counted from the row's first, whatever the alignment: so the same numbers are
// summed in the same order everywhere. 16 bytes of a half type, two times 16 of f32.
constexpr int KEYS = 8;

struct Row {
    unsigned batch, head, query;
    // position of the query, and of key 0 where keys follow one another
    int at, key_start;
    // the sequence's keys, from `first` to below `keys`; none for a query beyond its sequence
    int first, keys;
    bool any;
    float gate;

    __device__ Row(const BiasArgs& args, unsigned row) {
        head = divide(row, args.by_queries);
        query = row - head * args.queries;
        batch = divide(head, args.by_heads);
        head -= batch * args.heads;
        place(args);
    }

    __device__ Row(const BiasArgs& args, unsigned batch, unsigned head, unsigned query)
        : batch(batch), head(head), query(query) {
        place(args);
    }

    __device__ void place(const BiasArgs& args) {
        const int* query_lengths = static_cast<const int*>(args.query_lengths);
        const int* key_lengths = static_cast<const int*>(args.key_lengths);
        const int* positions = static_cast<const int*>(args.query_positions);
        int queries = args.queries;
        int own = static_cast<int>(query);
        first = 0;
        keys = args.keys;
        // A length outside the tensor is the caller's error; the memory outside is left alone all the same.
        if (args.sequences) {
            unsigned sequence = find_sequence(query_lengths, args.sequences, own);
            own -= query_lengths[sequence];
            queries = query_lengths[sequence + 1] - query_lengths[sequence];
            first = max(0, min(keys, key_lengths[sequence]));
            keys = max(first, min(keys, key_lengths[sequence + 1]));
        } else {
            if (query_lengths) queries = max(0, min(queries, query_lengths[batch]));
            if (key_lengths) keys = max(0, min(keys, key_lengths[batch]));
        }
        at = args.last ? keys - first - queries + own : args.query_start + own;
        if (positions) at = positions[static_cast<long long>(batch) * args.queries + query];
        any = own >= 0 && own < queries;
        key_start = args.key_start - first;
        if (!any) first = keys = 0;
        const float* gates = static_cast<const float*>(args.gates);
        gate = gates ? gates[(static_cast<long long>(batch) * args.heads + head) * args.queries + query] : 1.0f;
    }

    // Where keys do not follow one another.
    __device__ const int* key_positions(const BiasArgs& args) const {
        return static_cast<const int*>(args.key_positions) + static_cast<long long>(batch) * args.keys;
    }

    __device__ int distance(const BiasArgs& args, int key) const {
        return (args.key_positions ? key_positions(args)[key] : key_start + key) - at;
    }

    __device__ long long offset(const long long (&strides)[3]) const {
        return batch * strides[0] + head * strides[1] + query * strides[2];
    }
};

// The bias of one row.
struct RowBias {
    // slopes of the past and the future; or a row's ends
    float left, right;
    float factor;
    const float* values;

    __device__ RowBias(const BiasArgs& args, const Row& row) {
        const float* first = static_cast<const float*>(args.values);
        if (args.kind == 3) {
            values = first;
            factor = posenc_fire_factor(values, args.count, args.least_norm, args.eps, row.at);
        } else if (args.kind == 1) {
            long long index = row.batch * args.slopes_stride + row.head;
            left = first[index];
            right = static_cast<const float*>(args.more)[index];
        } else if (args.kind == 2) {
            values = first + static_cast<long long>(row.head) * args.count;
            left = values[0];
            right = values[args.count - 1];
        } else {
            left = right = 0.0f;
        }
    }

    // What a key's index lacks of its distance, or of its position where that is all the bias knows.
    static __device__ int shift(const BiasArgs& args, const Row& row) { return row.key_start - (args.key_only ? 0 : row.at); }

    // The bias of the `count` keys from `key` on, 1 to 8 of them; the others keep what they hold.
    __device__ void of(const BiasArgs& args, const Row& row, int key, int count, float (&bias)[KEYS]) const {
        if (args.kind == 0) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = 0.0f;
            return;
        }
        int from = key + shift(args, row);
        if (args.key_positions || !neighbours(args, from, bias)) {
            int origin = args.key_only ? 0 : row.at;
            int distance[KEYS];
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                distance[i] = from + i;
                if (args.key_positions) distance[i] = i < count ? row.key_positions(args)[key + i] - origin : 0;
            }
            each(args, row, distance, bias);
        }
        if (args.gates) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] *= row.gate;
        }
    }

private:
    // Of keys at any distances.
    __device__ void each(const BiasArgs& args, const Row& row, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
        if (args.kind == 1) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = posenc_alibi(left, right, distance[i]);
        } else if (args.kind == 2) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = posenc_toeplitz(values, args.first, args.count, distance[i]);
        } else {
            long long line = static_cast<long long>(row.head) * (args.break_count + 1);
            const float* slopes = static_cast<const float*>(args.more) + line;
            const float* intercepts = static_cast<const float*>(args.intercepts) + line;
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                float x = posenc_fire_input(values, args.count, factor, distance[i]);
                bias[i] = posenc_fire(static_cast<const float*>(args.breaks), args.break_count, slopes, intercepts, x);
            }
        }
    }

    // The same numbers with less work, where eight distances from `from` on lie on one side of the query, or all inside a
    // row of numbers or all outside. False: they do not.
    __device__ bool neighbours(const BiasArgs& args, int from, float (&bias)[KEYS]) const {
        if (args.kind == 1) {
            // Below 2^24 a float plus one is the next integer.
            bool before = from > -(1 << 24) && from < 1 - KEYS;
            if (!before && (from <= 0 || from >= (1 << 24) - KEYS)) return false;
            float slope = before ? left : -right;
            float distance = static_cast<float>(from);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = slope * (distance + static_cast<float>(i));
            return true;
        }
        if (args.kind == 2) {
            // No difference that is used leaves 32 bits.
            int last = args.first + (args.count - 1);
            if (from >= args.first && from <= last - (KEYS - 1)) {
                const float* at = values + (from - args.first);
#pragma unroll
                for (int i = 0; i < KEYS; ++i) bias[i] = at[i];
                return true;
            }
            // A T5 bias has one value for most of a long row.
            if (from >= last || from <= args.first - (KEYS - 1)) {
#pragma unroll
                for (int i = 0; i < KEYS; ++i) bias[i] = from >= last ? right : left;
                return true;
            }
        }
        return false;
    }
};

// The keys of a row whose bias is one number, or a slope times a distance: packs that begin below `left` take that of the
// past, those from `right` on that of the future.
struct Sides {
    int left, right;

    __device__ Sides(const BiasArgs& args, const Row& row) : left(0), right(0x7fffffff) {
        // Positions lie within 2^30. Below 2^24 a float plus one is the next integer.
        int most = args.kind == 1 ? 1 << 24 : 1 << 30;
        int shift = RowBias::shift(args, row);
        bool near = shift > -most && shift < most - row.keys;
        if (args.key_positions || args.gates || args.kind == 3 || !near) return;
        if (args.kind == 0) {
            left = right;
            return;
        }
        // Distances of the last pack of one side and of the first of the other.
        int past = args.kind == 1 ? -KEYS : args.first - (KEYS - 1);
        int future = args.kind == 1 ? 1 : args.first + (args.count - 1);
        left = past + 1 - shift;
        right = future - shift;
    }
};

// `count` elements from `at` on, 1 to 8; the others become `rest`. `wide`: the row begins at a multiple of 16 bytes.
template <class E = T>
__device__ void load_keys(const typename E::Bits* at, int count, bool wide, float rest, float (&x)[KEYS]) {
    if (wide && count == KEYS) {
#pragma unroll
        for (int i = 0; i < KEYS; i += WIDE) {
            float part[WIDE];
            unpack(Pack<WIDE>::load(at + i), part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) x[i + j] = part[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = i < count ? E::widen(at[i]) : rest;
    }
}

// One instruction: left to itself, NVRTC splits some of these where the other branch stores one by one.
__device__ __forceinline__ void store_wide(void* at, uint4 raw) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(raw.x), "r"(raw.y),
                 "r"(raw.z), "r"(raw.w)
                 : "memory");
}

template <class E = T>
__device__ void store_keys(typename E::Bits* at, int count, bool wide, const float (&x)[KEYS]) {
    if (wide && count == KEYS) {
#pragma unroll
        for (int i = 0; i < KEYS; i += WIDE) {
            float part[WIDE];
#pragma unroll
            for (int j = 0; j < WIDE; ++j) part[j] = x[i + j];
            store_wide(at + i, pack(part).raw);
        }
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            if (i < count) at[i] = E::narrow(x[i]);
        }
    }
}
