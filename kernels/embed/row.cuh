// Rows in units of 8 channels, and sums over the threads of a row.
//
// A thread owns whole units whatever the width of its accesses, so that sums are made in one order and every width
// gives the same bits. It takes a unit in one step, or channel by channel where accesses are narrow, which keeps that
// code small.
#pragma once

#include "common/scalar.cuh"

constexpr int UNIT = 8;
template <int W> constexpr int STEP = W == 1 ? 1 : UNIT;

// N channels of a row of `dim`, from `channel` on, which lies inside, as they lie in memory; zero behind its end. The
// first use waits for its load, and so does every load behind that use: all loads come first.
template <int W, int N = STEP<W>> struct RawStep {
    Pack<W> packs[N / W];

    __device__ void load(const T::Bits* row, unsigned channel, unsigned dim) {
#pragma unroll
        for (int i = 0; i < N; i += W) {
            packs[i / W] = i == 0 || channel + i < dim ? Pack<W>::load(row + channel + i) : Pack<W>{};
        }
    }
    __device__ void open(float (&x)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i += W) {
            float part[W];
            unpack(packs[i / W], part);
#pragma unroll
            for (int j = 0; j < W; ++j) x[i + j] = part[j];
        }
    }
};

template <int W> __device__ void load_step(const T::Bits* row, unsigned channel, unsigned dim, float (&x)[STEP<W>]) {
    RawStep<W> raw;
    raw.load(row, channel, dim);
    raw.open(x);
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

// The sums over all threads with this threadIdx.y, in one order. blockDim.x is a multiple of 32, at most 256; a block
// has at most 256 threads. Every thread of the block must come here.
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

// A number that stays in a register: the compiler would work it out again in every step.
__device__ __forceinline__ unsigned pinned(unsigned number) {
    asm volatile("" : "+r"(number));
    return number;
}

// The same for an address in global memory.
template <class P> __device__ __forceinline__ P* pinned(P* address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

extern __shared__ float4 shared[];

// A row in shared memory, ARRAYS numbers for each channel: for each 32 units a KiB of each array, first the lower
// halves of its units side by side, then the upper ones, so that no bank is met twice.
template <int ARRAYS> struct HeldRow {
    static constexpr unsigned BYTES = ARRAYS * 1024;
    // A unit of this thread at channel c lies at base + c * ARRAYS * 4 in the shared window; the next one is `step`
    // channels on.
    unsigned base, step;

    static __device__ unsigned bytes(unsigned dim) { return (dim + 32 * UNIT - 1) / (32 * UNIT) * BYTES; }

    __device__ HeldRow(unsigned dim) {
        unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(shared)) + threadIdx.y * bytes(dim);
        base = pinned(row + threadIdx.x % 32 * 16 - threadIdx.x % 32 * (BYTES / 32));
        step = pinned(blockDim.x * UNIT);
    }

    // f(channel, at) for every unit of this thread.
    template <class F> __device__ void each(unsigned dim, F f) const {
#pragma unroll 1
        for (unsigned channel = threadIdx.x * UNIT; channel < dim; channel += step)
            f(channel, base + channel * (ARRAYS * 4));
    }

    template <int ARRAY> static __device__ __forceinline__ void load(unsigned at, float (&x)[UNIT]) {
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4 + %5];"
                     : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
                     : "r"(at), "n"(ARRAY * 1024));
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4 + %5];"
                     : "=f"(x[4]), "=f"(x[5]), "=f"(x[6]), "=f"(x[7])
                     : "r"(at), "n"(ARRAY * 1024 + 512));
    }
    template <int ARRAY> static __device__ __forceinline__ void store(unsigned at, const float (&x)[UNIT]) {
        asm volatile("st.shared.v4.f32 [%0 + %1], {%2, %3, %4, %5};" ::"r"(at), "n"(ARRAY * 1024), "f"(x[0]), "f"(x[1]),
                     "f"(x[2]), "f"(x[3])
                     : "memory");
        asm volatile("st.shared.v4.f32 [%0 + %1], {%2, %3, %4, %5};" ::"r"(at), "n"(ARRAY * 1024 + 512), "f"(x[4]),
                     "f"(x[5]), "f"(x[6]), "f"(x[7])
                     : "memory");
    }

    // A unit of T as it lies in memory, on its way into the place of an array; those of a half type fill half of it,
    // one of the two.
    template <int ARRAY, int PART = 0>
    static __device__ __forceinline__ void fetch_raw(unsigned at, const T::Bits* row, unsigned channel, unsigned dim) {
#pragma unroll
        for (int i = 0; i < UNIT; i += WIDE) {
            if (i == 0 || channel + i < dim) fetch(at + ARRAY * 1024 + (PART + i / WIDE) * 512, row + channel + i);
        }
    }
    template <int ARRAY, int PART = 0>
    static __device__ __forceinline__ void load_raw(unsigned at, unsigned channel, unsigned dim, RawStep<WIDE>& raw) {
#pragma unroll
        for (int i = 0; i < UNIT; i += WIDE) {
            uint4& words = raw.packs[i / WIDE].raw;
            if (i == 0 || channel + i < dim) {
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                             : "r"(at + ARRAY * 1024 + (PART + i / WIDE) * 512));
            } else {
                words = {};
            }
        }
    }

    // One number of any row.
    static __device__ float one(unsigned dim, unsigned row, unsigned array, unsigned channel) {
        unsigned unit = channel / UNIT;
        unsigned at = row * bytes(dim) + unit / 32 * BYTES + array * 1024 + channel / 4 % 2 * 512 + unit % 32 * 16;
        return reinterpret_cast<const float*>(shared + at / 16)[channel % 4];
    }
};
