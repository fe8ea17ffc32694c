// Gradients of learned tables, in fixed orders of addition: no floating-point atomics.
//
// counted_grad  table[first + t] = scale * sum of grad[b, t] over the batch: a position table whose positions are
// counted
// order         the tokens' indices in the order of their ids, equal ids in the order of their indices: tiles of 1024
// are
//               sorted by order_tile, and order_merge makes one run of every eight, as often as it takes
// sorted_grad   table[id] = scale * sum of grad over the tokens with that id, in the order of the tokens: any table.
// Ids that
//               cross from one chunk of 16 places into the next leave partial sums, which sorted_rest adds
// vectors_grad  the partial sums of norm_grad.cu, added: the gradients of gain and bias
//
// grad          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// table         [rows, dim]
// partials      [chunks, 2, dim] f32: of the id that came into the chunk, of the one that goes on behind it; then
// [chunks]
//               flags, not 0 where an id begins in the chunk and goes on behind it: 1 into the next chunk, 2 beyond
//
// Bytes: grad is read once, and every row that a token reads is written once; at most an eighth of grad's elements once
// more as partial sums, written and read, if all tokens have few ids.
#include "args.cuh"
#include "common/index.cuh"
#include "embed/row.cuh"

// One warp adds up 32 channels of one vector: thread (x, y) those of every eighth row, then row y = 0 the eight sums.
__device__ void vectors_grad(const TableGradArgs& args) {
    __shared__ float parts[8][32];
    unsigned channel = blockIdx.x * 32 + threadIdx.x;
    wait_for_predecessor();
    const float* partials =
        static_cast<const float*>(args.grad) + blockIdx.y * static_cast<long long>(args.dim) + channel;
    float sum = 0.0f;
    if (channel < args.dim) {
        // Sixteen loads at a time.
        constexpr unsigned BATCH = 16;
        unsigned row = threadIdx.y;
#pragma unroll 1
        for (; row + 8 * (BATCH - 1) < args.batch; row += 8 * BATCH) {
            float value[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) value[i] = partials[(row + 8 * i) * 2ll * args.dim];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) sum += value[i];
        }
        for (; row < args.batch; row += 8) sum += partials[row * 2ll * args.dim];
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

template <int W> __device__ void finish(const TableGradArgs& args, long long row, unsigned channel,
                                        float (&sum)[STEP<W>]) {
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

// The id at a place of the order; -1 for what has no gradient, and where the order names no token or has no such place.
__device__ inline long long id_at(const TableGradArgs& args, unsigned place) {
    unsigned count = args.batch * args.tokens;
    if (place >= count) return -1;
    unsigned index = static_cast<const unsigned*>(args.order)[place];
    if (index >= count) return -1;
    long long id = read_id(args.ids, args.id_type, index);
    return id < 0 || id >= args.rows || (args.skips && id == args.skipped) ? -1 : id;
}

__device__ inline unsigned* flag_of(const TableGradArgs& args, unsigned chunk) {
    unsigned chunks = (args.batch * args.tokens + ORDER_CHUNK - 1) / ORDER_CHUNK;
    return static_cast<unsigned*>(args.partials) + 2ll * chunks * args.dim + chunk;
}

// The threads of one threadIdx.y own STEP channels each and walk a chunk of the order.
template <int W> __device__ void sorted_grad(const TableGradArgs& args) {
    unsigned chunk = blockIdx.x * blockDim.y + threadIdx.y;
    unsigned channel = (blockIdx.y * blockDim.x + threadIdx.x) * STEP<W>;
    unsigned count = args.batch * args.tokens;
    unsigned place = chunk * ORDER_CHUNK, end = min(place + ORDER_CHUNK, count);
    wait_for_predecessor();
    if (place >= end || channel >= args.dim) return;
    long long id = id_at(args, place);
    // The place before the first is none.
    unsigned slot = id_at(args, place - 1) == id ? 0 : 1;
    bool begins = false;
    float sum[STEP<W>] = {};
#pragma unroll 1
    while (place < end) {
        float x[STEP<W>] = {};
        if (id >= 0) {
            unsigned index = static_cast<const unsigned*>(args.order)[place];
            unsigned batch = divide(index, args.by_tokens);
            const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + batch * args.strides[0] +
                                  (index - batch * args.tokens) * args.strides[1];
            load_step<W>(grad, channel, args.dim, x);
        }
        ++place;
        long long next = id_at(args, place);
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) sum[i] += x[i];
        if (place < end && next == id) continue;
        // The id's last place, in the order or in the chunk.
        if (id >= 0) {
            if (slot == 0 || next == id) {
                begins = slot == 1;
                store_sums(static_cast<float*>(args.partials) + (2ll * chunk + slot) * args.dim, channel, args.dim,
                           sum);
            } else {
                finish<W>(args, id, channel, sum);
            }
        }
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) sum[i] = 0.0f;
        slot = 1;
        id = next;
    }
    if (channel == 0) *flag_of(args, chunk) = !begins ? 0 : id_at(args, (chunk + 2) * ORDER_CHUNK) == id ? 2 : 1;
}

// A block stands on one chunk. If an id begins in it and goes on behind it, its partial sums are added: up to 16
// threads side by side own STEP channels each, 16 rows of threads take every sixteenth chunk, and their sums are added
// in order. Where there is one chunk more, the first row alone goes on.
template <int W> __device__ void sorted_rest(const TableGradArgs& args) {
    __shared__ float parts[16][16 * STEP<W>];
    unsigned count = args.batch * args.tokens;
    unsigned chunk = blockIdx.x;
    wait_for_predecessor();
    unsigned flag = *flag_of(args, chunk);
    if (flag <= 1 && (!flag || threadIdx.y)) return;
    long long id = id_at(args, (chunk + 1) * ORDER_CHUNK);
    unsigned channel = (blockIdx.y * blockDim.x + threadIdx.x) * STEP<W>;
    const float* partials = static_cast<const float*>(args.partials);
    float sum[STEP<W>] = {};
    if (channel < args.dim) {
        if (threadIdx.y == 0) load_sums(partials + (2ll * chunk + 1) * args.dim, channel, args.dim, sum);
#pragma unroll 1
        for (unsigned next = chunk + 1 + threadIdx.y; next < (count + ORDER_CHUNK - 1) / ORDER_CHUNK; next += 16) {
            if (id_at(args, next * ORDER_CHUNK) != id) break;
            float x[STEP<W>] = {};
            load_sums(partials + 2ll * next * args.dim, channel, args.dim, x);
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) sum[i] += x[i];
        }
    }
    if (flag > 1) {
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) parts[threadIdx.y][i * 16 + threadIdx.x] = sum[i];
        __syncthreads();
        if (threadIdx.y) return;
#pragma unroll 1
        for (int row = 1; row < 16; ++row) {
#pragma unroll
            for (int i = 0; i < STEP<W>; ++i) sum[i] += parts[row][i * 16 + threadIdx.x];
        }
    }
    if (channel < args.dim) finish<W>(args, id, channel, sum);
}

// A block sorts a tile: a thread finds the places of four of its ids, each the number of ids that are smaller, or equal
// and earlier.
__device__ void order_tile(const TableGradArgs& args) {
    __shared__ long long tile[ORDER_TILE];
    unsigned first = blockIdx.x * ORDER_TILE;
    unsigned size = min(ORDER_TILE, args.tokens - first);
    wait_for_predecessor();
    long long id[ORDER_TILE / 256];
    unsigned place[ORDER_TILE / 256] = {};
#pragma unroll
    for (unsigned i = 0; i < ORDER_TILE / 256; ++i) {
        unsigned own = i * 256 + threadIdx.x;
        id[i] = own < size ? read_id(args.ids, args.id_type, first + own) : 0;
        tile[own] = id[i];
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned other = 0; other < size; ++other) {
#pragma unroll
        for (unsigned i = 0; i < ORDER_TILE / 256; ++i) {
            place[i] += tile[other] < id[i] || (tile[other] == id[i] && other < i * 256 + threadIdx.x);
        }
    }
#pragma unroll
    for (unsigned i = 0; i < ORDER_TILE / 256; ++i) {
        unsigned own = i * 256 + threadIdx.x;
        if (own < size) static_cast<unsigned*>(args.table)[first + place[i]] = first + own;
    }
}

// One thread moves one token from its run to its place among eight runs: behind those of its own run that it was
// behind, and behind those of every other run whose ids are smaller, or equal and earlier, found by bisection.
__device__ void order_merge(const TableGradArgs& args) {
    unsigned own = blockIdx.x * 256 + threadIdx.x;
    wait_for_predecessor();
    if (own >= args.tokens) return;
    const unsigned* order = static_cast<const unsigned*>(args.order);
    unsigned index = order[own];
    long long id = read_id(args.ids, args.id_type, index);
    unsigned run = own / args.run, group = run / ORDER_WAYS * ORDER_WAYS;
    unsigned place = own - (run - group) * args.run;
#pragma unroll 1
    for (unsigned other = group; other < group + ORDER_WAYS; ++other) {
        unsigned long long first = other * static_cast<unsigned long long>(args.run);
        if (first >= args.tokens) break;
        if (other == run) continue;
        unsigned low = first, high = min(first + args.run, static_cast<unsigned long long>(args.tokens));
        while (low < high) {
            unsigned middle = low + (high - low) / 2;
            long long found = read_id(args.ids, args.id_type, order[middle]);
            if (found < id || (found == id && other < run)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        place += low - static_cast<unsigned>(first);
    }
    static_cast<unsigned*>(args.table)[place] = index;
}

#define TABLE_GRAD(name, f) \
    extern "C" __global__ void __launch_bounds__(256) KERNEL(name) { f(args); }

TABLE_GRAD(vectors_grad, vectors_grad)
TABLE_GRAD(counted_grad_wide, counted_grad<WIDE>)
TABLE_GRAD(counted_grad_narrow, counted_grad<1>)
TABLE_GRAD(sorted_grad_wide, sorted_grad<WIDE>)
TABLE_GRAD(sorted_grad_narrow, sorted_grad<1>)
TABLE_GRAD(sorted_rest_wide, sorted_rest<WIDE>)
TABLE_GRAD(sorted_rest_narrow, sorted_rest<1>)
TABLE_GRAD(order_tile, order_tile)
TABLE_GRAD(order_merge, order_merge)
