// Rows in units of 8 channels, and sums over the threads of a row.
//
// A thread owns whole units whatever the width of its accesses, so that sums are made in one order and every width gives
// the same bits. It takes a unit in one step, or channel by channel where accesses are narrow, which keeps that code small.
#pragma once

#include "common/scalar.cuh"

constexpr int UNIT = 8;
template <int W> constexpr int STEP = W == 1 ? 1 : UNIT;

// STEP channels of a row of `dim`, from `channel` on, which lies inside; zero behind its end.
template <int W> __device__ void load_step(const T::Bits* row, unsigned channel, unsigned dim, float (&x)[STEP<W>]) {
#pragma unroll
    for (int i = 0; i < STEP<W>; i += W) {
        float part[W] = {};
        if (i == 0 || channel + i < dim) unpack(Pack<W>::load(row + channel + i), part);
#pragma unroll
        for (int j = 0; j < W; ++j) x[i + j] = part[j];
    }
}

template <int W> __device__ void store_step(T::Bits* row, unsigned channel, unsigned dim, const float (&x)[STEP<W>]) {
#pragma unroll
    for (int i = 0; i < STEP<W>; i += W) {
        float part[W];
#pragma unroll
        for (int j = 0; j < W; ++j) part[j] = x[i + j];
        if (i == 0 || channel + i < dim) pack(part).store(row + channel + i);
    }
}

// N partial sums in f32 from `channel` on, which lies inside: four in one access, or one alone; dim and addresses are
// multiples of four if N is.
template <int N> __device__ void load_sums(const float* from, unsigned channel, unsigned dim, float (&sum)[N]) {
    if constexpr (N == 1) {
        sum[0] = from[channel];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            if (i > 0 && channel + i >= dim) continue;
            float4 four = *reinterpret_cast<const float4*>(from + channel + i);
            sum[i] = four.x, sum[i + 1] = four.y, sum[i + 2] = four.z, sum[i + 3] = four.w;
        }
    }
}

template <int N> __device__ void store_sums(float* to, unsigned channel, unsigned dim, const float (&sum)[N]) {
    if constexpr (N == 1) {
        to[channel] = sum[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            if (i > 0 && channel + i >= dim) continue;
            // As instructions: a compiler that knows where the sums come from splits one access in four.
            asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + channel + i)),
                         "f"(sum[i]), "f"(sum[i + 1]), "f"(sum[i + 2]), "f"(sum[i + 3])
                         : "memory");
        }
    }
}

// The sum over all threads with this threadIdx.y, in one order. blockDim.x is a multiple of 32, at most 256; a block has at
// most 256 threads. Every thread of the block must come here.
__device__ inline float sum_row(float x) {
    __shared__ float parts[8];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    unsigned warps = blockDim.x / 32;
    if (warps == 1) return x;
    unsigned first = threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) parts[first + threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll 1
    for (unsigned warp = 0; warp < warps; ++warp) sum += parts[first + warp];
    // The next sum writes the same places.
    __syncthreads();
    return sum;
}
