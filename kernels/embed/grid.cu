// Grids:  x = x * scale + sin(phase + index along the channel's axis * rate),  or without the first term; and waves of
// coordinates that are counted over a padding mask.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; the masked kernel's is contiguous
// channels   [dim] rate and phase in units of 2^-64 turn; a cosine's phase is a quarter turn, cropping adds to it
// axes       [dim] bytes: 0 frame, 1 row, 2 column, 3 always zero; the masked kernel's: 1 row, 2 column, plus 4 for a cosine
// mask       [batch, tokens] bytes, not 0 for a token of the image
//
// One thread owns W channels of one token. `add` and `write`: it makes their waves once and walks `batches_per_thread`
// sequences. Masked: the threads of a token count its column and its row together, and work in f64 until the one rounding.
//
// Bytes: every element is written once, and read once by `add`; 17 bytes a channel from a cache. Masked: a column and a
// row of the mask for each token, 25 bytes a channel, from a cache.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/index.cuh"
#include "embed/row.cuh"
#include "embed/turns.cuh"

struct Channel {
    unsigned long long rate, phase;
};

template <int W, bool ADD> __device__ void grid(const GridArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.tokens) return;
    unsigned row = token / args.columns;
    unsigned long long place[4];
    place[2] = token - row * args.columns;
    place[0] = row / args.rows;
    place[1] = row - static_cast<unsigned>(place[0]) * args.rows;
    wait_for_predecessor();
    for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += blockDim.x * W) {
        float wave[W];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            uint4 raw = static_cast<const uint4*>(args.channels)[channel + i];
            Channel c{static_cast<unsigned long long>(raw.y) << 32 | raw.x, static_cast<unsigned long long>(raw.w) << 32 | raw.z};
            unsigned axis = static_cast<const unsigned char*>(args.axes)[channel + i];
            unsigned long long index = axis == 0 ? place[0] : axis == 1 ? place[1] : place[2];
            float sin, cos;
            sincos_phase(index * c.rate + c.phase, sin, cos);
            wave[i] = axis == 3 ? 0.0f : sin;
        }
        for (unsigned group = blockIdx.y; group < args.groups; group += gridDim.y) {
            unsigned first = group * args.batches_per_thread;
            unsigned last = min(first + args.batches_per_thread, args.batch);
            T::Bits* x = static_cast<T::Bits*>(args.x) + first * args.strides[0] + token * args.strides[1] + channel;
#pragma unroll 1
            for (unsigned batch = first; batch < last; ++batch, x += args.strides[0]) {
                if constexpr (ADD) {
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

struct MaskedChannel {
    Turns turns;
    double offset;
};

// The number of tokens of the image among `count` places of the mask, from `mask` on in steps of `step`; all threads of
// the token count together. Exact: counts are below 2^24.
__device__ inline float count_tokens(const unsigned char* mask, unsigned step, unsigned count) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += mask[i * static_cast<long long>(step)] ? 1.0f : 0.0f;
    return sum_row(sum);
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

extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_wide)(const GridArgs args) { grid<WIDE, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_mid)(const GridArgs args) { grid<MID, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_one)(const GridArgs args) { grid<1, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_wide)(const GridArgs args) { grid<WIDE, false>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_mid)(const GridArgs args) { grid<MID, false>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_one)(const GridArgs args) { grid<1, false>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(grid_masked_wide)(const MaskedArgs args) { masked<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(grid_masked_mid)(const MaskedArgs args) { masked<MID>(args); }
extern "C" __global__ void __launch_bounds__(128) ENTRY(grid_masked_one)(const MaskedArgs args) { masked<1>(args); }
