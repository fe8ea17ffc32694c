// z[e, h] = b2[h] + sum over k of w2[h, k] * max(0, w1[k, 0] * c[e, 0] + w1[k, 1] * c[e, 1] + b1[k])
//
// swin2:       table[e, h] = limit * sigmoid(z); without a limit z itself
//              with a gradient of the table: outer[e, h] = grad[e, h] * d table / d z
// swin2_grad:  w2'[h, k] = sum over e of outer[e, h] * hidden[e, k],  b2'[h] = sum over e of outer[e, h]
//              back[e, k] = sum over h of outer[e, h] * w2[h, k] where hidden[e, k] is above 0
//              w1'[k, :] = sum over e of back[e, k] * c[e, :],  b1'[k] = sum over e of back[e, k]
//
// w1 [hidden, 2], b1 [hidden], w2 [heads, hidden], b2 [heads]: elements; c f32 [entries, 2]; all else f32
//
// swin2: a warp has four entries and eight heads, a lane every 32nd hidden unit. swin2_grad: a block has 32 hidden
// units, a lane each, and eight heads or the first layer; a warp has every 16th entry. Hidden units are recomputed.
// Every sum has one order.
#include "common/exp.cuh"
#include "common/index.cuh"
#include "common/reduce.cuh"
#include "common/scalar.cuh"

// Entries of a warp, heads of a block, warps of a block of the gradient.
constexpr int ENTRIES = 4, HEADS = 8, WARPS = 16;
static_assert(ENTRIES * HEADS == 32, "a lane for each sum of a warp");

__device__ __forceinline__ float element(const void* at, unsigned index) {
    return T::widen(static_cast<const T::Bits*>(at)[index]);
}

__device__ __forceinline__ float2 coordinates(const Swin2Net& net, unsigned entry) {
    return static_cast<const float2*>(net.coordinates)[entry];
}

// One unit of the hidden layer.
struct Unit {
    float by_row, by_column, bias;

    __device__ Unit(const Swin2Net& net, unsigned k)
        : by_row(element(net.w1, 2 * k)), by_column(element(net.w1, 2 * k + 1)), bias(element(net.b1, k)) {}

    // NaN stays.
    __device__ float at(float2 c) const { return max_nan(fmaf(by_row, c.x, fmaf(by_column, c.y, bias)), 0.0f); }
};

// Of N numbers of each lane, lane i gets the sum of all lanes' i-th, for N neighbouring lanes: N - 1 shuffles, as a
// tree.
template <int N> __device__ __forceinline__ float transposed_sum(const float (&x)[N]) {
    bool upper = threadIdx.x & (N / 2);
    float y[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        float send = upper ? x[i] : x[i + N / 2];
        float keep = upper ? x[i + N / 2] : x[i];
        y[i] = keep + __shfl_xor_sync(ALL_LANES, send, N / 2);
    }
    if constexpr (N == 2) {
        return y[0];
    } else {
        return transposed_sum(y);
    }
}

// limit * sigmoid(z), or its derivative: from e = exp(-|z|), so that nothing cancels.
__device__ __forceinline__ float limited(float limit, float z, bool slope) {
    if (limit == 0.0f) return slope ? 1.0f : z;
    float e = exp_below_zero(-fabsf(z));
    float d = 1.0f + e;
    if (slope) return limit * (e / (d * d));
    return limit * ((z < 0.0f ? e : 1.0f) / d);
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(swin2) {
    wait_for_predecessor();
    const Swin2Net& net = args.net;
    unsigned lane = threadIdx.x % 32;
    unsigned first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ENTRIES;
    unsigned head = blockIdx.y * HEADS;
    if (first >= net.entries) return;
    float2 c[ENTRIES];
#pragma unroll
    for (int i = 0; i < ENTRIES; ++i) c[i] = coordinates(net, min(first + i, net.entries - 1));
    float sums[32] = {};
#pragma unroll 1
    for (unsigned k = lane; k < net.hidden; k += 32) {
        Unit unit(net, k);
        float hidden[ENTRIES];
#pragma unroll
        for (int i = 0; i < ENTRIES; ++i) hidden[i] = unit.at(c[i]);
#pragma unroll
        for (int j = 0; j < HEADS; ++j) {
            float w2 = head + j < net.heads ? element(net.w2, (head + j) * net.hidden + k) : 0.0f;
#pragma unroll
            for (int i = 0; i < ENTRIES; ++i) sums[i * HEADS + j] = fmaf(w2, hidden[i], sums[i * HEADS + j]);
        }
    }
    float z = transposed_sum(sums);
    unsigned entry = first + lane / HEADS;
    head += lane % HEADS;
    if (entry >= net.entries || head >= net.heads) return;
    if (net.b2) z += element(net.b2, head);
    unsigned index = entry * net.heads + head;
    float value = limited(net.limit, z, args.grad);
    if (args.grad) value *= static_cast<const float*>(args.grad)[index];
    static_cast<float*>(args.out)[index] = value;
}

// Sums N numbers of each lane over the warps, in their order; warp i gets the i-th.
template <int N> __device__ float sum_of_warps(const float (&x)[N], float (&space)[WARPS][HEADS][32]) {
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N; ++i) space[warp][i][lane] = x[i];
    __syncthreads();
    float total = 0.0f;
    if (warp < N) {
        for (int i = 0; i < WARPS; ++i) total += space[i][warp][lane];
    }
    return total;
}

// w2' of 32 units and 8 heads; the unit behind the last one is 1 and gets b2'.
__device__ void second_layer(const Swin2GradArgs& args, unsigned k, unsigned head, float (&space)[WARPS][HEADS][32]) {
    const Swin2Net& net = args.net;
    Unit unit(net, min(k, net.hidden - 1));
    float sums[HEADS] = {};
#pragma unroll 1
    for (unsigned entry = threadIdx.x / 32; entry < net.entries; entry += WARPS) {
        float hidden = k < net.hidden ? unit.at(coordinates(net, entry)) : 1.0f;
        const float* outer = static_cast<const float*>(args.outer) + entry * net.heads + head;
#pragma unroll
        for (int j = 0; j < HEADS; ++j) {
            if (head + j < net.heads) sums[j] = fmaf(outer[j], hidden, sums[j]);
        }
    }
    float total = sum_of_warps(sums, space);
    head += threadIdx.x / 32;
    if (threadIdx.x / 32 >= HEADS || head >= net.heads) return;
    if (k < net.hidden) {
        static_cast<float*>(args.w2_grad)[head * net.hidden + k] = total;
    } else if (k == net.hidden && args.b2_grad) {
        static_cast<float*>(args.b2_grad)[head] = total;
    }
}

// w1' and b1' of 32 units.
__device__ void first_layer(const Swin2GradArgs& args, unsigned k, float (&space)[WARPS][HEADS][32]) {
    const Swin2Net& net = args.net;
    unsigned own = min(k, net.hidden - 1);
    Unit unit(net, own);
    float sums[3] = {};
#pragma unroll 1
    for (unsigned entry = threadIdx.x / 32; entry < net.entries; entry += WARPS) {
        float2 c = coordinates(net, entry);
        const float* outer = static_cast<const float*>(args.outer) + entry * net.heads;
        float back = 0.0f;
        for (unsigned head = 0; head < net.heads; ++head) {
            back = fmaf(outer[head], element(net.w2, head * net.hidden + own), back);
        }
        if (!(unit.at(c) > 0.0f)) back = 0.0f;
        sums[0] = fmaf(back, c.x, sums[0]);
        sums[1] = fmaf(back, c.y, sums[1]);
        sums[2] += back;
    }
    float total = sum_of_warps(sums, space);
    unsigned which = threadIdx.x / 32;
    if (which >= 3 || k >= net.hidden) return;
    if (which == 2) {
        static_cast<float*>(args.b1_grad)[k] = total;
    } else {
        static_cast<float*>(args.w1_grad)[2 * k + which] = total;
    }
}

extern "C" __global__ void __launch_bounds__(512) KERNEL(swin2_grad) {
    __shared__ float space[WARPS][HEADS][32];
    wait_for_predecessor();
    unsigned k = blockIdx.x * 32 + threadIdx.x % 32;
    if (blockIdx.y + 1 == gridDim.y) {
        first_layer(args, k, space);
    } else {
        second_layer(args, k, blockIdx.y * HEADS, space);
    }
}
