// Grids:  x = x * scale + sin(phase + index along the channel's axis * rate),  or without the first term.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// channels   [dim] rate and phase in units of 2^-64 turn; a cosine's phase is a quarter turn, cropping adds to it
// axes       [dim] bytes: 0 frame, 1 row, 2 column, 3 none: the channel has no rate and no phase, and its sine is 0
//
// One thread owns W channels of one token, makes their waves once and walks `batches_per_thread` sequences.
//
// Bytes: every element is written once, and read once by `add`; 17 bytes a channel from a cache.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

template <int W> __device__ void grid(const GridArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.tokens) return;
    unsigned row = divide(token, args.by_columns);
    unsigned column = token - row * args.columns;
    unsigned frame = divide(row, args.by_rows);
    row -= frame * args.rows;
    wait_for_predecessor();
    for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += blockDim.x * W) {
        float wave[W];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            ulonglong2 c = static_cast<const ulonglong2*>(args.channels)[channel + i];
            unsigned axis = static_cast<const unsigned char*>(args.axes)[channel + i];
            unsigned long long index = axis == 0 ? frame : axis == 1 ? row : column;
            float cos;
            sincos_phase(index * c.x + c.y, wave[i], cos);
        }
        for (unsigned group = blockIdx.y; group < args.groups; group += gridDim.y) {
            unsigned first = group * args.batches_per_thread;
            unsigned last = min(first + args.batches_per_thread, args.batch);
            T::Bits* x = static_cast<T::Bits*>(args.x) + first * args.strides[0] + token * args.strides[1] + channel;
#pragma unroll 1
            for (unsigned batch = first; batch < last; ++batch, x += args.strides[0]) {
                if (args.add) {
                    float sum[W];
                    unpack(Pack<W>::load(x), sum);
#pragma unroll
                    for (int i = 0; i < W; ++i) sum[i] = fmaf(sum[i], args.scale, wave[i]);
                    pack(sum).store(x);
                } else {
                    pack(wave).store(x);
                }
            }
        }
    }
}

// Without the 4 the compiler aims at 32 registers at compute capability 8.0 and spills two.
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(grid_wide) { grid<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(256) KERNEL(grid_one) { grid<1>(args); }
