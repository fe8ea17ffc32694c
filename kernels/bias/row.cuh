// One row of logits: which query it is and which keys it sees.
#pragma once
#include "args.cuh"
#include "common/index.cuh"

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
