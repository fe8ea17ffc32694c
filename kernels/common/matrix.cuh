// Products of 16 x 16 and 16 x 8 elements of a half type on tensor cores, summed in f32.
//
// A product of two elements is exact; the order in which a step's 16 products are summed, and how the sum is rounded,
// is the device's own. It is the same for every element of the result.
#pragma once
#include "common/scalar.cuh"

// True where E has matrix instructions of this shape: the half types from 8.0 on.
template <class E> struct HasMatrix {
    static constexpr bool value = false;
};
#if __CUDA_ARCH__ >= 800
template <> struct HasMatrix<f16> {
    static constexpr bool value = true;
};
template <> struct HasMatrix<bf16> {
    static constexpr bool value = true;
};
#endif

#if __CUDA_ARCH__ >= 800
// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes each.
__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// c += a b. Lane l has of a the rows l / 4 and l / 4 + 8 at the channels 2 (l % 4) and the next, then of both rows the
// channels 8 on; of b the column l / 4 at the same channels; of c the columns 2 (l % 4) and the next of the first row,
// then of the second.
//
// The first argument says the type of a and b.
#define MULTIPLY_ADD(E)                                                                                                \
    __device__ __forceinline__ void multiply_add(E, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." #E "." #E                                                         \
            ".f32 "                                                                                                    \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                          \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                           \
    }
MULTIPLY_ADD(f16)
MULTIPLY_ADD(bf16)
#undef MULTIPLY_ADD
#endif
