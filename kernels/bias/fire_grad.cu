// sums[h, line, 0..4] = sum over the elements of head h whose x lies on the line of
//     g,  g * x,  g * dx/dc,  g * x where the query lies before the threshold        g = grad * gate
// out = [c, threshold, in_weight[width], in_bias[width], out_weight[heads, width], out_bias[heads]], each a factor
// times
//     sums over heads and lines: a ramp is up on neighbouring lines, and there d bias / d weight is 1 or x times a
// number
//
// x = logs[distance] / norm(query),  dx/dc = (bends[distance] - x * bends[max(query, threshold)]) / norm(query)
//
// grad   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// bends  f32 [reach + 1], n / (1 + c n), the derivative of ln(1 + c n) by c
//
// A warp walks rows and adds to the lines' sums in memory, see bins.cuh. The last block of a head adds its splits, the
// last block of all makes the outputs, a warp each. Each number of grad is read once; no number is added by an atomic.
#include "bias/bias.cuh"
#include "bias/bins.cuh"
#include "common/barrier.cuh"

constexpr int SUMS = 4;

// Makes the outputs from the sums of all heads and lines, all threads of the last block.
__device__ void parameters(const FireGradArgs& args) {
    unsigned heads = args.call.bias.heads, lines = args.call.bias.break_count + 1, width = args.width;
    const float* in_weight = static_cast<const float*>(args.in_weight);
    const float* in_bias = static_cast<const float*>(args.in_bias);
    const float* out_weight = static_cast<const float*>(args.out_weight);
    const int* ramps = static_cast<const int*>(args.ramps);
    unsigned outputs = 2 + 2 * width + heads * width + heads;
    for (unsigned output = threadIdx.x / 32; output < outputs; output += blockDim.x / 32) {
        // Which ramp, which heads, and what multiplies the sums of 1 and x, or the lines' slopes.
        unsigned rest = output, ramp = width, first_head = 0, end_head = heads;
        bool by_slope = output < 2, per_head = false;
        if (!by_slope) {
            rest -= 2;
            if (rest < 2 * width) {
                ramp = rest % width;
            } else {
                rest -= 2 * width;
                per_head = true;
                first_head = rest < heads * width ? rest / width : rest - heads * width;
                end_head = first_head + 1;
                if (rest < heads * width) ramp = rest % width;
            }
        }
        int low = 0, high = static_cast<int>(lines) - 1;
        if (ramp < width) low = ramps[2 * ramp], high = ramps[2 * ramp + 1];
        Sum sum;
#pragma unroll 1
        for (unsigned head = first_head; head < end_head; ++head) {
            const float* own = static_cast<const float*>(args.call.sums) + static_cast<long long>(head) * lines * SUMS;
            const float* slopes = static_cast<const float*>(args.call.bias.more) + static_cast<long long>(head) * lines;
#pragma unroll 1
            for (int line = low + static_cast<int>(threadIdx.x % 32); line <= high; line += 32) {
                const float* at = own + static_cast<long long>(line) * SUMS;
                float value = at[0];
                if (by_slope) {
                    value = at[2 + output] * slopes[line];
                } else if (!per_head) {
                    value = (rest < width ? at[1] : at[0]) * out_weight[static_cast<long long>(head) * width + ramp];
                } else if (ramp < width) {
                    sum.add(at[1] * in_weight[ramp]);
                    value = at[0] * in_bias[ramp];
                }
                sum.add(value);
            }
        }
        float total = warp_sum(sum.total) * args.call.factor;
        if (output == 1) total *= args.threshold_factor;
        if (threadIdx.x % 32 == 0) static_cast<float*>(args.call.out)[output] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(fire_grad) {
    wait_for_predecessor();
    const BiasArgs& bias = args.call.bias;
    unsigned head = blockIdx.y;
    unsigned lines = bias.break_count + 1;
    unsigned split = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    long long size = static_cast<long long>(bias.heads) * lines * SUMS;
    if (split < args.call.splits) {
        float* own = static_cast<float*>(args.call.sums) + split * size + static_cast<long long>(head) * lines * SUMS;
        Bins<SUMS> bins{own, own + args.call.splits * size};
        bins.clear(lines);
        const float* logs = static_cast<const float*>(bias.values);
        const float* bends = static_cast<const float*>(args.bends);
        walk_rows(bias, head, split * args.call.rows, args.call.rows, [&](const Row& row) {
            const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.offset(args.call.strides);
            float factor = posenc_fire_factor(logs, bias.count, bias.least_norm, bias.eps, row.at);
            bool before = row.at < args.threshold;
            float bend = before ? args.least_bend : bends[min(row.at, bias.count - 1)];
            // 64 bits: the last step may leave 32.
            for (long long step = row.first; step < row.keys; step += 32) {
                long long key = step + threadIdx.x % 32;
                float x[SUMS] = {};
                int line = -1;
                if (key < row.keys) {
                    int distance = row.distance(bias, static_cast<int>(key));
                    float input = posenc_fire_input(logs, bias.count, factor, distance);
                    line = static_cast<int>(
                        posenc_fire_line(static_cast<const float*>(bias.breaks), bias.break_count, input));
                    x[0] = T::widen(grad[key]) * row.gate;
                    x[1] = x[0] * input;
                    x[2] = x[0] * ((bends[min(static_cast<unsigned>(abs(distance)), bias.count - 1u)] - input * bend) *
                                   factor);
                    x[3] = before ? x[1] : 0.0f;
                }
                bins.add(line, x);
            }
        });
    }
    unsigned* counters = static_cast<unsigned*>(args.call.counters);
    if (!last_of(counters + head, gridDim.x)) return;
    for (unsigned i = threadIdx.x; i < lines * SUMS; i += blockDim.x) {
        float* own = static_cast<float*>(args.call.sums) + static_cast<long long>(head) * lines * SUMS + i;
        Sum sum;
        for (unsigned other = 0; other < args.call.splits; ++other) sum.add(own[other * size]);
        *own = sum.total;
    }
    if (last_of(counters + bias.heads, bias.heads)) parameters(args);
}
