// Names the RoPE kernels that FlashInfer's launchers choose, so that the compiler writes them out.
#include <algorithm>
#include <sstream>

#include <flashinfer/pos_enc.cuh>

using namespace flashinfer;

template <bool INTERLEAVED, uint32_t DIM>
void name_kernels(void (*take)(const void *)) {
    constexpr uint32_t VEC = 8;
    using T = nv_bfloat16;
    auto name = [&](auto *kernel) { take(reinterpret_cast<const void *>(kernel)); };
    name(BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel<INTERLEAVED, DIM, VEC, DIM / VEC, T, int32_t>);
    name(BatchQKApplyRotaryPosIdsCosSinCacheKernel<INTERLEAVED, DIM, VEC, DIM / VEC, T, int32_t, 1, true>);
    name(BatchQKApplyRotaryPosIdsCosSinCacheKernel<INTERLEAVED, DIM, VEC, DIM / VEC, T, int32_t, 1, false>);
    name(BatchQKApplyRotaryPosIdsHeadParallelismKernel<INTERLEAVED, DIM, VEC, DIM / VEC, T, int32_t>);
    name(BatchQKApplyRotaryPosIdsKernel<INTERLEAVED, DIM, VEC, DIM / VEC, T, int32_t, 1, false>);
}

void name_all(void (*take)(const void *)) {
    name_kernels<false, 128>(take);
    name_kernels<true, 128>(take);
    name_kernels<true, 64>(take);
}
