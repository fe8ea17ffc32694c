// sums[split, h, d] = sum over batch and the split's queries of grad[b, h, i, j] with key j - query i = d
// out[o, h] = factor * sum over splits and the distances of interval o of sums[split, h, d] * weight
//
// grad       [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// sums       f32 [splits, heads, distances], every distance of the call; or bins, see below
// intervals  i32 [outputs, 2]; weight is 1, -|d|, or f32 [outputs, heads, weighted]
//
// The gradient of every parameter of a distance bias, without atomics on numbers: batch, then diagonals, then buckets. Each
// number of grad is read once. The result depends on the shape alone, not on the device.
//
// `diagonals`: where queries and keys follow one another. A thread owns one distance and adds its numbers in their order,
// with compensation; neighbours own neighbouring distances, so that a warp reads a piece of one row.
// `bins`: where they have positions of their own. A warp walks rows and adds to bins, one for each distance of the target;
// distances outside take the nearest one, or, where the weight is -|d|, three bins hold the sides times |d|.
// The last block of a head then adds what its other blocks left: a warp takes an output. 89 % of a causal T5's pairs fall
// into its last bucket, and here they are a few thousand sums that 32 lanes share.
#include "bias/bins.cuh"

// Adds the sums of a head to its outputs; all threads of the head's last block.
__device__ void intervals(const DistanceGradArgs& args, unsigned head) {
    for (unsigned output = threadIdx.x / 32; output < args.outputs; output += blockDim.x / 32) {
        const int* interval = static_cast<const int*>(args.intervals) + 2ll * output;
        long long low = max(static_cast<long long>(interval[0]) - args.first, 0ll);
        long long high = min(static_cast<long long>(interval[1]) - args.first, args.distances - 1ll);
        const float* weights = static_cast<const float*>(args.weights);
        if (weights) weights += (static_cast<long long>(output) * args.bias.heads + head) * args.weighted;
        Sum sum;
        for (unsigned split = 0; split < args.splits; ++split) {
            const float* sums = static_cast<const float*>(args.sums) +
                                (static_cast<long long>(split) * args.bias.heads + head) * args.distances;
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
}

__device__ __forceinline__ void diagonals(const DistanceGradArgs& args, unsigned head) {
    const BiasArgs& bias = args.bias;
    unsigned own = blockIdx.x * 256 + threadIdx.x;
    int first_query = static_cast<int>(blockIdx.z * args.rows);
    int end_query = static_cast<int>(min(static_cast<long long>(first_query) + args.rows, static_cast<long long>(bias.queries)));
    const int* query_lengths = static_cast<const int*>(bias.query_lengths);
    // Of packed sequences those that have queries of this split.
    unsigned sequence = bias.sequences ? find_sequence(query_lengths, bias.sequences, first_query) : 0;
    unsigned sequences = bias.sequences ? bias.sequences : bias.batch;
    Sum sum;
    for (; sequence < sequences; ++sequence) {
        int query = 0, queries = bias.queries;
        if (bias.sequences) {
            query = max(0, query_lengths[sequence]);
            if (query >= end_query) break;
            queries = min(queries, query_lengths[sequence + 1]);
            if (queries <= query) continue;
        } else if (query_lengths) {
            queries = max(0, min(queries, query_lengths[sequence]));
        }
        Row row(bias, bias.sequences ? 0 : sequence, head, query);
        // Key of query 0 at this block's least distance: query i meets this thread's distance at key start + own + i.
        long long start = static_cast<long long>(args.first) + blockIdx.x * 256ll + row.at - query - row.key_start;
        long long low = max(static_cast<long long>(max(first_query, query)), row.first - (start + 255));
        long long high = min(static_cast<long long>(min(end_query, queries)), row.keys - start);
        const T::Bits* at = static_cast<const T::Bits*>(args.grad) + row.batch * args.strides[0] + head * args.strides[1];
        const float* gates = static_cast<const float*>(bias.gates);
        if (gates) gates += (static_cast<long long>(row.batch) * bias.heads + head) * bias.queries;
#pragma unroll 4
        for (long long i = low; i < high; ++i) {
            long long key = start + threadIdx.x + i;
            if (key < row.first || key >= row.keys || own >= args.distances) continue;
            float value = T::widen(at[i * args.strides[2] + key]);
            sum.add(gates ? value * gates[i] : value);
        }
    }
    if (own < args.distances) {
        long long index = (static_cast<long long>(blockIdx.z) * gridDim.y + head) * args.distances + own;
        static_cast<float*>(args.sums)[index] = sum.total;
    }
}

__device__ __forceinline__ void bins(const DistanceGradArgs& args, unsigned head) {
    const BiasArgs& bias = args.bias;
    unsigned split = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (split < args.splits) {
        long long size = static_cast<long long>(args.splits) * bias.heads * args.distances;
        long long at = (static_cast<long long>(split) * bias.heads + head) * args.distances;
        Bins<1> bins{static_cast<float*>(args.sums) + at, static_cast<float*>(args.sums) + size + at};
        bins.clear(args.distances);
        walk_rows(bias, head, split * args.rows, args.rows, [&](const Row& row) {
            const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + row.offset(args.strides);
            // 64 bits: the last step may leave 32.
            for (long long step = row.first; step < row.keys; step += 32) {
                long long key = step + threadIdx.x % 32;
                float value[1] = {0.0f};
                int bin = -1;
                if (key < row.keys) {
                    int distance = row.distance(bias, static_cast<int>(key));
                    int last = args.first + static_cast<int>(args.distances) - 1;
                    // No difference leaves 32 bits.
                    bin = max(min(distance, last), args.first) - args.first;
                    value[0] = T::widen(grad[key]) * row.gate;
                    if (args.by_distance) value[0] *= static_cast<float>(abs(distance));
                }
                bins.add(bin, value);
            }
        });
    }
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(distance_grad)(const DistanceGradArgs args) {
    wait_for_predecessor();
    unsigned head = blockIdx.y;
    if (args.bins) {
        bins(args, head);
    } else {
        diagonals(args, head);
    }
    if (last_of(static_cast<unsigned*>(args.counters) + head, gridDim.x * gridDim.z)) intervals(args, head);
}
