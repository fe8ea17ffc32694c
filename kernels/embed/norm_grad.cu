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
// registers, except where a row is too long or too narrow for them.
#include "embed/gather.cuh"

template <int W, bool HELD> __device__ void norm_grad(const LearnedArgs& args) {
    constexpr int N = STEP<W>;
    float gain_sum[N] = {}, bias_sum[N] = {};
    float* gain_out = static_cast<float*>(args.partials) + (blockIdx.x * blockDim.y + threadIdx.y) * 2ll * args.dim;
    float* bias_out = gain_out + args.dim;
    // The sums of an earlier call may still be read.
    wait_for_predecessor();
    if constexpr (!HELD) {
        for (unsigned channel = threadIdx.x * UNIT; channel < args.dim; channel += blockDim.x * UNIT) {
#pragma unroll 1
            for (unsigned i = channel; i < min(channel + UNIT, args.dim); ++i) gain_out[i] = bias_out[i] = 0.0f;
        }
    }
    unsigned groups = (args.tokens + blockDim.y - 1) / blockDim.y;
    float dim = args.dim;
    for (unsigned long long group = blockIdx.x; group < static_cast<unsigned long long>(groups) * args.batch;
         group += gridDim.x) {
        unsigned batch = group / groups;
        unsigned first = (group - static_cast<unsigned long long>(batch) * groups) * blockDim.y;
        unsigned token = first + threadIdx.y;
        bool live = token < args.tokens;
        long long at = batch * args.strides[0] + token * args.strides[1];
        const T::Bits* grad_row = static_cast<const T::Bits*>(args.grad) + at;
        T::Bits* out = static_cast<T::Bits*>(args.x) + at;
        long long before = args.position && args.rule != OFFSET ? count_kept(args, batch, first, token) : 0;
        Rows rows;
        if (live) rows.look_up(args, static_cast<const T::Bits*>(args.source) + at, batch, token, before);
        Row<W, HELD> row(args, rows);
        Moments moments(args, row);

        float mean = 0.0f, along = 0.0f;
        // First the two means, then, with them, dv.
#pragma unroll 1
        for (int pass = 0; pass < 2; ++pass) {
            if (live) {
                row.each([&](unsigned channel, const float(&v)[N]) {
                    float grad[N], gain[N], dv[N];
                    load_step<W>(grad_row, channel, args.dim, grad);
                    if (args.gain) load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        float g = args.gain ? grad[i] * gain[i] : grad[i];
                        float y = (v[i] - moments.mean) * moments.inverse;
                        if (pass == 0) {
                            mean += g;
                            along = fmaf(g, y, along);
                        } else {
                            dv[i] = fmaf(-y, along, g - mean) * moments.inverse;
                            if constexpr (HELD) {
                                gain_sum[i] = fmaf(grad[i], y, gain_sum[i]);
                                bias_sum[i] += grad[i];
                            } else if (channel + i < args.dim) {
                                gain_out[channel + i] = fmaf(grad[i], y, gain_out[channel + i]);
                                bias_out[channel + i] += grad[i];
                            }
                        }
                    }
                    if (pass == 1) store_step<W>(out, channel, args.dim, dv);
                });
            }
            if (pass == 0) {
                mean = sum_row(mean) / dim;
                along = sum_row(along) / dim;
                if (args.norm == RMS_NORM) mean = 0.0f;
            }
        }
    }
    if constexpr (HELD) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            unsigned channel = threadIdx.x * UNIT + i;
            if (channel < args.dim) {
                gain_out[channel] = gain_sum[i];
                bias_out[channel] = bias_sum[i];
            }
        }
    }
}

#define NORM_GRAD(name, W, HELD)                                                            \
    extern "C" __global__ void __launch_bounds__(256) ENTRY(name)(const LearnedArgs args) { \
        norm_grad<W, HELD>(args);                                                           \
    }

NORM_GRAD(norm_grad_short, WIDE, true)
NORM_GRAD(norm_grad_wide, WIDE, false)
NORM_GRAD(norm_grad_one, 1, false)
