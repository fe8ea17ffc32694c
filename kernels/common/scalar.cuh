// Element types, conversions and packs of 16, 8 or sizeof(element) bytes. Needs no toolkit header.
//
// DTYPE is f32, f16 or bf16 (set by build.rs). Arithmetic is in float; a value is rounded once, to nearest even, when
// it is packed. Conversions are exact in the other direction.
//
// Inline assembly says in each line which architectures it is for: `//sm_80+ ` begins those of 8.0 and later ones,
// `//sm_80- ` those before. build.rs takes its choice of them into each architecture's PTX.
#pragma once

struct f32 {
    using Bits = unsigned;
    static __device__ float widen(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
    static __device__ unsigned narrow(float x) { return static_cast<unsigned>(__float_as_int(x)); }
};

struct f16 {
    using Bits = unsigned short;
    static __device__ float widen(unsigned bits) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
        return x;
    }
    static __device__ unsigned narrow(float x) {
        unsigned short bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
        return bits;
    }
    // Two values in one word, the first in the lower half.
    static __device__ unsigned narrow2(float low, float high) {
        unsigned bits;
        asm("//sm_80+ cvt.rn.f16x2.f32 %0, %1, %2;\n"
            "//sm_80- {.reg .b16 low, high;\n"
            "//sm_80- cvt.rn.f16.f32 low, %2;\n"
            "//sm_80- cvt.rn.f16.f32 high, %1;\n"
            "//sm_80- mov.b32 %0, {low, high};}"
            : "=r"(bits)
            : "f"(high), "f"(low));
        return bits;
    }
};

struct bf16 {
    using Bits = unsigned short;
    static __device__ float widen(unsigned bits) { return __int_as_float(static_cast<int>(bits << 16)); }
    static __device__ unsigned narrow(float x) { return narrow2(x, 0.0f) & 0xffffu; }
    static __device__ unsigned narrow2(float low, float high) {
        unsigned bits;
        // Ties to even, every NaN becomes 0x7fff.
        asm("//sm_80+ cvt.rn.bf16x2.f32 %0, %1, %2;\n"
            "//sm_80- {.reg .pred nan; .reg .b32 from, low, high;\n"
            "//sm_80- mov.b32 from, %2;\n"
            "//sm_80- bfe.u32 low, from, 16, 1;\n"
            "//sm_80- add.u32 low, low, 0x7fff;\n"
            "//sm_80- add.u32 low, low, from;\n"
            "//sm_80- setp.nan.f32 nan, %2, %2;\n"
            "//sm_80- selp.b32 low, 0x7fffffff, low, nan;\n"
            "//sm_80- mov.b32 from, %1;\n"
            "//sm_80- bfe.u32 high, from, 16, 1;\n"
            "//sm_80- add.u32 high, high, 0x7fff;\n"
            "//sm_80- add.u32 high, high, from;\n"
            "//sm_80- setp.nan.f32 nan, %1, %1;\n"
            "//sm_80- selp.b32 high, 0x7fffffff, high, nan;\n"
            "//sm_80- prmt.b32 %0, low, high, 0x7632;}"
            : "=r"(bits)
            : "f"(high), "f"(low));
        return bits;
    }
};

using T = DTYPE;

// Elements of a 16-byte access, and of an 8-byte one.
constexpr int WIDE = 16 / sizeof(T::Bits);
constexpr int MID = 8 / sizeof(T::Bits);

// The access of W elements: one load or store instruction each.
template <int BYTES> struct Access;
template <> struct Access<16> {
    using Type = uint4;
};
template <> struct Access<8> {
    using Type = uint2;
};
template <> struct Access<4> {
    using Type = unsigned;
};
template <> struct Access<2> {
    using Type = unsigned short;
};

// W elements as they lie in memory.
template <int W> struct Pack {
    using Type = typename Access<W * sizeof(T::Bits)>::Type;
    Type raw;

    static __device__ Pack load(const T::Bits* at) { return {*reinterpret_cast<const Type*>(at)}; }
    __device__ void store(T::Bits* at) const { *reinterpret_cast<Type*>(at) = raw; }
};

template <int BYTES> struct Words {
    unsigned word[BYTES / 4 ? BYTES / 4 : 1];
};
__device__ inline Words<16> words(uint4 raw) { return {{raw.x, raw.y, raw.z, raw.w}}; }
__device__ inline Words<8> words(uint2 raw) { return {{raw.x, raw.y}}; }
__device__ inline Words<4> words(unsigned raw) { return {{raw}}; }
__device__ inline Words<2> words(unsigned short raw) { return {{raw}}; }
__device__ inline void gather(const Words<16>& w, uint4& raw) {
    raw = make_uint4(w.word[0], w.word[1], w.word[2], w.word[3]);
}
__device__ inline void gather(const Words<8>& w, uint2& raw) { raw = make_uint2(w.word[0], w.word[1]); }
__device__ inline void gather(const Words<4>& w, unsigned& raw) { raw = w.word[0]; }
__device__ inline void gather(const Words<2>& w, unsigned short& raw) { raw = static_cast<unsigned short>(w.word[0]); }

// E is T; as a parameter it keeps the branches for other element types out of the instantiation.
template <int W, class E = T> __device__ void unpack(const Pack<W>& pack, float (&x)[W]) {
    auto w = words(pack.raw);
    if constexpr (sizeof(typename E::Bits) == 4) {
#pragma unroll
        for (int i = 0; i < W; ++i) x[i] = E::widen(w.word[i]);
    } else if constexpr (W == 1) {
        x[0] = E::widen(w.word[0]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i += 2) {
            x[i] = E::widen(w.word[i / 2] & 0xffffu);
            x[i + 1] = E::widen(w.word[i / 2] >> 16);
        }
    }
}

template <int W, class E = T> __device__ Pack<W> pack(const float (&x)[W]) {
    Words<W * sizeof(typename E::Bits)> w;
    if constexpr (sizeof(typename E::Bits) == 4) {
#pragma unroll
        for (int i = 0; i < W; ++i) w.word[i] = E::narrow(x[i]);
    } else if constexpr (W == 1) {
        w.word[0] = E::narrow(x[0]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i += 2) w.word[i / 2] = E::narrow2(x[i], x[i + 1]);
    }
    Pack<W> pack;
    gather(w, pack.raw);
    return pack;
}

// Two packs that hold pairs side by side, [a0 b0 a1 b1 ...] over both, become [a0 a1 ...] and [b0 b1 ...].
template <int W, class E = T> __device__ void split(Pack<W>& a, Pack<W>& b) {
    constexpr int N = W * sizeof(typename E::Bits) / 4;
    if constexpr (W > 1) {
        auto x = words(a.raw), y = words(b.raw);
        auto low = x, high = y;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if constexpr (sizeof(typename E::Bits) == 4) {
                low.word[i] = 2 * i < N ? x.word[2 * i] : y.word[2 * i - N];
                high.word[i] = 2 * i + 1 < N ? x.word[2 * i + 1] : y.word[2 * i + 1 - N];
            } else {
                unsigned first = 2 * i < N ? x.word[2 * i] : y.word[2 * i - N];
                unsigned second = 2 * i + 1 < N ? x.word[2 * i + 1] : y.word[2 * i + 1 - N];
                low.word[i] = __byte_perm(first, second, 0x5410);
                high.word[i] = __byte_perm(first, second, 0x7632);
            }
        }
        gather(low, a.raw);
        gather(high, b.raw);
    }
}

// The inverse of split.
template <int W, class E = T> __device__ void merge(Pack<W>& a, Pack<W>& b) {
    constexpr int N = W * sizeof(typename E::Bits) / 4;
    if constexpr (W > 1) {
        auto low = words(a.raw), high = words(b.raw);
        unsigned all[2 * N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if constexpr (sizeof(typename E::Bits) == 4) {
                all[2 * i] = low.word[i];
                all[2 * i + 1] = high.word[i];
            } else {
                all[2 * i] = __byte_perm(low.word[i], high.word[i], 0x5410);
                all[2 * i + 1] = __byte_perm(low.word[i], high.word[i], 0x7632);
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            low.word[i] = all[i];
            high.word[i] = all[N + i];
        }
        gather(low, a.raw);
        gather(high, b.raw);
    }
}

// Begins to copy 16 bytes from global to shared memory, to an address of the shared window. They are there for the
// thread itself after `fetched`.
__device__ __forceinline__ void fetch(unsigned to, const void* from) {
    asm volatile(
        "//sm_80+ cp.async.cg.shared.global [%0], [%1], 16;\n"
        "//sm_80- {.reg .b32 a, b, c, d;\n"
        "//sm_80- ld.global.v4.u32 {a, b, c, d}, [%1];\n"
        "//sm_80- st.shared.v4.u32 [%0], {a, b, c, d};}" ::"r"(to),
        "l"(__cvta_generic_to_global(from))
        : "memory");
}

__device__ __forceinline__ void fetch(uint4* to, const void* from) {
    fetch(static_cast<unsigned>(__cvta_generic_to_shared(to)), from);
}

__device__ __forceinline__ void fetched() { asm volatile("//sm_80+ cp.async.wait_all;" ::: "memory"); }
