// The device half of vLLM's file, cut before its host function, which needs PyTorch.
#include <cstdint>

#include <cuda_bf16.h>

#define VLLM_LDG(x) __ldg(x)

#include "cut/vllm.cuh"

void name_all(void (*take)(const void *)) {
    using T = __nv_bfloat16;
    take(reinterpret_cast<const void *>(vllm::rotary_embedding_kernel<T, T, true>));
    take(reinterpret_cast<const void *>(vllm::rotary_embedding_kernel<T, T, false>));
}
