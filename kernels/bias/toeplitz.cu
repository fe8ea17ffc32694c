// write:  x[b, h, i, j] = bias(h, query i, key j)
// add:    x[b, h, i, j] += bias(h, query i, key j)
// row:    row[h, d] = table[lookup[d], h]
//
// x        [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// table    f32 [buckets, heads], lookup u16 [distances], row f32 [heads, distances]
//
// write and add: blockDim.x threads walk one row, eight keys each at a time; blockDim.y rows a block. Rounded once,
// from float; keys of another packed sequence than the query's get -inf. Bytes: each element is written once, and read
// once by `add`; slopes and rows come from a cache, in apply_numbers once for the queries of a tile. row: one thread
// per number.
#include "bias/apply.cuh"
#include "bias/forms.cuh"

#define BOUNDS __launch_bounds__(256, 4)

struct AppliedBias : RowBias {
    using RowBias::RowBias;

    __device__ void of(const BiasArgs& args, const Row& row, int key, int count, float (&bias)[KEYS]) const {
        RowBias::of<true>(args, row, key, count, bias);
    }
};

extern "C" __global__ void BOUNDS KERNEL(apply) { apply<AppliedBias>(args); }

// The numbers of a tile's distances in shared memory, in four copies that each begin one number later: any eight that
// follow one another are two aligned accesses of one copy. Those of even and of odd index lie apart, so that threads
// side by side meet no bank twice.
struct Tile {
    static constexpr int HALF = 132;
    static_assert((TILE_KEYS + TILE_ROWS + 6) / 8 < HALF && HALF % 8 == 4, "room, and banks of their own");

    float4 (&copies)[4][2 * HALF];

    __device__ void put(int index, float number) const {
#pragma unroll
        for (int copy = 0; copy < 4; ++copy) {
            // Copies begin before their first number.
            int at = index - copy + 4;
            reinterpret_cast<float*>(&copies[copy][at / 8 + (at / 4 & 1) * HALF])[at & 3] = number;
        }
    }

    __device__ void get(int index, float (&x)[KEYS]) const {
        int first = index / 4 + 1;
#pragma unroll
        for (int i = 0; i < KEYS; i += 4) {
            int at = first + i / 4;
            float4 four = copies[index & 3][at / 2 + (at & 1) * HALF];
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        }
    }
};

// The same for a row of numbers, and for FIRE, whose numbers are its logarithms, where positions follow one another:
// for TILE_ROWS queries of a head at a time.
__device__ __forceinline__ void apply_numbers(const ToeplitzArgs& args) {
    __shared__ float4 copies[4][2 * Tile::HALF];
    Tile tile{copies};
    const BiasArgs& bias = args.bias;
    int first_key = blockIdx.x * TILE_KEYS, keys = static_cast<int>(bias.keys) - first_key;
    unsigned first = blockIdx.y * TILE_ROWS;
    int key = threadIdx.x * KEYS, count = min(KEYS, keys - key);
    bool whole = args.aligned && count == KEYS;
    wait_for_predecessor();
    unsigned index = blockIdx.z, batch = divide(index, bias.by_heads), head = index - batch * bias.heads;
    Row row(bias, batch, head, first);
    bool fire = bias.kind == BiasKind::FIRE;
    const float* values = static_cast<const float*>(bias.values);
    if (!fire) values += static_cast<long long>(head) * bias.count;
    // Of the tile's last query and first key.
    int least = first_key + row.key_start - row.at - (TILE_ROWS - 1);
    int numbers = (min(keys, TILE_KEYS) + KEYS - 1) / KEYS * KEYS + TILE_ROWS - 1;
    // Five loads at a time: a block of 256 threads has no more.
    constexpr int BATCH = 5;
    int threads = blockDim.x * blockDim.y;
#pragma unroll 1
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < numbers; i += BATCH * threads) {
        float number[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            int distance = least + i + j * threads;
            if (i + j * threads < numbers) {
                number[j] = fire ? posenc_fire_input(values, bias.count, 1.0f, distance)
                                 : posenc_toeplitz(values, bias.first, bias.count, distance);
            }
        }
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            if (i + j * threads < numbers) tile.put(i + j * threads, number[j]);
        }
    }
    __syncthreads();
    if (count <= 0) return;
    const float* gates = static_cast<const float*>(bias.gates);
    if (gates) gates += static_cast<long long>(index) * bias.queries + first;
    T::Bits* x = static_cast<T::Bits*>(args.x) + row.offset(args.strides) + first_key + key;
    unsigned end = min(static_cast<unsigned>(TILE_ROWS), bias.queries - first);
#pragma unroll 2
    for (unsigned own = threadIdx.y; own < end; own += blockDim.y) {
        T::Bits* at = x + own * args.strides[2];
        Pack<WIDE> raw[KEYS / WIDE];
        if (args.add && whole) {
#pragma unroll
            for (int i = 0; i < KEYS; i += WIDE) raw[i / WIDE] = Pack<WIDE>::load(at + i);
        }
        float value[KEYS];
        tile.get(key + TILE_ROWS - 1 - own, value);
        if (fire) {
            int at = row.at + static_cast<int>(own);
            float factor = posenc_fire_factor(values, bias.count, bias.least_norm, bias.eps, at);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) value[i] *= factor;
            FireBias::in_turn(bias, row, value);
        }
        if (gates) {
            float gate = gates[own];
#pragma unroll
            for (int i = 0; i < KEYS; ++i) value[i] *= gate;
        }
        if (args.add) add_logits(raw, at, count, whole, value);
        store_keys(at, count, whole, value);
    }
}

extern "C" __global__ void BOUNDS KERNEL(apply_numbers) { apply_numbers(args); }

extern "C" __global__ void BOUNDS KERNEL(row) {
    unsigned distance = blockIdx.x * blockDim.x + threadIdx.x;
    if (distance >= args.count) return;
    unsigned bucket = static_cast<const unsigned short*>(args.lookup)[distance];
    wait_for_predecessor();
    // The table's rows are short and in a cache: heads are walked in a loop so that a bucket is looked up once.
    for (unsigned head = blockIdx.y; head < args.heads; head += gridDim.y) {
        static_cast<float*>(args.row)[static_cast<long long>(head) * args.count + distance] =
            static_cast<const float*>(args.table)[static_cast<long long>(bucket) * args.heads + head];
    }
}
