// Neighbouring elements of a row of logits, eight to a thread.
#pragma once
#include "args.cuh"
#include "common/scalar.cuh"

// A thread takes KEYS, eight, neighbouring keys, counted from the row's first, whatever the alignment: so the same
// numbers are summed in the same order everywhere. 16 bytes of a half type, two times 16 of f32.

// `count` elements from `at` on, 1 to 8; the others become `rest`. `wide`: the row begins at a multiple of 16 bytes.
template <class E = T>
__device__ void load_keys(const typename E::Bits* at, int count, bool wide, float rest, float (&x)[KEYS]) {
    if (wide && count == KEYS) {
#pragma unroll
        for (int i = 0; i < KEYS; i += WIDE) {
            float part[WIDE];
            unpack(Pack<WIDE>::load(at + i), part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) x[i + j] = part[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = i < count ? E::widen(at[i]) : rest;
    }
}

// One instruction: left to itself, NVRTC splits some of these where the other branch stores one by one.
__device__ __forceinline__ void store_wide(void* at, uint4 raw) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(raw.x), "r"(raw.y),
                 "r"(raw.z), "r"(raw.w)
                 : "memory");
}

template <class E = T>
__device__ void store_keys(typename E::Bits* at, int count, bool wide, const float (&x)[KEYS]) {
    if (wide && count == KEYS) {
#pragma unroll
        for (int i = 0; i < KEYS; i += WIDE) {
            float part[WIDE];
#pragma unroll
            for (int j = 0; j < WIDE; ++j) part[j] = x[i + j];
            store_wide(at + i, pack(part).raw);
        }
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            if (i < count) at[i] = E::narrow(x[i]);
        }
    }
}
