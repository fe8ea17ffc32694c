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

// The sums over all threads with this threadIdx.y, in one order. blockDim.x is a multiple of 32, at most 256; a block has at
// most 256 threads. Every thread of the block must come here.
template <int N> __device__ void sum_row(float (&x)[N]) {
    __shared__ float parts[8][N];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step);
    }
    unsigned warps = blockDim.x / 32;
    if (warps == 1) return;
    unsigned first = threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) parts[first + threadIdx.x / 32][i] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = 0.0f;
#pragma unroll 1
    for (unsigned warp = 0; warp < warps; ++warp) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += parts[first + warp][i];
    }
    // The next sum writes the same places.
    __syncthreads();
}

// Rows of numbers in units of 8 channels, each as two float4 that lie `units` apart: so threads with units side by side meet
// no bank of shared memory twice.
struct Units {
    float4* at;
    unsigned units;

    __device__ void load(unsigned channel, float (&x)[UNIT]) const {
        float4 low = at[channel / UNIT], high = at[units + channel / UNIT];
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    }
    __device__ void store(unsigned channel, const float (&x)[UNIT]) const {
        at[channel / UNIT] = make_float4(x[0], x[1], x[2], x[3]);
        at[units + channel / UNIT] = make_float4(x[4], x[5], x[6], x[7]);
    }
    // The place of one channel.
    __device__ float& one(unsigned channel) const {
        return reinterpret_cast<float*>(at + (channel & 4 ? units : 0) + channel / UNIT)[channel % 4];
    }
    // One step of 8 channels or of 1.
    __device__ void load(unsigned channel, float (&x)[1]) const { x[0] = one(channel); }
    __device__ void store(unsigned channel, const float (&x)[1]) const { one(channel) = x[0]; }
};
