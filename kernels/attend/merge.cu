// Attention over two sets of keys put together by their log-sum-exps, and its gradient.
//
//     lse = ln(exp(lse_a) + exp(lse_b))        weight_a = exp(lse_a - lse)
//     out = weight_a a + weight_b b
//     a_grad = weight_a grad                   s = sum over channels of grad (a - b)
//     a_lse_grad = weight_a (weight_b s + lse_grad),   b_lse_grad = weight_b (lse_grad - weight_a s)
//
// a, b, out    [batch, tokens, heads, dim] by strides in elements (64 bits), channels contiguous
// lse          f32 [batch, heads, tokens] by strides
//
// A row is one head of one token, for LANES lanes of a warp; a lane takes WIDE channels in a row, whatever the
// accesses. Bytes: each element of a, b and grad is read once, each of the results written once.
#include "common/exp.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

constexpr unsigned LANES = 16;

struct Weights {
    float a, b, max, sum;

    __device__ Weights(float lse_a, float lse_b) {
        max = fmaxf(lse_a, lse_b);
        // Neither has keys: the difference would be NaN.
        bool none = max == -__int_as_float(0x7f800000);
        a = none ? 0.0f : exp_below_zero(lse_a - max);
        b = none ? 0.0f : exp_below_zero(lse_b - max);
        sum = a + b;
        float inverse = none ? 0.0f : 1.0f / sum;
        a *= inverse;
        b *= inverse;
    }

    __device__ float lse() const { return sum == 0.0f ? max : max + log_normal(sum); }
};

// Where a row's numbers lie.
struct Row {
    unsigned batch, token, head;

    template <class A> __device__ Row(const A& args, unsigned row) {
        unsigned line = row / args.heads;
        head = row - line * args.heads;
        batch = line / args.tokens;
        token = line - batch * args.tokens;
    }

    __device__ long long tensor(const long long* strides) const {
        return batch * strides[0] + token * strides[1] + head * strides[2];
    }
    __device__ long long number(const long long* strides) const {
        return batch * strides[0] + head * strides[1] + token * strides[2];
    }
};

__device__ float number(const void* of, long long at) { return static_cast<const float*>(of)[at]; }

template <bool PACKS> __device__ void load_channels(const T::Bits* at, unsigned count, float (&x)[WIDE]) {
    if constexpr (PACKS) {
        unpack(Pack<WIDE>::load(at), x);
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; ++i) x[i] = i < count ? T::widen(at[i]) : 0.0f;
    }
}

template <bool PACKS> __device__ void store_channels(T::Bits* at, unsigned count, const float (&x)[WIDE]) {
    if constexpr (PACKS) {
        pack(x).store(at);
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            if (i < count) at[i] = static_cast<T::Bits>(T::narrow(x[i]));
        }
    }
}

template <bool PACKS> __device__ void merge(const MergeArgs& args) {
    unsigned index = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    bool live = index < args.rows;
    Row row(args, live ? index : 0);
    const T::Bits* a = static_cast<const T::Bits*>(args.a) + row.tensor(args.a_strides);
    const T::Bits* b = static_cast<const T::Bits*>(args.b) + row.tensor(args.b_strides);
    T::Bits* out = static_cast<T::Bits*>(args.out) + row.tensor(args.out_strides);
    wait_for_predecessor();
    Weights weights(live ? number(args.a_lse, row.number(args.a_lse_strides)) : 0.0f,
                    live ? number(args.b_lse, row.number(args.b_lse_strides)) : 0.0f);
    // The result's lse may lie where that of a does.
    __syncwarp();
    if (!live) return;
    if (lane == 0 && args.lse) static_cast<float*>(args.lse)[row.number(args.lse_strides)] = weights.lse();
#pragma unroll 1
    for (unsigned channel = lane * WIDE; channel < args.dim; channel += LANES * WIDE) {
        float x[WIDE], y[WIDE];
        load_channels<PACKS>(a + channel, args.dim - channel, x);
        load_channels<PACKS>(b + channel, args.dim - channel, y);
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            // What has no weight may be anything.
            float first = weights.a == 0.0f ? 0.0f : weights.a * x[i];
            x[i] = weights.b == 0.0f ? first : fmaf(weights.b, y[i], first);
        }
        store_channels<PACKS>(out + channel, args.dim - channel, x);
    }
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(merge_wide) { merge<true>(args); }
extern "C" __global__ void __launch_bounds__(128) KERNEL(merge_one) { merge<false>(args); }

template <bool PACKS> __device__ void merge_grad(const MergeGradArgs& args) {
    unsigned index = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    bool live = index < args.rows;
    Row row(args, live ? index : 0);
    const T::Bits* a = static_cast<const T::Bits*>(args.a) + row.tensor(args.a_strides);
    const T::Bits* b = static_cast<const T::Bits*>(args.b) + row.tensor(args.b_strides);
    const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + row.tensor(args.grad_strides);
    T::Bits* a_grad = static_cast<T::Bits*>(args.a_grad) + row.tensor(args.a_grad_strides);
    T::Bits* b_grad = static_cast<T::Bits*>(args.b_grad) + row.tensor(args.b_grad_strides);
    wait_for_predecessor();
    Weights weights(live ? number(args.a_lse, row.number(args.a_lse_strides)) : 0.0f,
                    live ? number(args.b_lse, row.number(args.b_lse_strides)) : 0.0f);
    float lse_grad = live && args.lse_grad ? number(args.lse_grad, row.number(args.lse_grad_strides)) : 0.0f;
    bool both = weights.a != 0.0f && weights.b != 0.0f;
    float sum = 0.0f;
#pragma unroll 1
    for (unsigned channel = lane * WIDE; live && channel < args.dim; channel += LANES * WIDE) {
        float x[WIDE], y[WIDE], g[WIDE];
        load_channels<PACKS>(a + channel, args.dim - channel, x);
        load_channels<PACKS>(b + channel, args.dim - channel, y);
        load_channels<PACKS>(grad + channel, args.dim - channel, g);
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            if (both) sum = fmaf(g[i], x[i] - y[i], sum);
            x[i] = weights.a == 0.0f ? 0.0f : weights.a * g[i];
            y[i] = weights.b == 0.0f ? 0.0f : weights.b * g[i];
        }
        store_channels<PACKS>(a_grad + channel, args.dim - channel, x);
        store_channels<PACKS>(b_grad + channel, args.dim - channel, y);
    }
#pragma unroll
    for (unsigned apart = LANES / 2; apart; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (!live || lane) return;
    float first = weights.a == 0.0f ? 0.0f : weights.a * fmaf(weights.b, sum, lse_grad);
    float second = weights.b == 0.0f ? 0.0f : weights.b * fmaf(-weights.a, sum, lse_grad);
    static_cast<float*>(args.a_lse_grad)[row.number(args.a_lse_grad_strides)] = first;
    static_cast<float*>(args.b_lse_grad)[row.number(args.b_lse_grad_strides)] = second;
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(merge_grad_wide) { merge_grad<true>(args); }
extern "C" __global__ void __launch_bounds__(128) KERNEL(merge_grad_one) { merge_grad<false>(args); }
