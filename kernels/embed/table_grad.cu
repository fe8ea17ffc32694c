// Gradients of learned tables, in fixed orders of addition: no floating-point atomics.
//
// counted_grad  table[first + t] = scale * sum of grad[b, t] over the batch: a position table whose positions are counted
// sorted_grad   table[id] = scale * sum of grad over the tokens with that id, in the order of the tokens: any table
// order         the tokens' indices in the order of their ids, equal ids in the order of their indices
// vectors_grad  the partial sums of norm_grad.cu, added: the gradients of gain and bias
//
// grad          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// table         [rows, dim]
//
// Bytes: grad is read once, and every row that a token reads is written once.
#include "args.cuh"
#include "common/index.cuh"
#include "embed/row.cuh"

// One warp adds up 32 channels of one vector: thread (x, y) those of every eighth row, then row y = 0 the eight sums.
__device__ void vectors_grad(const TableGradArgs& args) {
    __shared__ float parts[8][32];
    unsigned channel = blockIdx.x * 32 + threadIdx.x;
    wait_for_predecessor();
    const float* partials = static_cast<const float*>(args.grad) + blockIdx.y * static_cast<long long>(args.dim) + channel;
    float sum = 0.0f;
    if (channel < args.dim) {
        for (unsigned row = threadIdx.y; row < args.batch; row += 8) sum += partials[row * 2ll * args.dim];
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    T::Bits* out = static_cast<T::Bits*>(blockIdx.y ? args.second : args.table);
    if (threadIdx.y == 0 && channel < args.dim && out) {
        sum = parts[0][threadIdx.x];
#pragma unroll 1
        for (int row = 1; row < 8; ++row) sum += parts[row][threadIdx.x];
        if (args.accumulate) sum += T::widen(out[channel]);
        out[channel] = T::narrow(sum);
    }
}

template <int W> __device__ void finish(const TableGradArgs& args, long long row, unsigned channel, float (&sum)[STEP<W>]) {
    T::Bits* out = static_cast<T::Bits*>(args.table) + row * args.dim;
    float old[STEP<W>] = {};
    if (args.accumulate) load_step<W>(out, channel, args.dim, old);
#pragma unroll
    for (int i = 0; i < STEP<W>; ++i) sum[i] = fmaf(sum[i], args.scale, old[i]);
    store_step<W>(out, channel, args.dim, sum);
}

// One thread owns STEP channels of one position and walks the batch.
template <int W> __device__ void counted_grad(const TableGradArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.tokens) return;
    wait_for_predecessor();
    for (unsigned channel = threadIdx.x * STEP<W>; channel < args.dim; channel += blockDim.x * STEP<W>) {
        float sum[STEP<W>] = {};
        const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + token * args.strides[1];
#pragma unroll 2
        for (unsigned batch = 0; batch < args.batch; ++batch, grad += args.strides[0]) {
            float x[STEP<W>];
            load_step<W>(grad, channel, args.dim, x);
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) sum[i] += x[i];
        }
        finish<W>(args, args.first + token, channel, sum);
    }
}

// A block stands on one place of the order. If an id begins there, it adds up the tokens of that id: 16 threads side by
// side own STEP channels each, 16 rows of threads take every sixteenth token, and their sums are added in order.
template <int W> __device__ void sorted_grad(const TableGradArgs& args) {
    __shared__ float parts[16][16 * STEP<W>];
    const unsigned* order = static_cast<const unsigned*>(args.order);
    unsigned begin = blockIdx.x;
    unsigned count = args.batch * args.tokens;
    wait_for_predecessor();
    // An order that names no token is not followed.
    if (order[begin] >= count) return;
    long long id = read_id(args.ids, args.id_type, order[begin]);
    if (begin > 0 && order[begin - 1] < count && read_id(args.ids, args.id_type, order[begin - 1]) == id) return;
    if (id < 0 || id >= args.rows || (args.skips && id == args.skipped)) return;
    unsigned channel = (blockIdx.y * 16 + threadIdx.x) * STEP<W>;
    float sum[STEP<W>] = {};
    if (channel < args.dim) {
#pragma unroll 1
        for (unsigned place = begin + threadIdx.y; place < count; place += 16) {
            unsigned index = order[place];
            if (index >= count || read_id(args.ids, args.id_type, index) != id) break;
            unsigned batch = index / args.tokens;
            const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + batch * args.strides[0] +
                                  (index - batch * args.tokens) * args.strides[1];
            float x[STEP<W>];
            load_step<W>(grad, channel, args.dim, x);
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) sum[i] += x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < STEP<W>; ++i) parts[threadIdx.y][i * 16 + threadIdx.x] = sum[i];
    __syncthreads();
    if (threadIdx.y == 0 && channel < args.dim) {
#pragma unroll 1
        for (int row = 1; row < 16; ++row) {
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) sum[i] += parts[row][i * 16 + threadIdx.x];
        }
        finish<W>(args, id, channel, sum);
    }
}

// One thread finds the place of one token: how many ids are smaller, or equal and earlier. All ids pass through shared
// memory, so the count of loads is tokens^2 / 256 and of comparisons tokens^2: for tens of thousands of tokens.
__device__ void order(const TableGradArgs& args) {
    __shared__ long long tile[256];
    unsigned count = args.batch * args.tokens;
    unsigned own = blockIdx.x * 256 + threadIdx.x;
    wait_for_predecessor();
    long long id = own < count ? read_id(args.ids, args.id_type, own) : 0;
    unsigned place = 0;
    for (unsigned start = 0; start < count; start += 256) {
        if (start + threadIdx.x < count) tile[threadIdx.x] = read_id(args.ids, args.id_type, start + threadIdx.x);
        __syncthreads();
        unsigned end = min(256u, count - start);
#pragma unroll 4
        for (unsigned i = 0; i < end; ++i) place += tile[i] < id || (tile[i] == id && start + i < own);
        __syncthreads();
    }
    if (own < count) static_cast<unsigned*>(args.table)[place] = own;
}

#define TABLE_GRAD(name, f) \
    extern "C" __global__ void __launch_bounds__(256) ENTRY(name)(const TableGradArgs args) { f(args); }

TABLE_GRAD(vectors_grad, vectors_grad)
TABLE_GRAD(counted_grad_wide, counted_grad<WIDE>)
TABLE_GRAD(counted_grad_mid, counted_grad<MID>)
TABLE_GRAD(counted_grad_one, counted_grad<1>)
TABLE_GRAD(sorted_grad_wide, sorted_grad<WIDE>)
TABLE_GRAD(sorted_grad_mid, sorted_grad<MID>)
TABLE_GRAD(sorted_grad_one, sorted_grad<1>)
TABLE_GRAD(order, order)
