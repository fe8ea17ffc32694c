// out[h or 0, e, :] = sum over sequences, (heads,) queries i of weight[i, e] * dz[b, i, h, :]
// weight[i, e]      = sum over the keys j with entry e of p[b, h, i, j]
//
// out   f32 [heads or 1, entries, dim], contiguous
// sums  f32 [heads or 1, splits, entries, dim], what the blocks leave to the last one of 32 entries and 128 channels
//
// A block has 32 entries, 128 channels and a split of the rows, and takes 32 rows at a time: first their weights in
// shared memory, then sums of products in registers, four entries and four channels of each thread. Sums of 32 rows are
// added with compensation, and so are the splits, in their order. Bytes: each key that has an entry is read once for
// each 128 channels; with a lookup or positions of their own once for each 32 entries too. dz is read by each warp,
// once for four entries, which the cache serves.
#include "attend/relative_values.cuh"
#include "common/barrier.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned ENTRIES = VALUE_ENTRIES;
static_assert(ENTRIES == 4 * WARPS, "a warp has a float4 of weights");
constexpr unsigned STEP = 32;

// Row `index` of a table's rows.
__device__ __forceinline__ Row row_of(const RelativeTableGradArgs& args, unsigned group, unsigned index) {
    if (!args.by_head) return Row(args.bias, index);
    unsigned batch = divide(index, args.bias.by_queries);
    return Row(args.bias, batch, group, index - batch * args.bias.queries);
}

// The weights of `STEP` rows from `first` on, and where the rows of dz lie. All threads of the block.
__device__ __forceinline__ void weigh(const RelativeTableGradArgs& args, unsigned group, unsigned first, unsigned end,
                                      unsigned low, float* weights, long long* at) {
    unsigned count = min(ENTRIES, static_cast<unsigned>(args.term.entries) - low);
#pragma unroll 1
    for (unsigned slot = threadIdx.x / 32; slot < STEP; slot += WARPS) {
        float* own = weights + slot * ENTRIES;
        Tile{low, ENTRIES, own, own, 1}.clear(false);
        if (first + slot >= end) continue;
        __syncwarp();
        Row row = row_of(args, group, first + slot);
        const T::Bits* p = static_cast<const T::Bits*>(args.p) + row.offset(args.p_strides);
        Tile tile{low, count, own, own + STEP * ENTRIES, 1};
        gather(p, args.aligned, args.bins, RowKeys(args.bias, args.term, row), tile);
        const long long (&strides)[3] = args.z_strides;
        if (threadIdx.x % 32 == 0) {
            at[slot] = row.batch * strides[0] + row.query * strides[1] + row.head * strides[2];
        }
    }
}

// The sums of the blocks of a tile, in the order of their splits.
__device__ __forceinline__ void finish(const RelativeTableGradArgs& args, unsigned group, unsigned low,
                                       unsigned first) {
    unsigned entries = static_cast<unsigned>(args.term.entries);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < ENTRIES * CHANNELS; i += THREADS) {
        unsigned e = low + i / CHANNELS, c = first + i % CHANNELS;
        if (e >= entries || c >= args.dim) continue;
        long long size = static_cast<long long>(entries) * args.dim;
        long long at = static_cast<long long>(e) * args.dim + c;
        const float* sums = static_cast<const float*>(args.sums) + group * args.splits * size + at;
        Sum sum;
#pragma unroll 1
        for (unsigned split = 0; split < args.splits; ++split) sum.add(sums[split * size]);
        static_cast<float*>(args.out)[group * size + at] = sum.total;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(relative_table_grad) {
    // Twice, for compensation.
    __shared__ float4 weights[2 * STEP * ENTRIES / 4];
    __shared__ long long at[STEP];
    wait_for_predecessor();
    unsigned unit = blockIdx.x / args.splits, split = blockIdx.x - unit * args.splits;
    unsigned channel_tile = unit % args.channel_tiles, tile = unit / args.channel_tiles;
    unsigned group = tile / args.tiles, low = (tile - group * args.tiles) * ENTRIES;
    unsigned warp = threadIdx.x / 32, channel = channel_tile * CHANNELS + threadIdx.x % 32;
    unsigned first = split * args.split_rows, end = min(first + args.split_rows, args.group_rows);
    Sum total[4][OWN];
#pragma unroll 1
    for (; first < end; first += STEP) {
        weigh(args, group, first, end, low, reinterpret_cast<float*>(weights), at);
        __syncthreads();
        float acc[4][OWN] = {};
#pragma unroll 1
        for (unsigned slot = 0; slot < STEP; ++slot) {
            float4 all = weights[slot * (ENTRIES / 4) + warp];
            float w[4] = {all.x, all.y, all.z, all.w};
            if (w[0] == 0.0f && w[1] == 0.0f && w[2] == 0.0f && w[3] == 0.0f) continue;
            const T::Bits* dz = static_cast<const T::Bits*>(args.dz) + at[slot];
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) {
                if (channel + 32 * k >= args.dim) break;
                float x = T::widen(dz[channel + 32 * k]);
                // A row without weight adds nothing, whatever it holds.
#pragma unroll
                for (unsigned e = 0; e < 4; ++e) acc[e][k] = w[e] == 0.0f ? acc[e][k] : fmaf(w[e], x, acc[e][k]);
            }
        }
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) {
#pragma unroll
            for (unsigned k = 0; k < OWN; ++k) total[e][k].add(acc[e][k]);
        }
        __syncthreads();
    }
    unsigned entries = static_cast<unsigned>(args.term.entries);
    long long row = args.splits == 1 ? group : static_cast<long long>(group) * args.splits + split;
    float* to = static_cast<float*>(args.splits == 1 ? args.out : args.sums) + row * entries * args.dim;
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
        unsigned entry = low + warp * 4 + e;
#pragma unroll
        for (unsigned k = 0; k < OWN; ++k) {
            unsigned c = channel + 32 * k;
            if (entry < entries && c < args.dim) to[static_cast<long long>(entry) * args.dim + c] = total[e][k].total;
        }
    }
    if (args.splits == 1) return;
    if (last_of(static_cast<unsigned*>(args.counters) + unit, args.splits))
        finish(args, group, low, channel_tile * CHANNELS);
}
