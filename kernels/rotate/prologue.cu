// Between a projection and attention: bias, norm and rotation of queries, keys and values, out to tensors and a cache.
//
//     z = x + bias,  n = z / sqrt(mean(z^2) + eps) * weight,  y = n rotated by the angles of the token * factor
//
// x, y       [batch, tokens, heads, dim] by strides in elements (64 bits), channels contiguous
// cache      [pages, rows of a page, heads, dim] by strides; a token's row comes from its slot
// at         token positions: position.cuh
// rates      [pairs] turns per position in units of 2^-64 (exact), or frequencies in f32 (compat)
//
// threads    x: lanes of a head, y: heads, z: tokens
// blocks     x: tokens, y: heads, z: sequences
//
// A group of lanes walks `per_thread` heads of one tensor. A token's angles are made once a block and read from shared
// memory by all. A thread asks for its part of the first head before the block makes an angle, and for its part of the
// next one before it works on this one.
//
// Squares are summed in one order, whatever the accesses, the lanes and the rotary part: units of 8 channels as
// `squares` adds them, then units as a tree, farthest apart first, as if their number were a power of two; heads of one
// norm in eight runs, then as `sum_pack` adds them.
//
// Bytes: every element is read once and written once to each place that is asked for (twice read, from a cache the
// second time, where one norm spans the heads). A rate is 8 bytes a pair, ids up to 8 bytes each, weights and biases
// once, from a cache after their first use.
#include "common/angle.cuh"
#include "common/exp.cuh"
#include "common/position.cuh"
#include "common/reduce.cuh"
#include "common/scalar.cuh"

constexpr unsigned UNIT = 8;
// Angles and tokens of a block, heads of one norm in all its tokens, and channels of a head in narrow accesses: at
// most.
constexpr unsigned ANGLES = 512;
constexpr unsigned TOKENS = 32;
constexpr unsigned SUMS = 512;
constexpr unsigned CHANNELS = 1024;
constexpr long long INT_MAX = 0x7fffffff;

// What the threads of a block share.
struct Space {
    alignas(16) float cos[ANGLES];
    alignas(16) float sin[ANGLES];
    // sums of squares of each head
    alignas(16) float sums[SUMS];
    float scale[TOKENS];
    // page and row in it; page -1: nowhere
    int2 row[TOKENS];
};

// ------------------------------------------------------------------------------------------------------------- codes

// The largest value of a code.
__device__ float most_of(StoreKind store) {
    return store == StoreKind::E4M3 ? 448.0f : store == StoreKind::E5M2 ? 57344.0f : 127.0f;
}

#if __CUDA_ARCH__ >= 890
// Two small floats, the first in the lower byte; nearest, ties to even, saturated.
__device__ unsigned small_floats(bool e4m3, float low, float high) {
    unsigned short codes;
    if (e4m3) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    }
    return codes;
}
#else
__device__ unsigned small_float(bool e4m3, float x) {
    unsigned bits = static_cast<unsigned>(__float_as_int(x)), size = bits & 0x7fffffffu;
    unsigned shift = e4m3 ? 20 : 21, bias = e4m3 ? 7 : 15;
    // Below the smallest normal number: the last place of a sum with this power of two is the step of codes.
    unsigned even = (128 - bias + shift) << 23;
    unsigned tiny = __float_as_int(fabsf(x) + __int_as_float(static_cast<int>(even))) - even;
    unsigned normal = (size + (1u << (shift - 1)) - 1 + (size >> shift & 1)) >> shift;
    normal = min(normal - ((127 - bias) << (23 - shift)), e4m3 ? 0x7eu : 0x7bu);
    unsigned code = size < (128 - bias) << 23 ? tiny : normal;
    return size > 0x7f800000u ? 0x7f : (bits >> 24 & 0x80) | code;
}
__device__ unsigned small_floats(bool e4m3, float low, float high) {
    return small_float(e4m3, low) | small_float(e4m3, high) << 8;
}
#endif

// Two codes, the first in the lower byte.
__device__ unsigned code_pair(StoreKind store, float low, float high) {
    if (store != StoreKind::INT8) return small_floats(store == StoreKind::E4M3, low, high);
    int a = max(min(__float2int_rn(low), 127), -127), b = max(min(__float2int_rn(high), 127), -127);
    return (a & 0xff) | (b & 0xff) << 8;
}

// What multiplies a head before it is coded. `most`: its largest magnitude, of a scale that is written.
__device__ float code_factor(const PrologueArgs& args, const BranchArgs& of, int2 row, unsigned head, void* tail,
                             float most) {
    float* scales = static_cast<float*>(of.scales);
    bool writes = of.scale == CodeScaleKind::TOKEN || of.scale == CodeScaleKind::INLINE;
    float scale;
    if (writes) {
        scale = most / most_of(of.store);
        // Below the normal range the inverse has no place: a row of zeros.
        if (scale < 0x1p-126f) scale = 0.0f;
        float* at = static_cast<float*>(tail);
        if (of.scale == CodeScaleKind::TOKEN) {
            at = scales + row.x * of.scale_strides[0] + row.y * of.scale_strides[1] + head * of.scale_strides[2];
        }
        if (threadIdx.x == 0) *at = scale;
    } else {
        scale = scales[of.scale == CodeScaleKind::HEAD ? head : 0];
    }
    float factor = 1.0f / scale;
    if (scale > 0.0f && factor > 0.0f && factor < infinity()) return factor;
    // Zeros have a scale of 0, a given one is refused.
    if (!writes && args.flag && threadIdx.x == 0) atomicOr(static_cast<unsigned*>(args.flag), 1u);
    return 0.0f;
}

// The factor of queries at a position.
__device__ float query_scale(const PrologueArgs& args, long long position) {
    if (args.scale == QueryScaleKind::ONE) return 1.0f;
    double at = static_cast<double>(max(position, 0ll));
    if (args.scale == QueryScaleKind::LOG) {
        return fmaxf(1.0f, log_normal(static_cast<float>(at + 1.0)) * args.scale_by);
    }
    if (args.scale == QueryScaleKind::ABOVE) {
        return fmaf(args.scale_by, log_normal(static_cast<float>(fmax(1.0, (at + 1.0) / args.floor))), 1.0f);
    }
    double steps = floor((at + args.scale_shift) / args.floor);
    return fmaf(args.scale_by, log_normal(static_cast<float>(steps + 1.0)), 1.0f);
}

// Where the cache has a token: page and row in it, page -1 for nowhere.
__device__ int2 cache_row(const PrologueArgs& args, unsigned batch, unsigned token) {
    long long row, page;
    if (args.place == CachePlace::SLOTS) {
        row = read_id(args.slots, args.slot_type, static_cast<long long>(batch) * args.tokens + token);
        if (row < 0) return make_int2(-1, 0);
        // Beyond every page where it is beyond the cache.
        page = row < INT_MAX ? divide(static_cast<unsigned>(row), args.by_page) : args.pages;
        row -= page * args.page_size;
    } else {
        Position position(args.rows, batch, token);
        row = position.value(args.rows);
        if (row < 0) return make_int2(-1, 0);
        page = args.rows.kind == PositionKind::PACKED ? position.index : batch;
        if (args.place == CachePlace::PAGES) {
            long long place = row < INT_MAX ? divide(static_cast<unsigned>(row), args.by_page) : args.table_width;
            row -= place * args.page_size;
            page = place < args.table_width ? read_id(args.slots, args.slot_type, page * args.table_width + place) : -1;
        }
    }
    if (page >= 0 && page < args.pages && row < args.page_size) return make_int2(page, row);
    if (args.flag) atomicOr(static_cast<unsigned*>(args.flag), 1u);
    return make_int2(-1, 0);
}

// Where the angle of a pair is kept for 16-byte accesses. In halves a lane of 16-byte accesses reads two quads side by
// side, 32 bytes from those of the next lane. In every other 32 pairs the quads change places, so that eight lanes read
// from all banks.
__device__ unsigned angle_place(const PrologueArgs& args, unsigned pair) {
    return args.interleaved ? pair : pair ^ (pair >> 3 & 4);
}

// Angles, factor and cache row of a block's tokens.
template <bool QUADS> __device__ void prepare(const PrologueArgs& args, Space& space, unsigned batch, unsigned token) {
    unsigned makers = blockDim.x * blockDim.y, maker = threadIdx.y * blockDim.x + threadIdx.x, row = threadIdx.z;
    bool last = maker == makers - 1;
    if (token >= args.tokens || (maker >= args.pairs && !last)) return;
    Position position(args.at, batch, token);
    unsigned long long at = position.on(args.at, 0);
#pragma unroll 1
    for (unsigned pair = maker; pair < args.pairs; pair += makers) {
        if (args.axes) at = position.on(args.at, static_cast<const unsigned char*>(args.axes)[pair]);
        float sin, cos;
        if (args.compat) {
            float rate = static_cast<const float*>(args.rates)[pair];
            sincos_radians(static_cast<float>(static_cast<long long>(at)) * rate, sin, cos);
        } else {
            sincos_phase(at * static_cast<const unsigned long long*>(args.rates)[pair], sin, cos);
        }
        unsigned place = row * args.pairs + (QUADS ? angle_place(args, pair) : pair);
        space.cos[place] = cos * args.factor;
        space.sin[place] = sin * args.factor;
    }
    if (last) {
        space.scale[row] = query_scale(args, position.on(args.at, 0));
        if (args.page_size) space.row[row] = cache_row(args, batch, token);
    }
}

// The heads of one token that a group of lanes walks, in one of the three tensors.
struct Walk {
    unsigned which, head, count;

    __device__ Walk(const PrologueArgs& args, bool inside) {
        unsigned walk = blockIdx.y * blockDim.y + threadIdx.y;
        which = 0;
        if (walk >= args.of[0].walks) {
            walk -= args.of[0].walks;
            which = 1;
            if (walk >= args.of[1].walks) {
                walk -= args.of[1].walks;
                which = 2;
            }
        }
        head = walk * args.per_thread;
        unsigned heads = args.of[which].heads;
        count = inside && head < heads ? min(args.per_thread, heads - head) : 0;
    }
};

// The first element of a head.
template <class Bits> __device__ Bits* head_at(Bits* base, const long long (&strides)[3], long long outer,
                                               long long row, unsigned head) {
    return base + outer * strides[0] + row * strides[1] + head * strides[2];
}

// Where the cache has the token of a walk: that of queries has a page for each sequence.
__device__ int2 cache_place(const BranchArgs& of, const Space& space, const Walk& walk, unsigned batch,
                            unsigned token) {
    if (!of.cache || !walk.count) return make_int2(-1, 0);
    return walk.which == 0 ? make_int2(batch, token) : space.row[threadIdx.z];
}

__device__ unsigned char* cache_at(const BranchArgs& of, int2 row, unsigned head) {
    unsigned width = of.store == StoreKind::SAME ? sizeof(T::Bits) : 1;
    return static_cast<unsigned char*>(of.cache) +
           (row.x * of.cache_strides[0] + row.y * of.cache_strides[1] + head * of.cache_strides[2]) * width;
}

// The place in `sums` of a head.
__device__ unsigned sum_place(const PrologueArgs& args, unsigned which, unsigned head) {
    unsigned before = (which > 0 ? args.of[0].heads : 0) + (which > 1 ? args.of[1].heads : 0);
    unsigned all = args.of[0].heads + args.of[1].heads + args.of[2].heads;
    return threadIdx.z * all + before + head;
}

// The sum over all heads of a token.
__device__ float all_heads(const PrologueArgs& args, const Space& space, unsigned which) {
    const float* sums = space.sums + sum_place(args, which, 0);
    float run[8] = {};
#pragma unroll 1
    for (unsigned head = 0; head < args.of[which].heads; head += 8) {
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) {
            if (head + i < args.of[which].heads) run[i] += sums[head + i];
        }
    }
    return sum_pack(run);
}

__device__ float inverse_root(const BranchArgs& of, float sum) { return 1.0f / sqrtf(sum * of.share + of.eps); }

// The sum of the squares of 8 channels.
__device__ float squares(const float (&x)[UNIT]) {
    float a = fmaf(x[4], x[4], x[0] * x[0]), b = fmaf(x[6], x[6], x[2] * x[2]);
    float c = fmaf(x[5], x[5], x[1] * x[1]), d = fmaf(x[7], x[7], x[3] * x[3]);
    return (a + b) + (c + d);
}

__device__ float rounded(float x) { return T::widen(T::narrow(x)); }

// --------------------------------------------------------------------------------------------------------------- wide

// 8 channels as they lie in memory.
struct Eight {
    Pack<WIDE> packs[UNIT / WIDE];

    __device__ void load(const T::Bits* at) {
#pragma unroll
        for (unsigned i = 0; i < UNIT / WIDE; ++i) packs[i] = Pack<WIDE>::load(at + i * WIDE);
    }
    __device__ void open(float (&x)[UNIT]) const {
#pragma unroll
        for (unsigned i = 0; i < UNIT / WIDE; ++i) {
            float part[WIDE];
            unpack(packs[i], part);
#pragma unroll
            for (unsigned j = 0; j < WIDE; ++j) x[i * WIDE + j] = part[j];
        }
    }
    static __device__ Eight of(const float (&x)[UNIT]) {
        Eight eight;
#pragma unroll
        for (unsigned i = 0; i < UNIT / WIDE; ++i) {
            float part[WIDE];
#pragma unroll
            for (unsigned j = 0; j < WIDE; ++j) part[j] = x[i * WIDE + j];
            eight.packs[i] = pack(part);
        }
        return eight;
    }
    __device__ void store(T::Bits* at) const {
#pragma unroll
        for (unsigned i = 0; i < UNIT / WIDE; ++i) packs[i].store(at + i * WIDE);
    }
};

// The two units of a lane, by their first channels. Of rotated pairs, one unit has the first sides and one the second
// ones; interleaved pairs lie in one unit each, half of the rotary part apart.
struct Lane {
    unsigned a, b;
    bool has_a, has_b, turned;

    __device__ Lane(const PrologueArgs& args, const BranchArgs& of) {
        unsigned lane = threadIdx.x, rotated = of.turned ? args.pairs / UNIT : 0;
        turned = lane < rotated;
        if (turned) {
            unsigned first = lane * UNIT;
            a = of.offset + first;
            b = a + args.pairs;
            if (!args.interleaved) {
                // Blocks before this one, of which each has as many second sides.
                a += divide(first, args.by_block) * args.block;
                b = a + args.block;
            }
            has_a = has_b = true;
        } else {
            unsigned unit = lane - rotated, rest = of.dim / UNIT - 2 * rotated;
            unsigned before = rotated ? of.offset / UNIT : rest;
            a = (unit < before ? unit : unit + 2 * rotated) * UNIT;
            has_a = unit < min(rest, of.rest_apart);
            unit += of.rest_apart;
            b = (unit < before ? unit : unit + 2 * rotated) * UNIT;
            has_b = has_a && unit < rest;
        }
    }

    // The inverse: the lane of a unit, and 32 if it is its second one.
    static __device__ unsigned owner(const PrologueArgs& args, const BranchArgs& of, unsigned unit) {
        unsigned rotated = of.turned ? args.pairs / UNIT : 0, place = unit - of.offset / UNIT;
        if (of.turned && unit >= of.offset / UNIT && place < 2 * rotated) {
            unsigned size = args.interleaved ? rotated : args.block / UNIT;
            unsigned before = args.interleaved ? 0 : divide(place * (UNIT / 2), args.by_block) * size;
            place -= 2 * before;
            return place < size ? before + place : (before + place - size) | 32;
        }
        if (of.turned && unit >= of.offset / UNIT) unit -= 2 * rotated;
        return unit < of.rest_apart ? rotated + unit : (rotated + unit - of.rest_apart) | 32;
    }
};

// Sums over the lanes of a head, all of which come here together.
struct Lanes {
    unsigned mask;
    // where the sums of a lane's units in the order of channels are; 64: there is no such unit
    unsigned first = 0, second = 0;

    __device__ Lanes(const PrologueArgs& args, const BranchArgs& of) {
        unsigned own = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z) & 31u & -blockDim.x;
        mask = (blockDim.x == 32 ? ALL_LANES : (1u << blockDim.x) - 1) << own;
        if (of.natural || of.norm == HeadNormKind::NONE) return;
        unsigned units = of.dim / UNIT, unit = threadIdx.x;
        first = unit < of.tree ? Lane::owner(args, of, unit) : 64;
        unit += of.tree;
        second = unit < units && first != 64 ? Lane::owner(args, of, unit) : 64;
        if (threadIdx.x >= units) first = 64;
    }

    __device__ float take(float a, float b, unsigned from) const {
        float of_a = __shfl_sync(mask, a, from & 31, blockDim.x), of_b = __shfl_sync(mask, b, from & 31, blockDim.x);
        return from & 64 ? 0.0f : from & 32 ? of_b : of_a;
    }

    // The largest magnitude; NaN counts for nothing.
    __device__ float max(const float (&a)[UNIT], const float (&b)[UNIT]) const {
        float most = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < UNIT; ++i) most = fmaxf(most, fmaxf(fabsf(a[i]), fabsf(b[i])));
#pragma unroll 1
        for (unsigned apart = blockDim.x / 2; apart; apart /= 2) {
            most = fmaxf(most, __shfl_xor_sync(mask, most, apart));
        }
        return most;
    }

    __device__ float sum(const BranchArgs& of, const float (&a)[UNIT], const float (&b)[UNIT]) const {
        float of_a = squares(a), of_b = squares(b);
        float sum = of.natural ? of_a + of_b : take(of_a, of_b, first) + take(of_a, of_b, second);
#pragma unroll 1
        for (unsigned apart = blockDim.x / 2; apart; apart /= 2) sum += __shfl_xor_sync(mask, sum, apart);
        return sum;
    }
};

__device__ void round_all(float (&x)[UNIT]) { Eight::of(x).open(x); }

// Adds the bias of a lane's channels.
__device__ void add_bias(const BranchArgs& of, const Lane& lane, unsigned head, float (&a)[UNIT], float (&b)[UNIT]) {
    const T::Bits* bias = static_cast<const T::Bits*>(of.bias) + head * of.dim;
    Eight a_raw = {}, b_raw = {};
    if (lane.has_a) a_raw.load(bias + lane.a);
    if (lane.has_b) b_raw.load(bias + lane.b);
    float a_bias[UNIT], b_bias[UNIT];
    a_raw.open(a_bias);
    b_raw.open(b_bias);
#pragma unroll
    for (unsigned i = 0; i < UNIT; ++i) {
        a[i] += a_bias[i];
        b[i] += b_bias[i];
    }
    if (of.rounding != StepRounding::ONCE) {
        round_all(a);
        round_all(b);
    }
}

__device__ void norm_side(const BranchArgs& of, const Eight& weight, float inverse, float (&x)[UNIT]) {
#pragma unroll
    for (unsigned i = 0; i < UNIT; ++i) x[i] *= inverse;
    if (of.weight) {
        if (of.rounding == StepRounding::BEFORE_WEIGHT) round_all(x);
        float w[UNIT];
        weight.open(w);
#pragma unroll
        for (unsigned i = 0; i < UNIT; ++i) x[i] *= of.one_plus ? 1.0f + w[i] : w[i];
    }
    if (of.rounding != StepRounding::ONCE) round_all(x);
}

// N values at a multiple of four.
__device__ void read_four(const float* from, float* to) {
    float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// 8 codes.
__device__ void store_codes(StoreKind store, float factor, const float (&x)[UNIT], unsigned char* at) {
    unsigned pairs[UNIT / 2];
#pragma unroll
    for (unsigned i = 0; i < UNIT / 2; ++i) pairs[i] = code_pair(store, x[2 * i] * factor, x[2 * i + 1] * factor);
    *reinterpret_cast<uint2*>(at) = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// Rotates the pairs of a lane.
__device__ void turn(const PrologueArgs& args, const BranchArgs& of, const Space& space, float (&a)[UNIT],
                     float (&b)[UNIT]) {
    float sin[UNIT / 2], cos[UNIT / 2];
    unsigned at = threadIdx.z * args.pairs;
    at += angle_place(args, threadIdx.x * (args.interleaved ? UNIT / 2 : UNIT));
    read_four(space.cos + at, cos);
    read_four(space.sin + at, sin);
    if (args.interleaved) {
#pragma unroll
        for (unsigned i = 0; i < UNIT / 2; ++i)
            turn_pair(a[2 * i], a[2 * i + 1], sin[i], cos[i], a[2 * i], a[2 * i + 1]);
        at += args.pairs / 2;
    } else {
#pragma unroll
        for (unsigned i = 0; i < UNIT / 2; ++i) turn_pair(a[i], b[i], sin[i], cos[i], a[i], b[i]);
        at ^= 4;
    }
    read_four(space.cos + at, cos);
    read_four(space.sin + at, sin);
    if (args.interleaved) {
#pragma unroll
        for (unsigned i = 0; i < UNIT / 2; ++i)
            turn_pair(b[2 * i], b[2 * i + 1], sin[i], cos[i], b[2 * i], b[2 * i + 1]);
    } else {
#pragma unroll
        for (unsigned i = UNIT / 2; i < UNIT; ++i)
            turn_pair(a[i], b[i], sin[i - UNIT / 2], cos[i - UNIT / 2], a[i], b[i]);
    }
    if (of.rounding != StepRounding::ONCE) {
        round_all(a);
        round_all(b);
    }
}

extern "C" __global__ void __launch_bounds__(256, WIDE == 4 ? 2 : 3) KERNEL(prologue_wide) {
    __shared__ Space space;
    unsigned token = blockIdx.x * blockDim.z + threadIdx.z;
    bool inside = token < args.tokens;
    Walk walk(args, inside);
    const BranchArgs& of = args.of[walk.which];
    Lane lane(args, of);
    Lanes lanes(args, of);
    bool sums_heads = args.of[0].all_heads | args.of[1].all_heads | args.of[2].all_heads;
    wait_for_predecessor();
    for (unsigned batch = blockIdx.z; batch < args.batch; batch += gridDim.z) {
        const T::Bits* x = head_at(static_cast<const T::Bits*>(of.x), of.x_strides, batch, token, walk.head);
        Eight a_raw = {}, b_raw = {};
        auto load = [&] {
            if (lane.has_a) a_raw.load(x + lane.a);
            if (lane.has_b) b_raw.load(x + lane.b);
        };
        if (walk.count) load();
        // The batch before has read the angles.
        if (batch != blockIdx.z) __syncthreads();
        prepare<true>(args, space, batch, token);
        __syncthreads();

        T::Bits* y = head_at(static_cast<T::Bits*>(of.y), of.y_strides, batch, token, walk.head);
        int2 row = cache_place(of, space, walk, batch, token);
        unsigned char* cache = cache_at(of, row, walk.head);
        float inverse = 0.0f;
        // Where a norm spans the heads, their sums come first.
#pragma unroll 1
        for (int writes = !sums_heads; writes < 2; ++writes) {
            if (writes && sums_heads) {
                __syncthreads();
                if (of.all_heads && walk.count) {
                    inverse = inverse_root(of, all_heads(args, space, walk.which));
                    x -= (walk.count - 1) * of.x_strides[2];
                    load();
                }
            }
#pragma unroll 1
            for (unsigned i = 0; i < walk.count && (writes || of.all_heads); ++i) {
                float a[UNIT], b[UNIT];
                a_raw.open(a);
                b_raw.open(b);
                Eight a_weight = {}, b_weight = {};
                if (of.weight) {
                    const T::Bits* weight = static_cast<const T::Bits*>(of.weight);
                    if (of.all_heads) weight += (walk.head + i) * of.dim;
                    if (lane.has_a) a_weight.load(weight + lane.a);
                    if (lane.has_b) b_weight.load(weight + lane.b);
                }
                if (i + 1 < walk.count) {
                    x += of.x_strides[2];
                    load();
                }
                if (of.bias) add_bias(of, lane, walk.head + i, a, b);
#pragma unroll 1
                for (unsigned turns = args.rope_first, step = 0; step < 2; ++step, turns ^= 1) {
                    if (turns) {
                        if (lane.turned) turn(args, of, space, a, b);
                        continue;
                    }
                    if (of.norm == HeadNormKind::NONE) continue;
                    if (!writes || !of.all_heads) {
                        float sum = lanes.sum(of, a, b);
                        if (writes) {
                            inverse = inverse_root(of, sum);
                        } else {
                            if (threadIdx.x == 0) space.sums[sum_place(args, walk.which, walk.head + i)] = sum;
                            break;
                        }
                    }
                    norm_side(of, a_weight, inverse, a);
                    norm_side(of, b_weight, inverse, b);
                }
                if (!writes) continue;
                if (of.scaled) {
                    float scale = space.scale[threadIdx.z];
#pragma unroll
                    for (unsigned j = 0; j < UNIT; ++j) {
                        a[j] *= scale;
                        b[j] *= scale;
                    }
                }
                if (row.x >= 0 && of.store != StoreKind::SAME) {
                    if (of.rounding != StepRounding::ONCE) {
                        round_all(a);
                        round_all(b);
                    }
                    float most = of.scale < CodeScaleKind::TOKEN ? 0.0f : lanes.max(a, b);
                    float factor = code_factor(args, of, row, walk.head + i, cache + of.dim, most);
                    if (lane.has_a) store_codes(of.store, factor, a, cache + lane.a);
                    if (lane.has_b) store_codes(of.store, factor, b, cache + lane.b);
                    cache += of.cache_strides[2];
                }
                Eight a_out = Eight::of(a), b_out = Eight::of(b);
                if (of.y) {
                    if (lane.has_a) a_out.store(y + lane.a);
                    if (lane.has_b) b_out.store(y + lane.b);
                    y += of.y_strides[2];
                }
                if (row.x >= 0 && of.store == StoreKind::SAME) {
                    T::Bits* to = reinterpret_cast<T::Bits*>(cache);
                    if (lane.has_a) a_out.store(to + lane.a);
                    if (lane.has_b) b_out.store(to + lane.b);
                    cache += of.cache_strides[2] * sizeof(T::Bits);
                }
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- narrow

// One head in shared memory, 32 lanes.
struct Head {
    const PrologueArgs& args;
    const BranchArgs& of;
    const Space& space;
    float *x, *other;

    __device__ void load(const T::Bits* from, unsigned head) const {
        // The head before has been read.
        __syncwarp();
#pragma unroll 1
        for (unsigned c = threadIdx.x; c < of.dim; c += 32) {
            float value = T::widen(from[c]);
            if (of.bias) {
                value += T::widen(static_cast<const T::Bits*>(of.bias)[head * of.dim + c]);
                if (of.rounding != StepRounding::ONCE) value = rounded(value);
            }
            x[c] = value;
        }
        __syncwarp();
    }

    // A channel after its rotation.
    __device__ float turned(unsigned channel) const {
        unsigned place = channel - of.offset;
        if (channel < of.offset || place >= 2 * args.pairs) return x[channel];
        unsigned pair = place / 2;
        bool second = place & 1;
        if (!args.interleaved_out) {
            unsigned before = divide(pair, args.by_block) * args.block;
            pair = place - 2 * before;
            second = pair >= args.block;
            pair += before - (second ? args.block : 0);
        }
        unsigned a = of.offset + 2 * pair, b = a + 1;
        if (!args.interleaved) {
            a = of.offset + pair + divide(pair, args.by_block) * args.block;
            b = a + args.block;
        }
        unsigned angle = threadIdx.z * args.pairs + pair;
        float cos = space.cos[angle], sin = space.sin[angle];
        float y = second ? fmaf(x[a], sin, x[b] * cos) : fmaf(x[a], cos, -(x[b] * sin));
        return of.rounding != StepRounding::ONCE ? rounded(y) : y;
    }

    // Rotates all pairs, which may move.
    __device__ void turn() {
#pragma unroll 1
        for (unsigned c = threadIdx.x; c < of.dim; c += 32) other[c] = turned(c);
        float* next = other;
        other = x, x = next;
        __syncwarp();
    }

    __device__ float weighed(float value, float inverse, unsigned head, unsigned channel) const {
        value *= inverse;
        if (of.weight) {
            if (of.rounding == StepRounding::BEFORE_WEIGHT) value = rounded(value);
            unsigned at = of.all_heads ? head * of.dim + channel : channel;
            float w = T::widen(static_cast<const T::Bits*>(of.weight)[at]);
            value *= of.one_plus ? 1.0f + w : w;
        }
        return of.rounding != StepRounding::ONCE ? rounded(value) : value;
    }

    __device__ void norm(float inverse, unsigned head) const {
        // All have summed.
        __syncwarp();
#pragma unroll 1
        for (unsigned c = threadIdx.x; c < of.dim; c += 32) x[c] = weighed(x[c], inverse, head, c);
        __syncwarp();
    }

    __device__ float sum() const {
        // Of the units lane, lane + 32, lane + 64, lane + 96: the ones 64 apart first.
        float runs[2] = {};
#pragma unroll 1
        for (unsigned i = 0; i < 4; ++i) {
            unsigned channel = (threadIdx.x + 32 * i) * UNIT;
            float unit[UNIT];
#pragma unroll
            for (unsigned j = 0; j < UNIT; ++j) unit[j] = channel + j < of.dim ? x[channel + j] : 0.0f;
            float square = squares(unit);
            runs[0] += i & 1 ? 0.0f : square;
            runs[1] += i & 1 ? square : 0.0f;
        }
        return warp_sum(runs[0] + runs[1]);
    }
};

extern "C" __global__ void __launch_bounds__(128, 4) KERNEL(prologue_one) {
    __shared__ Space space;
    __shared__ float heads[4][2][CHANNELS];
    unsigned token = blockIdx.x * blockDim.z + threadIdx.z;
    bool inside = token < args.tokens;
    Walk walk(args, inside);
    const BranchArgs& of = args.of[walk.which];
    float (&own)[2][CHANNELS] = heads[threadIdx.z * blockDim.y + threadIdx.y];
    Head head = {args, of, space, own[0], own[1]};
    bool sums_heads = args.of[0].all_heads | args.of[1].all_heads | args.of[2].all_heads;
    wait_for_predecessor();
    for (unsigned batch = blockIdx.z; batch < args.batch; batch += gridDim.z) {
        if (batch != blockIdx.z) __syncthreads();
        prepare<false>(args, space, batch, token);
        __syncthreads();
        float inverse = 0.0f;
#pragma unroll 1
        for (int writes = !sums_heads; writes < 2; ++writes) {
            if (writes && sums_heads) {
                __syncthreads();
                if (of.all_heads && walk.count) inverse = inverse_root(of, all_heads(args, space, walk.which));
            }
#pragma unroll 1
            for (unsigned i = 0; i < walk.count && (writes || of.all_heads); ++i) {
                unsigned at = walk.head + i;
                head.load(head_at(static_cast<const T::Bits*>(of.x), of.x_strides, batch, token, at), at);
#pragma unroll 1
                for (unsigned turns = args.rope_first, step = 0; step < 2; ++step, turns ^= 1) {
                    if (turns) {
                        if (of.turned) head.turn();
                        continue;
                    }
                    if (of.norm == HeadNormKind::NONE) continue;
                    if (!writes || !of.all_heads) {
                        float sum = head.sum();
                        if (writes) {
                            inverse = inverse_root(of, sum);
                        } else {
                            if (threadIdx.x == 0) space.sums[sum_place(args, walk.which, at)] = sum;
                            break;
                        }
                    }
                    head.norm(inverse, at);
                }
                if (!writes) continue;
                T::Bits* y = head_at(static_cast<T::Bits*>(of.y), of.y_strides, batch, token, at);
                int2 row = cache_place(of, space, walk, batch, token);
                unsigned char* cache = cache_at(of, row, at);
                bool codes = row.x >= 0 && of.store != StoreKind::SAME;
                float scale = space.scale[threadIdx.z], most = 0.0f;
#pragma unroll 1
                for (unsigned c = threadIdx.x; c < of.dim; c += 32) {
                    float value = of.scaled ? head.x[c] * scale : head.x[c];
                    T::Bits bits = static_cast<T::Bits>(T::narrow(value));
                    if (of.y) y[c] = bits;
                    if (row.x >= 0 && !codes) reinterpret_cast<T::Bits*>(cache)[c] = bits;
                    if (codes) head.x[c] = value = of.rounding != StepRounding::ONCE ? T::widen(bits) : value;
                    most = fmaxf(most, fabsf(value));
                }
                if (!codes) continue;
#pragma unroll 1
                for (unsigned apart = 16; apart; apart /= 2)
                    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, apart));
                float factor = code_factor(args, of, row, at, cache + of.dim, most);
#pragma unroll 1
                for (unsigned c = threadIdx.x; c < of.dim; c += 32) {
                    cache[c] = static_cast<unsigned char>(code_pair(of.store, head.x[c] * factor, 0.0f));
                }
            }
        }
    }
}
