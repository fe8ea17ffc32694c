// The gradient of a norm behind gathered rows:  dv = (g - mean(g) - y mean(g y)) / sigma  with g = grad * gain and
// y = (v - mean) / sigma, for each row; and partial sums of grad * y and of grad over the rows of each block.
//
// grad, x       [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; x is written
// partials      [blocks * rows of a block, 2, dim] f32, written
// the others    as in learned.cu: the sum is gathered again, nothing is kept from the forward kernel
//
// The number of blocks depends on the shape alone, and each walks its rows in order, so every device adds in one order.
//
// Bytes: what learned.cu reads, and grad twice, the second time from a cache; one row written. Partial sums stay in
// registers, except where a row is too long or its accesses too narrow for that.
#include "embed/gather.cuh"

template <int W, bool HELD> __device__ void norm_grad(const LearnedArgs& args) {
    constexpr int N = STEP<W>;
    float gain_sum[N] = {}, bias_sum[N] = {};
    float* sums = static_cast<float*>(args.partials) + (blockIdx.x * blockDim.y + threadIdx.y) * 2ll * args.dim;
    // The sums of an earlier call may still be read.
    wait_for_predecessor();
    // One unit's sums stay in registers, those of more in memory.
    if constexpr (!HELD) {
#pragma unroll 1
        for (unsigned channel = threadIdx.x * STEP<W>; channel < args.dim; channel += blockDim.x * STEP<W>) {
            store_sums(sums, channel, args.dim, gain_sum);
            store_sums(sums + args.dim, channel, args.dim, bias_sum);
        }
        __syncthreads();
    }
    unsigned groups = (args.tokens + blockDim.y - 1) / blockDim.y;
    unsigned batch = 0;
#pragma unroll 1
    for (unsigned group = blockIdx.x;; group += gridDim.x) {
        batch += group / groups;
        group %= groups;
        if (batch >= args.batch) break;
        unsigned first = group * blockDim.y;
        unsigned token = first + threadIdx.y;
        long long at = batch * args.strides[0] + token * args.strides[1];
        Row<W, HELD> row(args, static_cast<const T::Bits*>(args.source) + at, batch, first, token);
        Moments moments;
        float mean = 0.0f, along = 0.0f;
        // The row's mean and variance, the means of g and of g y, and, with them, dv.
        constexpr int UNROLL = Row<W, HELD>::UNROLL;
#pragma unroll UNROLL
        for (int pass = 0; pass < 4; ++pass) {
            if (pass < first_pass(args)) continue;
            row.each(args, [&](unsigned channel, const float(&v)[N]) {
                if (pass < 2) {
                    moments.gather<W>(args, pass, channel, v);
                    return;
                }
                float grad[N], g[N], dv[N];
                load_step<W>(static_cast<const T::Bits*>(args.grad) + at, channel, args.dim, grad);
#pragma unroll
                for (int i = 0; i < N; ++i) g[i] = grad[i];
                if (args.gain) {
                    float gain[N];
                    load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
#pragma unroll
                    for (int i = 0; i < N; ++i) g[i] = g[i] * gain[i];
                }
                if (pass == 3 && !HELD) {
                    load_sums(sums, channel, args.dim, gain_sum);
                    load_sums(sums + args.dim, channel, args.dim, bias_sum);
                }
                if (pass == 2) {
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        mean += g[i];
                        along = fmaf(g[i], (v[i] - moments.mean) * moments.inverse, along);
                    }
                    return;
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    float y = (v[i] - moments.mean) * moments.inverse;
                    gain_sum[i] = fmaf(grad[i], y, gain_sum[i]);
                    bias_sum[i] += grad[i];
                    dv[i] = fmaf(-y, along, g[i] - mean) * moments.inverse;
                }
                store_step<W>(static_cast<T::Bits*>(args.x) + at, channel, args.dim, dv);
                if (!HELD) {
                    store_sums(sums, channel, args.dim, gain_sum);
                    store_sums(sums + args.dim, channel, args.dim, bias_sum);
                }
            });
            if (pass < 2) {
                moments.finish(args, pass);
            } else if (pass == 2) {
                mean = sum_row(mean) * args.share;
                along = sum_row(along) * args.share;
                if (args.norm == RMS_NORM) mean = 0.0f;
            }
        }
    }
    if (HELD && threadIdx.x * UNIT < args.dim) {
        store_sums(sums, threadIdx.x * UNIT, args.dim, gain_sum);
        store_sums(sums + args.dim, threadIdx.x * UNIT, args.dim, bias_sum);
    }
}

#define NORM_GRAD(name, blocks, ...)                                                                \
    extern "C" __global__ void __launch_bounds__(256, blocks) ENTRY(name)(const LearnedArgs args) { \
        norm_grad<__VA_ARGS__>(args);                                                               \
    }

NORM_GRAD(norm_grad_short, 3, WIDE, true)
NORM_GRAD(norm_grad_wide, 2, WIDE, false)
NORM_GRAD(norm_grad_narrow, 3, 1, false)
