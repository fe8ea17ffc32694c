// out[o, h] = factor * sum over batch, queries and keys of grad[b, h, i, j] * weight(d), d = key j - query i in
// interval o
//
// grad       [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous
// intervals  i32 [outputs, 2]; weight is 1, -|d|, or f32 [outputs, heads, weighted]
// sums       f32 [heads, blocks, outputs] or [heads, splits, distances]: what blocks leave to the last one of a head
//
// The gradient of every parameter of a distance bias, without atomics on numbers: diagonals, then distances, then
// outputs. Each number of grad is read once, at the borders of blocks twice. The result depends on the shape alone, not
// on the device.
//
// `diagonals`: where queries and keys follow one another. A thread walks down a strip of diagonals in tiles of eight
// rows of eight keys: eight accesses of 16 bytes, 49 additions, and fifteen sums with compensation, one for each
// diagonal of a tile. Neighbours share seven diagonals. A block adds its distances to the outputs that they belong to,
// if these are few. `bins`: where they have positions of their own. A warp walks rows and adds to bins, one for each
// distance of the target; distances outside take the nearest one, or, where the weight is -|d|, three bins hold the
// sides times |d|. The last block of a head then adds what its blocks left.
#include "bias/bins.cuh"
#include "common/barrier.cuh"
#include "common/keys.cuh"

// Rows of a tile; its keys are as many.
constexpr int TILE = 8;
constexpr int DIAGONALS = 2 * TILE - 1;
static_assert(TILE == KEYS, "a tile is a square");
constexpr int THREADS = 256;

// What is added to outputs: `parts` arrays of `count` numbers, `apart` numbers from one to the next, of the distances
// from `first` on; or of outputs.
struct Addends {
    const float* sums;
    bool of_outputs;
    long long first;
    unsigned count, parts;
    long long apart;

    // The sum of the numbers `low` to below `low + n` of all parts, times their weights; `lanes` share it.
    __device__ __forceinline__ float sum(const DistanceGradArgs& args, unsigned head, unsigned output, unsigned low,
                                         unsigned n, unsigned lane, unsigned lanes) const {
        // Four loads at a time: along the numbers of a part, or along the parts where it has few.
        constexpr int BATCH = 4;
        bool along = parts == 1 || n >= 32;
        unsigned outer = along ? parts : n, inner = along ? n : parts;
        long long step = along ? 1 : apart;
        const float* weights = nullptr;
        if (!of_outputs && args.weights) {
            long long row = static_cast<long long>(output) * args.call.bias.heads + head;
            weights = static_cast<const float*>(args.weights) + row * args.weighted;
        }
        Sum sum;
#pragma unroll 1
        for (unsigned i = 0; i < outer; ++i) {
            const float* at = sums + low + i * (along ? apart : 1);
            // No distance leaves 32 bits.
            int from = static_cast<int>(first + low + (along ? 0 : i));
#pragma unroll 1
            for (unsigned j = lane; j < inner; j += BATCH * lanes) {
                float value[BATCH];
#pragma unroll
                for (int k = 0; k < BATCH; ++k) value[k] = j + k * lanes < inner ? at[(j + k * lanes) * step] : 0.0f;
                if (!of_outputs && (weights || args.by_distance)) {
#pragma unroll
                    for (int k = 0; k < BATCH; ++k) {
                        int distance = from + (along ? min(j + k * lanes, inner - 1) : 0);
                        float weight = -static_cast<float>(abs(distance));
                        if (weights) {
                            int last = static_cast<int>(args.weighted) - 1;
                            weight = weights[min(max(distance - args.weights_first, 0), last)];
                        }
                        value[k] *= weight;
                    }
                }
#pragma unroll
                for (int k = 0; k < BATCH; ++k) sum.add(value[k]);
            }
        }
        return sum.total;
    }
};

// Adds up the outputs of a head: put(output, sum) by one thread each. All threads of a block.
//
// A lane adds up to 16 numbers alone, a warp takes more.
template <class F>
__device__ __forceinline__ void add_outputs(const DistanceGradArgs& args, unsigned head, const Addends& from, F put) {
    unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    unsigned group = min((args.outputs + warps - 1) / warps, 32u);
#pragma unroll 1
    for (unsigned base = threadIdx.x / 32 * group; base < args.outputs; base += warps * group) {
        unsigned output = base + lane, low = output, n = 0;
        bool own = lane < group && output < args.outputs;
        if (own && from.of_outputs) n = 1;
        if (own && !from.of_outputs) {
            const int* interval = static_cast<const int*>(args.intervals) + 2ll * output;
            long long begin = max(interval[0] - from.first, 0ll);
            long long end = min(interval[1] - from.first + 1, from.count + 0ll);
            low = static_cast<unsigned>(begin);
            n = static_cast<unsigned>(max(end - begin, 0ll));
        }
        bool many = static_cast<unsigned long long>(n) * from.parts > 16;
        // At first each lane's own output, then those of many numbers, one after another.
        unsigned left = __ballot_sync(ALL_LANES, many);
#pragma unroll 1
        for (bool alone = true; alone || left; alone = false) {
            unsigned other = alone ? lane : __ffs(left) - 1;
            unsigned begin = __shfl_sync(ALL_LANES, low, other), count = __shfl_sync(ALL_LANES, n, other);
            bool takes = !alone || (own && !many);
            float sum = 0.0f;
            if (takes) sum = from.sum(args, head, base + other, begin, count, alone ? 0 : lane, alone ? 1 : 32);
            if (!alone) {
                sum = warp_sum(sum);
                left &= left - 1;
            }
            if (takes && (alone || lane == 0)) put(base + other, sum);
        }
    }
}

// The sums of ROWS rows of eight keys along their diagonals, as a tree: sums[i] is that of key - row = i - (ROWS - 1).
// `load(row, x)` gives the keys of a row.
template <int ROWS, class F> __device__ __forceinline__ void add_tile(int row, const F& load,
                                                                      float (&sums)[ROWS + TILE - 1]) {
    if constexpr (ROWS == 1) {
        load(row, sums);
    } else {
        constexpr int HALF = ROWS / 2;
        float upper[HALF + TILE - 1], lower[HALF + TILE - 1];
        add_tile<HALF>(row, load, upper);
        add_tile<HALF>(row + HALF, load, lower);
#pragma unroll
        for (int i = 0; i < ROWS + TILE - 1; ++i) {
            if (i < HALF) {
                sums[i] = lower[i];
            } else if (i < HALF + TILE - 1) {
                sums[i] = upper[i - HALF] + lower[i];
            } else {
                sums[i] = upper[i - HALF];
            }
        }
    }
}

// A thread's tiles of one sequence.
struct Tiles {
    const T::Bits* head;
    long long stride;
    // rows of the tensor, and keys
    int first_row, end_row, first_key, end_key;
    bool aligned;
    // of each row, or null
    const float* gates;

    // Adds the tile of the rows from `row` and the keys from `key` on.
    __device__ __forceinline__ void add(int row, int key, Sum (&sums)[DIAGONALS]) const {
        float tile[DIAGONALS];
        const T::Bits* at = head + row * stride + key;
        bool inside = row >= first_row && row <= end_row - TILE && key >= first_key && key <= end_key - TILE;
        if (inside && aligned && !gates) {
            add_tile<TILE>(0, [&](int r, float (&x)[KEYS]) { load_keys(at + r * stride, KEYS, true, 0.0f, x); }, tile);
        } else {
            int low = max(first_key - key, 0), high = min(end_key - key, TILE);
            unsigned keys = (1u << high) - (1u << low);
            add_tile<TILE>(
                0,
                [&](int r, float (&x)[KEYS]) {
                    unsigned there = row >= first_row - r && row < end_row - r ? keys : 0;
                    float gate = gates && there ? gates[row + r] : 1.0f;
#pragma unroll
                    for (int i = 0; i < KEYS; ++i) x[i] = there >> i & 1 ? T::widen(at[r * stride + i]) * gate : 0.0f;
                },
                tile);
        }
#pragma unroll
        for (int i = 0; i < DIAGONALS; ++i) sums[i].add(tile[i]);
    }
};

// The sums of this block's distances, from `from` on, eight for each thread, into `strip`. The last eight are not
// complete where another block follows.
__device__ __forceinline__ void diagonals(const DistanceGradArgs& args, unsigned head, long long from, float* strip) {
    const BiasArgs& bias = args.call.bias;
    const int* query_lengths = static_cast<const int*>(bias.query_lengths);
    unsigned lane = threadIdx.x, lanes = blockDim.x;
    // Rows are counted over sequences.
    long long begin = static_cast<long long>(blockIdx.z) * args.call.rows;
    long long end = min(begin + args.call.rows, static_cast<long long>(bias.batch) * bias.queries);
    unsigned sequence = 0, sequences = bias.sequences ? bias.sequences : bias.batch;
    if (begin < end) sequence = bias.sequences ? find_sequence(query_lengths, sequences, begin) : begin / bias.queries;
    Sum sums[DIAGONALS];
    for (; sequence < sequences; ++sequence) {
        // The tensor's row 0, and the sequence's rows.
        long long zero = bias.sequences ? 0 : static_cast<long long>(sequence) * bias.queries;
        long long low = zero, high = zero + bias.queries;
        if (bias.sequences) {
            low = max(0, query_lengths[sequence]);
            high = min(high, query_lengths[sequence + 1] + 0ll);
        } else if (query_lengths) {
            high = min(high, zero + query_lengths[sequence]);
        }
        if (low >= end) break;
        low = max(low, begin) - zero;
        high = min(high, end) - zero;
        if (low >= high) continue;
        Row row(bias, bias.sequences ? 0 : sequence, head, static_cast<unsigned>(low));
        const long long (&strides)[3] = args.call.strides;
        const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.batch * strides[0] + head * strides[1];
        const float* gates = static_cast<const float*>(bias.gates);
        if (gates) gates += (static_cast<long long>(row.batch) * bias.heads + head) * bias.queries;
        Tiles tiles{grad,      strides[2], static_cast<int>(low),  static_cast<int>(high),
                    row.first, row.keys,   args.call.aligned != 0, gates};
        // The key that row i meets at the distance `from` is start + i. The keys of a tile begin at a multiple of
        // eight.
        long long start = from + row.at - low - row.key_start;
        long long i = low - ((start + low) & (TILE - 1));
        // Rows before, which have no key of this block.
        long long ahead = row.first - (start + i + static_cast<long long>(lanes) * TILE);
        if (ahead >= 0) i += (ahead / TILE + 1) * TILE;
        high = min(high, row.keys - start);
#pragma unroll 1
        for (; i < high; i += TILE) {
            long long key = start + i + lane * TILE;
            if (key < row.keys && key + TILE > row.first) tiles.add(static_cast<int>(i), static_cast<int>(key), sums);
        }
    }
    // A thread has its own eight distances, and seven of the thread before it.
#pragma unroll
    for (int i = 0; i < TILE; ++i) strip[lane * TILE + i] = sums[TILE - 1 + i].total;
    __syncthreads();
    if (lane) {
#pragma unroll
        for (int i = 1; i < TILE; ++i) strip[(lane - 1) * TILE + i] += sums[i - 1].total;
    }
    __syncthreads();
}

__device__ __forceinline__ void bins(const DistanceGradArgs& args, unsigned head, float* totals, float* rests) {
    const BiasArgs& bias = args.call.bias;
    unsigned split = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (split < args.call.splits) {
        long long at = static_cast<long long>(split) * args.distances;
        Bins<1> bins{totals + at, rests + at};
        bins.clear(args.distances);
        walk_rows(bias, head, split * args.call.rows, args.call.rows, [&](const Row& row) {
            const T::Bits* grad = static_cast<const T::Bits*>(args.call.grad) + row.offset(args.call.strides);
            // 64 bits: the last step may leave 32.
            for (long long step = row.first; step < row.keys; step += 32) {
                long long key = step + threadIdx.x % 32;
                float value[1] = {0.0f};
                int bin = -1;
                if (key < row.keys) {
                    int distance = row.distance(bias, static_cast<int>(key));
                    int last = args.first + static_cast<int>(args.distances) - 1;
                    // No difference leaves 32 bits.
                    bin = max(min(distance, last), args.first) - args.first;
                    value[0] = T::widen(grad[key]) * row.gate;
                    if (args.by_distance) value[0] *= static_cast<float>(abs(distance));
                }
                bins.add(bin, value);
            }
        });
    }
}

// The last of a head's blocks makes the outputs from what they left.
__device__ __forceinline__ void finish(const DistanceGradArgs& args, unsigned head, unsigned blocks,
                                       const Addends& from) {
    if (!last_of(static_cast<unsigned*>(args.call.counters) + head, blocks)) return;
    add_outputs(args, head, from, [&](unsigned output, float sum) {
        static_cast<float*>(args.call.out)[output * args.output_stride + head * args.head_stride] =
            sum * args.call.factor;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) KERNEL(distance_grad) {
    __shared__ float strip[THREADS * TILE];
    wait_for_predecessor();
    unsigned head = blockIdx.y, blocks = gridDim.x * gridDim.z;
    // The last thread's tiles are the next block's too, which has all numbers of their distances.
    unsigned count = (blockDim.x - 1) * TILE, index = blockIdx.x * count;
    long long from = args.first + static_cast<long long>(index);
    if (blockIdx.x == gridDim.x - 1) count += TILE;
    diagonals(args, head, from, strip);
    // Numbers and arrays of a head that are left.
    long long numbers = args.of_outputs ? args.outputs : args.distances;
    unsigned parts = args.of_outputs ? blocks : args.call.splits;
    float* sums = static_cast<float*>(args.call.sums) + head * parts * numbers;
    if (args.of_outputs) {
        float* own = sums + (blockIdx.z * gridDim.x + blockIdx.x) * numbers;
        add_outputs(args, head, {strip, false, from, count, 1, 0},
                    [&](unsigned output, float sum) { own[output] = sum; });
    } else {
        float* own = sums + blockIdx.z * numbers + index;
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) own[i] = strip[i];
    }
    finish(args, head, blocks,
           {sums, args.of_outputs != 0, args.first, static_cast<unsigned>(numbers), parts, numbers});
}

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(distance_grad_bins) {
    wait_for_predecessor();
    unsigned head = blockIdx.y;
    long long size = static_cast<long long>(args.call.splits) * args.distances;
    float* sums = static_cast<float*>(args.call.sums) + head * size;
    bins(args, head, sums, sums + args.call.bias.heads * size);
    finish(args, head, gridDim.x, {sums, false, args.first, args.distances, args.call.splits, args.distances});
}
