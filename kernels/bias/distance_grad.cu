// diagonals:  sums[split, h, d] = sum over batch and the split's queries of grad[b, h, i, j] with key j - query i = d
// intervals:  out[o, h] = factor * sum over splits and the distances of interval o of sums[split, h, d] * weight
//
// grad       [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// sums       f32 [splits, heads, distances], every distance of the call
// intervals  i32 [outputs, 2]; weight is 1, -|d|, or f32 [outputs, heads, weighted]
//
// The gradient of every parameter of a distance bias, without atomics: batch, then diagonals, then buckets. A thread of
// `diagonals` owns one distance and adds its numbers in their order, with compensation; neighbours own neighbouring
// distances, so that a warp reads a piece of one row. Bytes: each number of grad is read once. The result depends on the
// shape alone, not on the device.
// A warp of `intervals` owns one output: 89 % of a causal T5's pairs fall into its last bucket, and here they are a few
// thousand sums that 32 lanes share.
#include "bias/row.cuh"
#include "bias/reduce.cuh"

extern "C" __global__ void __launch_bounds__(256) ENTRY(diagonals)(const DiagonalArgs args) {
    wait_for_predecessor();
    unsigned own = blockIdx.x * 256 + threadIdx.x;
    unsigned head = blockIdx.y;
    int first_query = static_cast<int>(blockIdx.z * args.rows);
    Sum sum;
    for (unsigned batch = 0; batch < args.bias.batch; ++batch) {
        Row row(args.bias, batch, head, 0);
        int queries = args.bias.queries;
        const int* lengths = static_cast<const int*>(args.bias.query_lengths);
        if (lengths) queries = max(0, min(queries, lengths[batch]));
        // Key of query 0 at this block's least distance: query i meets this thread's distance at key start + own + i.
        long long start = static_cast<long long>(args.first) + blockIdx.x * 256ll + row.at - row.key_start;
        long long low = max(static_cast<long long>(first_query), -(start + 255));
        long long high = min(min(first_query + static_cast<long long>(args.rows), static_cast<long long>(queries)), row.keys - start);
        const T::Bits* at = static_cast<const T::Bits*>(args.grad) + row.offset(args.strides);
        const float* gates = static_cast<const float*>(args.bias.gates);
        if (gates) gates += (static_cast<long long>(batch) * args.bias.heads + head) * args.bias.queries;
#pragma unroll 4
        for (long long query = low; query < high; ++query) {
            long long key = start + threadIdx.x + query;
            if (key < 0 || key >= row.keys || own >= args.distances) continue;
            float value = T::widen(at[query * args.strides[2] + key]);
            sum.add(gates ? value * gates[query] : value);
        }
    }
    if (own < args.distances) {
        long long index = (static_cast<long long>(blockIdx.z) * gridDim.y + head) * args.distances + own;
        static_cast<float*>(args.sums)[index] = sum.total;
    }
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(intervals)(const IntervalArgs args) {
    wait_for_predecessor();
    unsigned output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned head = blockIdx.y;
    if (output >= args.outputs) return;
    const int* interval = static_cast<const int*>(args.intervals) + 2ll * output;
    long long low = max(static_cast<long long>(interval[0]) - args.first, 0ll);
    long long high = min(static_cast<long long>(interval[1]) - args.first, args.distances - 1ll);
    const float* weights = static_cast<const float*>(args.weights);
    if (weights) weights += (static_cast<long long>(output) * args.heads + head) * args.weighted;
    Sum sum;
    for (unsigned split = 0; split < args.splits; ++split) {
        const float* sums = static_cast<const float*>(args.sums) + (static_cast<long long>(split) * args.heads + head) * args.distances;
        for (long long index = low + threadIdx.x % 32; index <= high; index += 32) {
            int distance = static_cast<int>(args.first + index);
            float value = sums[index];
            if (args.by_distance) value *= -static_cast<float>(abs(distance));
            if (weights) value *= weights[min(max(distance - args.weights_first, 0), static_cast<int>(args.weighted) - 1)];
            sum.add(value);
        }
    }
    float total = warp_sum(sum.total) * args.factor;
    if (threadIdx.x % 32 == 0) {
        static_cast<float*>(args.out)[output * args.output_stride + head * args.head_stride] = total;
    }
}
