// Waves of coordinates that are counted over a padding mask:  x = wave(2 pi * (coordinate + offset) * turns).
//
// x          [batch, rows * columns, dim], contiguous: strides would take registers
// mask       [batch, rows * columns] bytes, not 0 for a token of the image
// channels   [dim] turns per unit as a sum of two f64, and the axis's offset
// axes       [dim] bytes: 1 row, 2 column, 3 always zero, plus 4 for a cosine, plus 8 for the angle of the channel
// before it
//
// A warp counts the column and the row of its token together, then each thread owns W channels at a time, in f64 until
// the one rounding.
//
// Bytes: every element is written once; a column and a row of the mask for each token and 25 bytes a channel are read,
// from a cache.
#include "args.cuh"
#include "common/index.cuh"
#include "embed/turns.cuh"

constexpr unsigned COSINE = 4, SAME = 8;

struct MaskedChannel {
    double high, low, offset;
};

// The sum over a warp.
__device__ inline unsigned sum_warp(unsigned x) {
    unsigned all;
    asm volatile(
        "//sm_80+ redux.sync.add.u32 %0, %1, 0xffffffff;\n"
        "//sm_80- {.reg .b32 sum, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, %1, 16, 31, 0xffffffff;\n"
        "//sm_80- add.u32 sum, %1, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, sum, 8, 31, 0xffffffff;\n"
        "//sm_80- add.u32 sum, sum, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, sum, 4, 31, 0xffffffff;\n"
        "//sm_80- add.u32 sum, sum, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, sum, 2, 31, 0xffffffff;\n"
        "//sm_80- add.u32 sum, sum, other;\n"
        "//sm_80- shfl.sync.bfly.b32 other, sum, 1, 31, 0xffffffff;\n"
        "//sm_80- add.u32 %0, sum, other;}"
        : "=r"(all)
        : "r"(x));
    return all;
}

// The tokens of the image among `count` places of the mask, from `mask` on in steps of `step`, and among the first
// `own` of them; the warp counts together.
__device__ inline void count_tokens(const unsigned char* mask, unsigned step, unsigned own, unsigned count,
                                    double& before, double& all) {
    unsigned counts[2] = {};
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count; i += 32) {
        unsigned one = mask[i * static_cast<long long>(step)] ? 1 : 0;
        counts[0] += i < own ? one : 0;
        counts[1] += one;
    }
    before = sum_warp(counts[0]);
    all = sum_warp(counts[1]);
}

template <int W> __device__ void masked(const MaskedArgs& args) {
    unsigned tokens = args.rows * args.columns;
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    bool live = token < tokens;
    unsigned row = token / args.columns;
    unsigned column = token - row * args.columns;
    wait_for_predecessor();
    for (unsigned image = blockIdx.y; image < args.batch; image += gridDim.y) {
        const unsigned char* mask =
            static_cast<const unsigned char*>(args.mask) + image * static_cast<long long>(tokens);
        const unsigned char* across = mask + row * static_cast<long long>(args.columns);
        // Up to the token's row and in all of its column, the same across its row.
        double t[2], last[2];
        count_tokens(mask + column, args.columns, row + 1, live ? args.rows : 0, t[0], last[0]);
        count_tokens(across, 1, column + 1, live ? args.columns : 0, t[1], last[1]);
        if (!live) continue;
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
            t[axis] -= args.centre;
            if (args.normalize) t[axis] = t[axis] / (last[axis] + 1e-6) * args.scale;
        }
        T::Bits* x = static_cast<T::Bits*>(args.x) + (image * static_cast<long long>(tokens) + token) * args.dim;
#pragma unroll 1
        for (unsigned channel = threadIdx.x * W; channel < args.dim; channel += 32 * W) {
            Angle angle;
            auto wave = [&](unsigned own, bool first) {
                unsigned axis = static_cast<const unsigned char*>(args.axes)[own];
                if (first || !(axis & SAME)) {
                    MaskedChannel c = static_cast<const MaskedChannel*>(args.channels)[own];
                    angle = Angle((axis & 1 ? t[0] : t[1]) + c.offset, {c.high, c.low});
                }
                return (axis & 3) == 3 ? 0.0f : angle.wave(axis / COSINE & 1);
            };
            if constexpr (W == 1) {
                float one[1] = {wave(channel, true)};
                pack(one).store(x + channel);
            } else {
                Pushed<W> waves;
#pragma unroll 1
                for (int i = 0; i < W; i += 2) {
                    float a = wave(channel + i, true);
                    waves.push(a, wave(channel + i + 1, false));
                }
                waves.pack().store(x + channel);
            }
        }
    }
}

// Left to itself the compiler spills a register at compute capability 12.0.
extern "C" __global__ void __launch_bounds__(128, 6) KERNEL(grid_masked_wide) { masked<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(128) KERNEL(grid_masked_one) { masked<1>(args); }
