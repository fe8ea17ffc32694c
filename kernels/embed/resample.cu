// A table of a grid at another size:  out[y, x] = sum over the taps of y and x of row weight * column weight *
// table[..].
//
// out             [prefix + out_rows * out_columns, dim]
// table           [prefix + in_rows * in_columns, dim]
// *_spans         [outputs] first tap and number of taps
// *_weights       [outputs, most taps] f32
//
// One thread owns W channels of one output token and walks its taps, columns inside rows, in f32. The prefix is copied.
// The transpose is the same kernel with the transposed taps.
//
// Bytes: one row written; taps-of-y * taps-of-x rows read, which neighbouring outputs share in a cache.
#include "args.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

template <int W> __device__ void resample(const ResampleArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.prefix + args.out_rows * args.out_columns) return;
    wait_for_predecessor();
    const T::Bits* table = static_cast<const T::Bits*>(args.table);
    T::Bits* out = static_cast<T::Bits*>(args.out) + token * static_cast<long long>(args.dim);
    bool copied = token < args.prefix;
    unsigned place = copied ? 0 : token - args.prefix;
    unsigned y = place / args.out_columns, x = place - y * args.out_columns;
    uint2 rows = static_cast<const uint2*>(args.row_spans)[y];
    uint2 columns = static_cast<const uint2*>(args.column_spans)[x];
    const float* row_weights = static_cast<const float*>(args.row_weights) + y * static_cast<long long>(args.row_taps);
    const float* column_weights =
        static_cast<const float*>(args.column_weights) + x * static_cast<long long>(args.column_taps);
    for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += blockDim.x * W) {
        float sum[W] = {};
        if (copied) {
            unpack(Pack<W>::load(table + token * static_cast<long long>(args.dim) + channel), sum);
        } else {
#pragma unroll 1
            for (unsigned i = 0; i < rows.y; ++i) {
                const T::Bits* from =
                    table +
                    (args.prefix + (rows.x + i) * static_cast<long long>(args.in_columns) + columns.x) * args.dim +
                    channel;
                float line[W] = {};
#pragma unroll 4
                for (unsigned j = 0; j < columns.y; ++j, from += args.dim) {
                    float value[W];
                    unpack(Pack<W>::load(from), value);
#pragma unroll
                    for (int c = 0; c < W; ++c) line[c] = fmaf(value[c], column_weights[j], line[c]);
                }
#pragma unroll
                for (int c = 0; c < W; ++c) sum[c] = fmaf(line[c], row_weights[i], sum[c]);
            }
        }
        if (args.accumulate) {
            float old[W];
            unpack(Pack<W>::load(out + channel), old);
#pragma unroll
            for (int c = 0; c < W; ++c) sum[c] += old[c];
        }
        pack(sum).store(out + channel);
    }
}

extern "C" __global__ void __launch_bounds__(256) KERNEL(resample_wide) { resample<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(256) KERNEL(resample_one) { resample<1>(args); }
