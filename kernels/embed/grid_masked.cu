// Waves of coordinates that are counted over a padding mask:  x = wave(2 pi * (coordinate + offset) * turns).
//
// x          [batch, rows * columns, dim], contiguous
// mask       [batch, rows * columns] bytes, not 0 for a token of the image
// channels   [dim] turns per unit as a sum of two f64, and the axis's offset
// axes       [dim] bytes: 1 row, 2 column, 3 always zero, plus 4 for a cosine
//
// The threads of a token count its column and its row together, then each owns W channels, in f64 until the one rounding.
//
// Bytes: every element is written once; a column and a row of the mask for each token and 25 bytes a channel are read,
// from a cache.
#include "args.cuh"
#include "common/index.cuh"
#include "embed/row.cuh"
#include "embed/turns.cuh"

struct MaskedChannel {
    Turns turns;
    double offset;
};

// The number of tokens of the image among `count` places of the mask, from `mask` on in steps of `step`; all threads of
// the token count together. Exact: counts are below 2^24.
__device__ inline float count_tokens(const unsigned char* mask, unsigned step, unsigned count) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += mask[i * static_cast<long long>(step)] ? 1.0f : 0.0f;
    float all[1] = {sum};
    sum_row(all);
    return all[0];
}

template <int W> __device__ void masked(const MaskedArgs& args) {
    unsigned tokens = args.rows * args.columns;
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    bool live = token < tokens;
    unsigned row = token / args.columns;
    unsigned column = token - row * args.columns;
    wait_for_predecessor();
    for (unsigned image = blockIdx.y; image < args.batch; image += gridDim.y) {
        const unsigned char* mask = static_cast<const unsigned char*>(args.mask) + image * static_cast<long long>(tokens);
        const unsigned char* across = mask + row * static_cast<long long>(args.columns);
        double t[2], last[2];
        t[0] = count_tokens(mask + column, args.columns, live ? row + 1 : 0);
        last[0] = count_tokens(mask + column, args.columns, live ? args.rows : 0);
        t[1] = count_tokens(across, 1, live ? column + 1 : 0);
        last[1] = count_tokens(across, 1, live ? args.columns : 0);
        if (!live) continue;
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
            t[axis] -= args.centre;
            if (args.normalize) t[axis] = t[axis] / (last[axis] + 1e-6) * args.scale;
        }
        T::Bits* x = static_cast<T::Bits*>(args.x) + (image * static_cast<long long>(tokens) + token) * args.dim;
#pragma unroll 1
        for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += blockDim.x * W) {
            float wave[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                MaskedChannel c = static_cast<const MaskedChannel*>(args.channels)[channel + i];
                unsigned axis = static_cast<const unsigned char*>(args.axes)[channel + i];
                double sin, cos;
                sincos_turns((axis & 1 ? t[0] : t[1]) + c.offset, c.turns, sin, cos);
                wave[i] = axis == 3 ? 0.0f : to_float(axis & 4 ? cos : sin);
            }
            pack(wave).store(x + channel);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) ENTRY(grid_masked_wide)(const MaskedArgs args) { masked<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(grid_masked_one)(const MaskedArgs args) { masked<1>(args); }
