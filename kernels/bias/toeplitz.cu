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
#include "bias/apply.cuh"
#include "bias/forms.cuh"

#define BOUNDS __launch_bounds__(256, 4)

extern "C" __global__ void BOUNDS KERNEL(apply) { apply<RowBias>(args); }

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
