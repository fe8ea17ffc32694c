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

    // Of a kind that has no sequences to look for.
    static __device__ Position own(const PositionArgs& args, unsigned batch, unsigned token) {
        long long row = batch * args.sequence_stride;
        return args.kind == PositionKind::STARTS ? Position(row, token) : Position(row + token, 0);
    }

    // With one axis.
    __device__ long long value(const PositionArgs& args) const {
        return args.ids ? read_id(args.ids, args.id_type, index) + step : step;
    }
};

// An id as it lies in memory. Whoever uses what a load brings waits for it, and so does everything behind that use:
// until then other loads can be on their way.
struct RawId {
    unsigned low = 0, high = 0;

    // Where the id of an index lies.
    static __device__ const unsigned* at(const void* ids, IdType type, long long index) {
        return static_cast<const unsigned*>(ids) + (type == IdType::I64 ? 2 * index : index);
    }

    __device__ void load(IdType type, const unsigned* at) {
        low = at[0];
        if (type == IdType::I64) high = at[1];
    }

    __device__ unsigned long long value(IdType type) const {
        unsigned sign = type == IdType::I32 ? static_cast<unsigned>(static_cast<int>(low) >> 31) : 0;
        return static_cast<unsigned long long>(type == IdType::I64 ? high : sign) << 32 | low;
    }
};
