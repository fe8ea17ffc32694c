// Gradients of learned tables, in fixed orders of addition: no floating-point atomics.
//
// norm_grad     dv = (g - mean(g) - y mean(g y)) / sigma  with g = grad * gain and y = (v - mean) / sigma, for each row;
//               partial sums of grad * y and of grad over the rows of each block
// vectors_grad  the partial sums of all blocks, added: the gradients of gain and bias
// counted_grad  table[first + t] = sum over the batch of grad[b, t]: a position table whose positions are counted
// sorted_grad   table[id] = scale * sum of grad over the tokens with that id, by the tokens' order: any table
// order         the tokens' indices in the order of their ids, equal ids in the order of their indices
//
// grad, x       [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// partials      [blocks * rows of a block, 2, dim] f32
//
// Bytes: norm_grad reads what the forward kernel reads, and grad, and writes dv; the table kernels read grad once and
// write every row that a token reads once.
#include "embed/gather.cuh"

template <int W, int UNITS> __device__ void norm_grad(const LearnedArgs& args) {
    constexpr int HELD = UNITS ? UNITS : 1;
    float gain_sum[HELD][UNIT] = {}, bias_sum[HELD][UNIT] = {};
    float* gain_out = static_cast<float*>(args.partials) + (blockIdx.x * blockDim.y + threadIdx.y) * 2ll * args.dim;
    float* bias_out = gain_out + args.dim;
    if constexpr (UNITS == 0) {
        for (unsigned channel = threadIdx.x * UNIT; channel < args.dim; channel += blockDim.x * UNIT) {
            for (unsigned i = channel; i < min(channel + UNIT, args.dim); ++i) gain_out[i] = bias_out[i] = 0.0f;
        }
    }
    unsigned groups = (args.tokens + blockDim.y - 1) / blockDim.y;
    float dim = args.dim;
    wait_for_predecessor();
    for (unsigned long long group = blockIdx.x; group < static_cast<unsigned long long>(groups) * args.batch;
         group += gridDim.x) {
        unsigned batch = group / groups;
        unsigned first = (group - static_cast<unsigned long long>(batch) * groups) * blockDim.y;
        unsigned token = first + threadIdx.y;
        bool live = token < args.tokens;
        long long at = batch * args.strides[0] + token * args.strides[1];
        const T::Bits* grad_row = static_cast<const T::Bits*>(args.grad) + at;
        T::Bits* out = static_cast<T::Bits*>(args.x) + at;
        long long before = args.position && args.rule != OFFSET ? count_kept(args, batch, first, token) : 0;
        Rows rows;
        if (live) rows.look_up(args, static_cast<const T::Bits*>(args.source) + at, batch, token, before);
        Held<W, UNITS> row(args, rows);
        Moments moments(args, row);

        // g and y of one unit
        auto unit_of = [&](unsigned channel, const float(&v)[UNIT], float(&grad)[UNIT], float(&g)[UNIT], float(&y)[UNIT]) {
            float gain[UNIT];
            load_unit<W>(grad_row, channel, args.dim, grad);
            if (args.gain) load_unit<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                g[i] = args.gain ? grad[i] * gain[i] : grad[i];
                y[i] = (v[i] - moments.mean) * moments.inverse;
            }
        };
        float mean = 0.0f, along = 0.0f;
        if (live) {
            row.each([&](unsigned channel, int, const float(&v)[UNIT]) {
                float grad[UNIT], g[UNIT], y[UNIT];
                unit_of(channel, v, grad, g, y);
#pragma unroll
                for (int i = 0; i < UNIT; ++i) {
                    mean += g[i];
                    along = fmaf(g[i], y[i], along);
                }
            });
        }
        mean = sum_row(mean) / dim;
        along = sum_row(along) / dim;
        if (args.norm == RMS_NORM) mean = 0.0f;
        if (!live) continue;
        row.each([&](unsigned channel, int unit, const float(&v)[UNIT]) {
            float grad[UNIT], g[UNIT], y[UNIT], dv[UNIT];
            unit_of(channel, v, grad, g, y);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                dv[i] = fmaf(-y[i], along, g[i] - mean) * moments.inverse;
                if constexpr (UNITS > 0) {
                    gain_sum[unit][i] = fmaf(grad[i], y[i], gain_sum[unit][i]);
                    bias_sum[unit][i] += grad[i];
                } else if (channel + i < args.dim) {
                    gain_out[channel + i] = fmaf(grad[i], y[i], gain_out[channel + i]);
                    bias_out[channel + i] += grad[i];
                }
            }
            store_unit<W>(out, channel, args.dim, dv);
        });
    }
    if constexpr (UNITS > 0) {
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                unsigned channel = (unit * blockDim.x + threadIdx.x) * UNIT + i;
                if (channel < args.dim) {
                    gain_out[channel] = gain_sum[unit][i];
                    bias_out[channel] = bias_sum[unit][i];
                }
            }
        }
    }
}

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
        for (int row = 1; row < 8; ++row) sum += parts[row][threadIdx.x];
        if (args.accumulate) sum += T::widen(out[channel]);
        out[channel] = T::narrow(sum);
    }
}

template <int W> __device__ void finish(const TableGradArgs& args, long long row, unsigned channel, float (&sum)[UNIT]) {
    T::Bits* out = static_cast<T::Bits*>(args.table) + row * args.dim;
    if (args.accumulate) {
        float old[UNIT];
        load_unit<W>(out, channel, args.dim, old);
#pragma unroll
        for (int i = 0; i < UNIT; ++i) sum[i] = fmaf(sum[i], args.scale, old[i]);
    } else {
#pragma unroll
        for (int i = 0; i < UNIT; ++i) sum[i] *= args.scale;
    }
    store_unit<W>(out, channel, args.dim, sum);
}

// One thread owns a unit of one position and walks the batch.
template <int W> __device__ void counted_grad(const TableGradArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.tokens) return;
    wait_for_predecessor();
    for (unsigned channel = threadIdx.x * UNIT; channel < args.dim; channel += blockDim.x * UNIT) {
        float sum[UNIT] = {};
        const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + token * args.strides[1];
        for (unsigned batch = 0; batch < args.batch; ++batch, grad += args.strides[0]) {
            float x[UNIT];
            load_unit<W>(grad, channel, args.dim, x);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) sum[i] += x[i];
        }
        finish<W>(args, args.first + token, channel, sum);
    }
}

// A block stands on one place of the order. If an id begins there, it adds up the tokens of that id: 16 threads side by
// side own a unit each, 16 rows of threads take every sixteenth token, and their sums are added in order.
template <int W> __device__ void sorted_grad(const TableGradArgs& args) {
    __shared__ float parts[16][16 * UNIT];
    const unsigned* order = static_cast<const unsigned*>(args.order);
    unsigned begin = blockIdx.x;
    unsigned count = args.batch * args.tokens;
    wait_for_predecessor();
    // An order that names no token is not followed.
    if (order[begin] >= count) return;
    long long id = read_id(args.ids, args.id_type, order[begin]);
    if (begin > 0 && order[begin - 1] < count && read_id(args.ids, args.id_type, order[begin - 1]) == id) return;
    if (id < 0 || id >= args.rows || (args.skips && id == args.skipped)) return;
    unsigned channel = (blockIdx.y * 16 + threadIdx.x) * UNIT;
    float sum[UNIT] = {};
    if (channel < args.dim) {
        for (unsigned place = begin + threadIdx.y; place < count; place += 16) {
            unsigned index = order[place];
            if (index >= count || read_id(args.ids, args.id_type, index) != id) break;
            unsigned batch = index / args.tokens;
            const T::Bits* grad = static_cast<const T::Bits*>(args.grad) + batch * args.strides[0] +
                                  (index - batch * args.tokens) * args.strides[1];
            float x[UNIT];
            load_unit<W>(grad, channel, args.dim, x);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) sum[i] += x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < UNIT; ++i) parts[threadIdx.y][i * 16 + threadIdx.x] = sum[i];
    __syncthreads();
    if (threadIdx.y == 0 && channel < args.dim) {
        for (int row = 1; row < 16; ++row) {
#pragma unroll
            for (int i = 0; i < UNIT; ++i) sum[i] += parts[row][i * 16 + threadIdx.x];
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
        for (unsigned i = 0; i < end; ++i) place += tile[i] < id || (tile[i] == id && start + i < own);
        __syncthreads();
    }
    if (own < count) static_cast<unsigned*>(args.table)[place] = own;
}

#define NORM_GRAD(name, W, UNITS)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) ENTRY(name)(const LearnedArgs args) { \
        norm_grad<W, UNITS>(args);                                                                  \
    }
#define TABLE_GRAD(name, f) \
    extern "C" __global__ void __launch_bounds__(256) ENTRY(name)(const TableGradArgs args) { f(args); }

NORM_GRAD(norm_grad_short_wide, WIDE, 1)
NORM_GRAD(norm_grad_short_mid, MID, 1)
NORM_GRAD(norm_grad_short_one, 1, 1)
NORM_GRAD(norm_grad_wide, WIDE, 4)
NORM_GRAD(norm_grad_mid, MID, 4)
NORM_GRAD(norm_grad_one, 1, 4)
NORM_GRAD(norm_grad_long_wide, WIDE, 0)
NORM_GRAD(norm_grad_long_mid, MID, 0)
NORM_GRAD(norm_grad_long_one, 1, 0)
TABLE_GRAD(vectors_grad, vectors_grad)
TABLE_GRAD(counted_grad_wide, counted_grad<WIDE>)
TABLE_GRAD(counted_grad_mid, counted_grad<MID>)
TABLE_GRAD(counted_grad_one, counted_grad<1>)
TABLE_GRAD(sorted_grad_wide, sorted_grad<WIDE>)
TABLE_GRAD(sorted_grad_mid, sorted_grad<MID>)
TABLE_GRAD(sorted_grad_one, sorted_grad<1>)
TABLE_GRAD(order, order)
