// Grids:  x = x * scale + sin(phase + index along the channel's axis * rate),  or without the first term.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// channels   [dim] rate and phase in units of 2^-64 turn; a cosine's phase is a quarter turn, cropping adds to it
// axes       [dim] bytes: 0 frame, 1 row, 2 column, 3 always zero
//
// One thread owns W channels of one token, makes their waves once and walks `batches_per_thread` sequences.
//
// Bytes: every element is written once, and read once by `add`; 17 bytes a channel from a cache.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

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

extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_wide)(const GridArgs args) { grid<WIDE, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_mid)(const GridArgs args) { grid<MID, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_add_one)(const GridArgs args) { grid<1, true>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_wide)(const GridArgs args) { grid<WIDE, false>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_mid)(const GridArgs args) { grid<MID, false>(args); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(grid_write_one)(const GridArgs args) { grid<1, false>(args); }
