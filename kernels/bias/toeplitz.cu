// write:  x[b, h, i, j] = bias(h, query i, key j)
// add:    x[b, h, i, j] += bias(h, query i, key j)
// row:    row[h, d] = table[lookup[d], h]
//
// x        [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// table    f32 [buckets, heads], lookup u16 [distances], row f32 [heads, distances]
//
// write and add: blockDim.x threads walk one row, eight keys each at a time; blockDim.y rows a block. Rounded once,
// from float; keys of another packed sequence than the query's get -inf. Bytes: each element is written once, and read
// once by `add`; slopes and rows come from a cache. row: one thread per number.
#include "bias/forms.cuh"
#include "common/exp.cuh"
#include "common/keys.cuh"

#define BOUNDS __launch_bounds__(256, 4)

extern "C" __global__ void BOUNDS KERNEL(apply) {
    unsigned index = blockIdx.x * blockDim.y + threadIdx.y;
    if (index >= args.rows) return;
    wait_for_predecessor();
    Row row(args.bias, index);
    RowBias bias(args.bias, row);
    T::Bits* x = static_cast<T::Bits*>(args.x) + row.offset(args.strides);
    int keys = args.bias.keys;
    // 64 bits: the last step may leave 32.
    for (long long at = threadIdx.x * KEYS; at < keys; at += blockDim.x * KEYS) {
        int key = static_cast<int>(at);
        int count = min(KEYS, keys - key);
        float value[KEYS];
        bias.of(args.bias, row, key, count, value);
        if (args.bias.sequences) {
            // Packed sequences do not see each other.
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (key + i < row.first || key + i >= row.keys) value[i] = -infinity();
            }
        }
        if (args.add) {
            float logit[KEYS];
            load_keys(x + key, count, args.aligned, 0.0f, logit);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) value[i] += logit[i];
        }
        store_keys(x + key, count, args.aligned, value);
    }
}

extern "C" __global__ void BOUNDS KERNEL(row) {
    unsigned distance = blockIdx.x * blockDim.x + threadIdx.x;
    if (distance >= args.count) return;
    unsigned bucket = static_cast<const unsigned short*>(args.lookup)[distance];
    wait_for_predecessor();
    // The table's rows are short and in a cache: heads are walked in a loop so that a bucket is looked up once.
    for (unsigned head = blockIdx.y; head < args.heads; head += gridDim.y) {
        static_cast<float*>(args.row)[static_cast<long long>(head) * args.count + distance] =
            static_cast<const float*>(args.table)[static_cast<long long>(bucket) * args.heads + head];
    }
}
