// Token positions of a call.
#pragma once
#include "common/index.cuh"

// The position of a token on an axis is ids[index + axis * axis_stride] + step, or step alone without ids.
struct Position {
    long long index, step;

    // Of a sequence's own entry, `step` positions on.
    __device__ Position(long long index, long long step) : index(index), step(step) {}
    __device__ Position(const PositionArgs& args, unsigned batch, unsigned token) {
        // Each kind says both, starts first: with defaults that a kind changes, RoPE takes up to four registers more at
        // compute capability 12.0, and in another order the sinusoid takes instructions more.
        if (args.kind == PositionKind::STARTS) {
            index = batch * args.sequence_stride;
            step = token;
        } else if (args.kind == PositionKind::IDS) {
            index = batch * args.sequence_stride + token;
            step = 0;
        } else {
            const int* indptr = static_cast<const int*>(args.indptr);
            index = find_sequence(indptr, args.sequences, token);
            step = static_cast<long long>(token) - indptr[index];
        }
    }

    __device__ unsigned long long on(const PositionArgs& args, unsigned axis) const {
        if (!args.ids) return step;
        return read_id(args.ids, args.id_type, index + axis * args.axis_stride) + step;
    }

    // With one axis.
    __device__ long long value(const PositionArgs& args) const {
        return args.ids ? read_id(args.ids, args.id_type, index) + step : step;
    }
};
