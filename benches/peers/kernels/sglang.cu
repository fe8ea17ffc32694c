// Names SGLang's RoPE kernels for the shapes that are counted, so that the compiler writes them out.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include "elementwise/rope.cuh"

using namespace sglang;

template <bool NEOX, int64_t DIM, uint32_t THREADS>
void name_kernel(void (*take)(const void *)) {
    take(reinterpret_cast<const void *>(fused_rope_kernel<NEOX, DIM, true, bf16_t, bf16_t, int32_t, THREADS>));
}

void name_all(void (*take)(const void *)) {
    name_kernel<true, 128, 16>(take);
    name_kernel<false, 128, 16>(take);
    name_kernel<false, 64, 8>(take);
}
