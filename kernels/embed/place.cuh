// Where a token stands, and groups of channels, for the kernels of this room.
#pragma once

#include "common/index.cuh"

// Where the position of `token` of sequence `batch` stands among the call's positions, if it has any, and what is added.
template <class Args> __device__ void locate(const Args& args, unsigned batch, unsigned token, long long& index, long long& step) {
    index = batch * args.sequence_stride;
    step = token;
    if (args.position_kind == 0) {
        index += token;
        step = 0;
    } else if (args.position_kind == 2) {
        const int* indptr = static_cast<const int*>(args.indptr);
        index = find_sequence(indptr, args.sequences, token);
        step = static_cast<long long>(token) - indptr[index];
    }
}

// Position of `token` of sequence `batch`, the call's first position included.
template <class Args> __device__ long long place(const Args& args, unsigned batch, unsigned token) {
    long long index, step;
    locate(args, batch, token, index, step);
    return args.positions ? read_id(args.positions, args.position_type, index) + step : step;
}
