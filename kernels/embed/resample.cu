// A table of a grid at another size:  out[y, x] = sum over the taps of y and x of row weight * column weight *
// table[..].
//
// out             [prefix + out_rows * out_columns, dim]
// table           [prefix + in_rows * in_columns, dim]
// *_spans         [outputs] first tap and number of taps
// *_weights       [outputs, most taps] f32
//
// Sums are in f32. The prefix is copied. The transpose is the same kernel with the transposed taps.
//
// Bytes: one row written. In tiles, inputs are read once for each tile that has them among its taps; else
// taps-of-y * taps-of-x rows, which neighbouring outputs share in a cache.
#include "args.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

// Rounds and writes a sum of one output token.
template <int W> __device__ void write(const ResampleArgs& args, unsigned token, unsigned channel, float (&sum)[W]) {
    T::Bits* out = static_cast<T::Bits*>(args.out) + token * static_cast<long long>(args.dim) + channel;
    if (args.accumulate) {
        float old[W];
        unpack(Pack<W>::load(out), old);
#pragma unroll
        for (int c = 0; c < W; ++c) sum[c] += old[c];
    }
    pack(sum).store(out);
}

// A token of the prefix.
template <int W> __device__ void copy(const ResampleArgs& args, unsigned token, unsigned channel) {
    float sum[W];
    const T::Bits* table = static_cast<const T::Bits*>(args.table) + token * static_cast<long long>(args.dim);
    unpack(Pack<W>::load(table + channel), sum);
    write<W>(args, token, channel, sum);
}

// Where inputs begin, and how many channels lie between those of one column: row and column of the table's grid.
__device__ const T::Bits* input(const ResampleArgs& args, unsigned row, unsigned column) {
    return static_cast<const T::Bits*>(args.table) +
           (args.prefix + row * static_cast<long long>(args.in_columns) + column) * args.dim;
}

// One thread owns W channels of one output token and walks its taps, columns inside rows.
template <int W> __device__ void resample(const ResampleArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.prefix + args.out_rows * args.out_columns) return;
    wait_for_predecessor();
    bool copied = token < args.prefix;
    unsigned place = copied ? 0 : token - args.prefix;
    unsigned y = place / args.out_columns, x = place - y * args.out_columns;
    uint2 rows = static_cast<const uint2*>(args.row_spans)[y];
    uint2 columns = static_cast<const uint2*>(args.column_spans)[x];
    const float* row_weights = static_cast<const float*>(args.row_weights) + y * static_cast<long long>(args.row_taps);
    const float* column_weights =
        static_cast<const float*>(args.column_weights) + x * static_cast<long long>(args.column_taps);
    for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += blockDim.x * W) {
        if (copied) {
            copy<W>(args, token, channel);
            continue;
        }
        float sum[W] = {};
#pragma unroll 1
        for (unsigned i = 0; i < rows.y; ++i) {
            const T::Bits* from = input(args, rows.x + i, columns.x) + channel;
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
        write<W>(args, token, channel, sum);
    }
}

extern __shared__ uint4 staged[];

// The block's threads copy `count` numbers.
template <class N> __device__ void stage(N* to, const N* from, unsigned count) {
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    for (unsigned i = thread; i < count; i += blockDim.x * blockDim.y * blockDim.z) to[i] = from[i];
}

// A block owns a tile of outputs, blockDim.z rows of blockDim.y, and 16 bytes of channels for each of blockDim.x
// threads. It stages the tile's inputs, sums each row of them for each column of outputs, and then those lines for each
// row of outputs: the same sums in the same order as `resample`. Blocks behind the tiles copy the prefix.
__device__ __forceinline__ void tiles(const ResampleArgs& args) {
    constexpr int FOURS = WIDE / 4;
    unsigned channel = (blockIdx.y * blockDim.x + threadIdx.x) * WIDE;
    bool inside = channel < args.dim;
    wait_for_predecessor();
    if (blockIdx.x >= args.tiles) {
        unsigned token = (blockIdx.x - args.tiles) * blockDim.y * blockDim.z + threadIdx.z * blockDim.y + threadIdx.y;
        if (token < args.prefix && inside) copy<WIDE>(args, token, channel);
        return;
    }
    unsigned tile_row = blockIdx.x / args.column_tiles;
    unsigned first_y = tile_row * blockDim.z;
    unsigned first_x = (blockIdx.x - tile_row * args.column_tiles) * blockDim.y;
    unsigned count_y = min(blockDim.z, args.out_rows - first_y), count_x = min(blockDim.y, args.out_columns - first_x);
    // Inputs, lines in FOURS arrays, and the tile's spans and weights.
    float4* lines = reinterpret_cast<float4*>(staged + args.tile_inputs * blockDim.x);
    unsigned array = args.tile_rows * blockDim.y * blockDim.x;
    uint2* row_spans = reinterpret_cast<uint2*>(lines + FOURS * array);
    uint2* column_spans = row_spans + blockDim.z;
    float* row_weights = reinterpret_cast<float*>(column_spans + blockDim.y);
    float* column_weights = row_weights + blockDim.z * args.row_taps;
    stage(row_spans, static_cast<const uint2*>(args.row_spans) + first_y, count_y);
    stage(column_spans, static_cast<const uint2*>(args.column_spans) + first_x, count_x);
    stage(row_weights, static_cast<const float*>(args.row_weights) + first_y * static_cast<long long>(args.row_taps),
          count_y * args.row_taps);
    stage(column_weights,
          static_cast<const float*>(args.column_weights) + first_x * static_cast<long long>(args.column_taps),
          count_x * args.column_taps);
    __syncthreads();

    // Spans begin and end one after another.
    uint2 last_row = row_spans[count_y - 1], last_column = column_spans[count_x - 1];
    unsigned first_row = row_spans[0].x, first_column = column_spans[0].x;
    unsigned rows = last_row.x + last_row.y - first_row, columns = last_column.x + last_column.y - first_column;
    for (unsigned i = threadIdx.z; i < rows && inside; i += blockDim.z) {
        const T::Bits* from = input(args, first_row + i, first_column) + channel;
        for (unsigned j = threadIdx.y; j < columns; j += blockDim.y)
            fetch(staged + (i * columns + j) * blockDim.x + threadIdx.x, from + j * static_cast<long long>(args.dim));
    }
    uint2 own_column = column_spans[min(threadIdx.y, count_x - 1)], own_row = row_spans[min(threadIdx.z, count_y - 1)];
    fetched();
    __syncthreads();

    float* weights = column_weights + min(threadIdx.y, count_x - 1) * args.column_taps;
    bool lives = inside && threadIdx.y < count_x;
#pragma unroll 1
    for (unsigned i = threadIdx.z; i < rows && lives; i += blockDim.z) {
        const uint4* from = staged + (i * columns + own_column.x - first_column) * blockDim.x + threadIdx.x;
        float line[WIDE] = {};
#pragma unroll 4
        for (unsigned j = 0; j < own_column.y; ++j) {
            float value[WIDE];
            unpack(Pack<WIDE>{from[j * blockDim.x]}, value);
#pragma unroll
            for (int c = 0; c < WIDE; ++c) line[c] = fmaf(value[c], weights[j], line[c]);
        }
        float4* to = lines + (i * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
#pragma unroll
        for (int c = 0; c < FOURS; ++c)
            to[c * array] = make_float4(line[4 * c], line[4 * c + 1], line[4 * c + 2], line[4 * c + 3]);
    }
    __syncthreads();

    if (!lives || threadIdx.z >= count_y) return;
    weights = row_weights + threadIdx.z * args.row_taps;
    const float4* from = lines + ((own_row.x - first_row) * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    float sum[WIDE] = {};
#pragma unroll 4
    for (unsigned i = 0; i < own_row.y; ++i) {
        const float4* line = from + i * blockDim.y * blockDim.x;
#pragma unroll
        for (int c = 0; c < FOURS; ++c) {
            float4 four = line[c * array];
            sum[4 * c] = fmaf(four.x, weights[i], sum[4 * c]);
            sum[4 * c + 1] = fmaf(four.y, weights[i], sum[4 * c + 1]);
            sum[4 * c + 2] = fmaf(four.z, weights[i], sum[4 * c + 2]);
            sum[4 * c + 3] = fmaf(four.w, weights[i], sum[4 * c + 3]);
        }
    }
    unsigned place = (first_y + threadIdx.z) * args.out_columns + first_x + threadIdx.y;
    write<WIDE>(args, args.prefix + place, channel, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(resample_tiles) { tiles(args); }
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(resample_wide) { resample<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(256) KERNEL(resample_one) { resample<1>(args); }
