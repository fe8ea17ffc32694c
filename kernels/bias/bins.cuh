// Sums of the elements of a call in bins, by a warp that walks rows: without atomics and always in the same order.
//
// The warp takes 32 neighbouring keys at a time. Lanes whose elements fall into one bin are added as a tree, and one of
// them adds the sum to the bin in memory, with compensation. Far from the query all 32 keys share a bin.
#pragma once
#include "bias/row.cuh"
#include "common/reduce.cuh"
#include "common/scalar.cuh"

// One warp's bins of SUMS numbers each: totals, and what compensation keeps beside them.
template <int SUMS> struct Bins {
    float* totals;
    float* rests;

    __device__ void clear(unsigned bins) const {
#pragma unroll 1
        for (unsigned i = threadIdx.x % 32; i < bins * SUMS; i += 32) totals[i] = rests[i] = 0.0f;
        __syncwarp();
    }

    __device__ void put(int bin, const float (&x)[SUMS]) const {
#pragma unroll
        for (int i = 0; i < SUMS; ++i) {
            Sum sum{totals[bin * SUMS + i], rests[bin * SUMS + i]};
            sum.add(x[i]);
            totals[bin * SUMS + i] = sum.total;
            rests[bin * SUMS + i] = sum.rest;
        }
    }

    // All lanes of the warp; a bin below 0 is none.
    __device__ void add(int bin, const float (&x)[SUMS]) const {
        unsigned lane = threadIdx.x % 32;
        unsigned same = __match_any_sync(ALL_LANES, bin);
        // What other lanes wrote in the last call is seen.
        __syncwarp();
        if (__all_sync(ALL_LANES, bin < 0 || (same & (same - 1)) == 0)) {
            if (bin >= 0) put(bin, x);
            return;
        }
        unsigned left = __ballot_sync(ALL_LANES, bin >= 0);
#pragma unroll 1
        while (left) {
            unsigned first = __ffs(left) - 1;
            unsigned group = __shfl_sync(ALL_LANES, same, first);
            float sum[SUMS];
#pragma unroll
            for (int i = 0; i < SUMS; ++i) sum[i] = warp_sum(group >> lane & 1 ? x[i] : 0.0f);
            if (lane == first) put(bin, sum);
            left &= ~group;
        }
    }
};

// Walks the rows `first ..` of a head, `rows` of them at most, counted over sequences; `each(row)` is what to do with a
// row.
template <class F> __device__ void walk_rows(const BiasArgs& args, unsigned head, unsigned first, unsigned rows,
                                             F each) {
    // A call has fewer than 2^31 rows, others are refused. One division for all of them.
    unsigned batch = first / args.queries;
    unsigned query = first - batch * args.queries;
    for (; rows && batch < args.batch; --rows) {
        each(Row(args, batch, head, query));
        if (++query == args.queries) {
            query = 0;
            ++batch;
        }
    }
}
