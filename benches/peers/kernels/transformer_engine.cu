// The forward kernel of TransformerEngine's file and what it calls, cut out of a file that needs the whole library.
#include <cstdint>

#include <cuda_bf16.h>

#include "cut/transformer_engine.cuh"

void name_all(void (*take)(const void *)) {
    take(reinterpret_cast<const void *>(fused_rope_forward_kernel<__nv_bfloat16>));
}
