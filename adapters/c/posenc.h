/* posenc: positional encodings of transformers as CUDA kernels. Written by adapters/c/tests/header.rs; do not edit.

   One pattern for each operation: a Posenc...Spec says what to compute, posenc_..._new makes a plan of it for one element
   type (POSENC_F32, POSENC_F16, POSENC_BF16), posenc_..._free frees that, and each verb takes the plan and a Posenc...Call.
   The crate's documentation states formulas and accuracy; names are the same.

   - Functions return a status, 0 for success. posenc_last_error is the sentence to the thread's last other one.
   - A spec and a call begin with `version` and `size`: POSENC_INIT(PosencRopeCall) fills both in, and 0 everywhere else.
     Other versions are refused. Later headers add fields at the end alone: of a shorter struct, as a program was compiled
     with, what is missing is 0; of a longer one, what this library does not know must be 0.
     A `scale` or `factor` of 0 is refused, where it was forgotten: 1 changes nothing.
   - A buffer is an address and the elements there; a shape has an offset and strides in elements. Lengths are checked
     against shapes. The library cannot check the allocation: a wrong length is undefined behaviour.
   - posenc_gpu_new gives a device: its plans take device addresses. posenc_cpu_new gives the CPU, which needs no driver: its
     plans take the same calls with host addresses, allocate as they like and are done when a call returns. Tensors that one
     such call writes lie in memory of their own; queries and keys alone may lie between each other.
   - Everything is checked before anything is written. On a device a call launches into the stream and returns; it allocates nothing
     and waits for nothing, and can be captured in a graph.
   - Pointers to host memory are null or point to what their types say, for as long as the call; handles come from their
     constructors and were not freed; memory on the device stays until the kernel has run. Several threads may use one
     handle at once unless a function says otherwise. A plan may be freed while its calls run: its memory is freed behind
     them, and a graph keeps what it captured of the plan. Your buffers must outlive the graph.
   - No panic leaves the library.

   C99 and later, C++11 and later. */
#ifndef POSENC_H
#define POSENC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The driver's stream: CUstream of cuda.h, cudaStream_t of the runtime. NULL is the default stream. */
typedef struct CUstream_st *PosencStream;

/* 0 for success, else another of the statuses below. */
typedef int32_t PosencStatus;

/* The version of this header; posenc_version() is the library's. */
#define POSENC_VERSION_MAJOR 0
#define POSENC_VERSION_MINOR 1
#define POSENC_VERSION_PATCH 0
#define POSENC_VERSION (POSENC_VERSION_MAJOR * 10000 + POSENC_VERSION_MINOR * 100 + POSENC_VERSION_PATCH)

#define POSENC_ABI 1 /* The version of every struct of this header that begins with `version` and `size`. */

#define POSENC_F32 0 /* Element types of tensors and tables. */
#define POSENC_F16 1 /* IEEE half precision */
#define POSENC_BF16 2 /* bfloat16 */
#define POSENC_F64 3 /* double precision; of timesteps alone */

#define POSENC_HALF 0 /* Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral. */
#define POSENC_INTERLEAVED 1 /* Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek; the paper's sinusoid. */

/* A device and a stream on it, or the CPU. */
typedef struct PosencGpu PosencGpu;

/* Opens device `ordinal` through its primary context (PyTorch's and the runtime's), for launches into `stream`.

   `stream` belongs to that context and outlives the handle and every plan made with it. With `overlap` not 0,
   kernels may start before their predecessor in the stream has ended (programmatic dependent launch, compute
   capability 9.0 on); they wait for its memory themselves. */
PosencStatus posenc_gpu_new(uint32_t ordinal, PosencStream stream, uint32_t overlap, PosencGpu **out);

/* Gives the CPU, without a driver or a device. Plans that are made with it take the same specs and calls, whose
   addresses are then host addresses; a call has done its work when it returns. It computes in f64 and rounds once,
   in as many threads as the machine has. */
PosencStatus posenc_cpu_new(PosencGpu **out);

/* Frees it; null is allowed. */
PosencStatus posenc_gpu_free(PosencGpu *gpu);

#define POSENC_OK 0 /* Statuses: done. */
/* A pointer is null, a struct has an unknown version or another size, a constant is unknown. */
#define POSENC_ARGUMENT 1
#define POSENC_VALUE 2 /* A value, a length or a shape breaks a rule. */
#define POSENC_DEVICE 3 /* There is no driver, no device, or no kernel for it. */
#define POSENC_DRIVER 4 /* The driver refused a call. */
#define POSENC_INTERNAL 5 /* A bug of this library. */

/* The sentence to the last status of this thread that was not 0; empty if there was none. It stays until the
   thread's next call that fails. */
const char *posenc_last_error(void);

/* Major version times 10000, minor times 100, patch. */
uint32_t posenc_version(void);

#define POSENC_I32 0 /* Integer types of positions and ids: 32 bits. */
#define POSENC_I64 1 /* 64 bits */
#define POSENC_U32 2 /* 32 bits without sign */
#define POSENC_U16 3 /* 16 bits without sign; of given indices alone */
#define POSENC_U8 4 /* 8 bits without sign; of given indices alone */

#define POSENC_IDS 0 /* Position kinds: an id for each token, `[axes, batch, tokens]`. */
#define POSENC_STARTS 1 /* One start for each sequence, `[axes, batch]`. */
/* Sequences packed into a batch of one (varlen): `indptr` holds `sequences + 1` first tokens (`cu_seqlens`), `ids`
   (or none) their first positions. */
#define POSENC_PACKED 2
#define POSENC_COUNTED 3 /* Every sequence counts from 0; no ids are read. */

#define POSENC_PLACE_COUNTED 0 /* Place of queries or keys: element `i` is at position `start + i`. */
/* The last query is at the last key's position (bottom-right aligned); of queries alone. */
#define POSENC_PLACE_BOTTOM_RIGHT 1
#define POSENC_PLACE_IDS 2 /* A position for each, `[batch, n]`, 32 bits. */

/* Memory where the plan computes: on its device, or on the host for a plan of `posenc_cpu_new`. */
typedef struct PosencBuffer {
    uint64_t data; /* address; 0: there is none, or it is empty */
    uint64_t len; /* elements there */
} PosencBuffer;

/* Integers there. */
typedef struct PosencIds {
    uint64_t data; /* address; 0: there are none */
    uint64_t len; /* elements there */
    uint32_t element; /* `POSENC_I32`, `POSENC_I64` or `POSENC_U32`, unless the field says otherwise */
    uint32_t reserved; /* 0 */
} PosencIds;

/* Token positions of one call. */
typedef struct PosencPositions {
    uint32_t kind; /* `POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED` */
    uint32_t shared; /* 1: one row of ids, or one start, for every sequence */
    PosencIds ids; /* the ids, the starts, or the first positions of packed sequences */
    uint64_t axis_stride; /* elements from one axis to the next; 0: they follow one another */
    PosencBuffer indptr; /* `sequences + 1` 32-bit integers, of a packed batch */
    uint64_t sequences; /* sequences of a packed batch */
} PosencPositions;

/* The shape of embeddings `[batch, tokens, dim]`; the channels of a token are contiguous. */
typedef struct PosencTokens {
    uint64_t batch; /* sequences */
    uint64_t tokens; /* tokens of each */
    uint64_t dim; /* channels of each token */
    uint64_t offset; /* first element */
    uint64_t strides[2]; /* elements from one sequence and one token to the next */
} PosencTokens;

/* The shape of `[batch, tokens, heads, dim]`; the channels of a head are contiguous. */
typedef struct PosencHeads {
    uint64_t batch; /* sequences */
    uint64_t tokens; /* tokens of each */
    uint64_t heads; /* heads of each token */
    uint64_t dim; /* channels of each head */
    uint64_t offset; /* first element */
    uint64_t strides[3]; /* elements from one sequence, token and head to the next */
} PosencHeads;

/* The shape of logits `[batch, heads, queries, keys]`; the keys of a row are contiguous. */
typedef struct PosencLogits {
    uint64_t batch; /* sequences */
    uint64_t heads; /* heads of each */
    uint64_t queries; /* rows of each */
    uint64_t keys; /* logits of each */
    uint64_t offset; /* first element */
    uint64_t strides[3]; /* elements from one sequence, head and query to the next */
} PosencLogits;

/* The shape of numbers that a term of a bias reads, `[batch, heads, rows, entries]` in any order of memory. A size
   of 1 serves every sequence, head or row. */
typedef struct PosencNumbers {
    uint64_t batch; /* sequences, or 1 */
    uint64_t heads; /* heads, or 1 */
    uint64_t rows; /* queries or keys, or 1 */
    uint64_t entries; /* numbers of a row */
    uint64_t offset; /* first element */
    uint64_t strides[4]; /* elements from one sequence, head, row and entry to the next */
} PosencNumbers;

/* Positions of queries or keys, and how many of them each sequence has. */
typedef struct PosencPlace {
    uint32_t kind; /* `POSENC_PLACE_...` */
    uint32_t reserved; /* 0 */
    int64_t start; /* of `POSENC_PLACE_COUNTED` */
    PosencBuffer ids; /* of `POSENC_PLACE_IDS`: the positions, 32 bits */
    PosencBuffer lengths; /* the lengths of the sequences, `[batch]`, 32 bits; none: all */
} PosencPlace;

/* Positions of queries and keys. */
typedef struct PosencPlaces {
    PosencPlace queries; /* queries */
    PosencPlace keys; /* keys */
    uint64_t sequences; /* sequences packed into a batch of one, in place of lengths; 0: they are not packed */
    PosencBuffer packed_queries; /* their first queries and the end of the last, `[sequences + 1]`, 32 bits */
    PosencBuffer packed_keys; /* their first keys and the end of the last, `[sequences + 1]`, 32 bits */
} PosencPlaces;

#define POSENC_SAME 0 /* `pairing_out`: a pair is written where it was read. */
#define POSENC_OTHER 1 /* It is written where the other pairing has it; out of place alone. */

#define POSENC_EXACT 0 /* Angles: exact at every position. */
/* The product of an f32 frequency and an f32 position, as Hugging Face's models compute it. */
#define POSENC_HF_COMPAT 1
#define POSENC_GIVEN 2 /* The same of given frequencies, a model's `inv_freq`; base and scaling are then not used. */
/* A sum over axes, exact at every position, with frequencies for every head: `mixed`; base, scaling and axes are
   then not used. */
#define POSENC_MIXED 3

#define POSENC_SCALING_NONE 0 /* Scaling: none. */
#define POSENC_SCALING_LINEAR 1 /* `factor` */
#define POSENC_SCALING_NTK 2 /* NTK-aware, fixed: `factor` is alpha */
#define POSENC_SCALING_LLAMA3 3 /* `factor`, `low` and `high` (turns over the original context), `original_context` */
/* `factor`, `original_context`, `high` is beta_fast and `low` is beta_slow, `not_truncated`, `extrapolation`, `ramp` */
#define POSENC_SCALING_YARN 4
#define POSENC_SCALING_DIVISORS 5 /* `divisors`, one for each pair */
#define POSENC_SCALING_NTK_MIXED 6 /* `factor`, `exponent`: NTK in a mixed base */
#define POSENC_SCALING_NTK_DYNAMIC 7 /* `factor`, `original_context`, `length` */
#define POSENC_SCALING_NTK_STEPPED 8 /* `original_context`, `length`: Qwen's dynamic NTK by steps */
/* `divisors` within `original_context`, `long_divisors` beyond it, one for each pair; `length` */
#define POSENC_SCALING_LONGROPE 9
#define POSENC_SCALING_PROPORTIONAL 10 /* `factor`, and `rotated`: the pairs that turn */

#define POSENC_RAMP_PAIRS 0 /* Ramp of YaRN: linear in the pair's index, as in all implementations. */
#define POSENC_RAMP_TURNS 1 /* linear in the pair's turns over the original context, as in the paper */

#define POSENC_AXES_ONE 0 /* Axes: one position a token. */
#define POSENC_AXES_SECTIONS 1 /* Runs of `axis_sizes` pairs, one ladder of frequencies: M-RoPE of Qwen2-VL. */
#define POSENC_AXES_INTERLEAVED 2 /* Axes take turns: Qwen3-VL. */
#define POSENC_AXES_LADDERS 3 /* Runs of `axis_sizes` pairs, each with a ladder of its own: grids and volumes. */
/* `axis_sizes` of time, height and width; height and width alternate first: ERNIE 4.5-VL. */
#define POSENC_AXES_HEIGHT_WIDTH_FIRST 4
#define POSENC_AXES_TABLE 5 /* `axis_of_pair`: the axis of each pair */
#define POSENC_AXES_DEALT 6 /* `axis_count` runs of equal size, the one ladder dealt out to them: Pixtral. */
/* `axis_count` blocks of channels of equal size, each rotated as a rotary part of its own: Gemma 4's vision tower. */
#define POSENC_AXES_BLOCKS 7
#define POSENC_AXES_ALTERNATING 8 /* `axis_count` axes in turn, each with a ladder of its own: Kimi's vision tower. */

#define POSENC_XPOS_QUERY 0 /* `xpos`: the first tensor is queries. */
#define POSENC_XPOS_KEY 1 /* The first tensor is keys. */

#define POSENC_OUT_OF_RANGE_CLAMP 0 /* A position outside the table takes the nearest row. */
#define POSENC_OUT_OF_RANGE_NAN 1 /* It makes every rotated channel of the token NaN, and raises the flag. */

/* RoPE: what to compute. */
typedef struct PosencRopeSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRopeSpec)` */
    uint64_t rotary; /* rotated channels of a head, even; 0 with a base of 1: no rotation */
    uint64_t offset; /* first rotated channel; heads of `rotary` channels hold nothing else and are rotated whole */
    double base; /* theta */
    double attention_factor; /* multiplies cosine and sine; 1 unless a scaling says otherwise */
    uint32_t pairing; /* `POSENC_HALF` or `POSENC_INTERLEAVED` */
    uint32_t pairing_out; /* where a pair is written, `POSENC_SAME` or `POSENC_OTHER` */
    uint32_t angles; /* `POSENC_EXACT`, `POSENC_HF_COMPAT` or `POSENC_GIVEN` */
    uint32_t scaling; /* `POSENC_SCALING_...`, which says what it reads of the fields below */
    double factor; /* divides frequencies */
    double low; /* turns over the original context below which a frequency is divided */
    double high; /* turns over the original context above which a frequency is kept */
    double original_context; /* tokens of the first training; the context of dynamic and stepped NTK */
    double exponent; /* of mixed NTK */
    double extrapolation; /* of YaRN: how much of a kept frequency is kept, 1 but in llama.cpp */
    uint32_t not_truncated; /* of YaRN: 1: the ramp's ends are not rounded to whole pairs, as in GPT-OSS */
    uint32_t ramp; /* of YaRN: `POSENC_RAMP_...` */
    /* tokens of the sequence, the new ones included; 0: not known, which a scaling that needs it refuses */
    uint64_t length;
    uint64_t rotated; /* of the proportional scaling: pairs that turn */
    const double *divisors; /* divisors of the frequencies, in host memory */
    const double *long_divisors; /* of LongRoPE: those beyond the original context, in host memory */
    uint64_t divisor_count; /* how many divisors each list holds */
    const float *frequencies; /* of `POSENC_GIVEN`: one f32 for each pair, in host memory */
    const uint8_t *axis_of_pair; /* of `POSENC_AXES_TABLE`: the axis of each pair, in host memory */
    uint32_t axes; /* `POSENC_AXES_...` */
    /* sizes of axes, at most 4; axes of `POSENC_AXES_DEALT`, `POSENC_AXES_BLOCKS` and `POSENC_AXES_ALTERNATING` */
    uint32_t axis_count;
    uint32_t axis_sizes[4]; /* pairs of each axis */
    uint32_t fraction_bits[4]; /* positions on each axis are whole numbers of units of `2^-bits`; all 0: of ones */
    /* of `POSENC_MIXED`: `[mixed_axes, mixed_heads, rotary / 2]` radians per position, in host memory */
    const double *mixed;
    uint32_t mixed_axes; /* of `POSENC_MIXED`: axes of a position */
    uint32_t mixed_heads; /* of `POSENC_MIXED`: sets of frequencies, which heads share equally */
} PosencRopeSpec;

/* xPos: rotated queries shrink with their position, keys grow. */
typedef struct PosencXPosSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencXPosSpec)` */
    PosencRopeSpec rope; /* the rotation */
    double gamma; /* the offset of zeta: 0.4 in the paper */
    double scale_base; /* positions over which a pair shrinks by its zeta: 512 in the paper */
    int64_t center; /* the position where nothing shrinks */
} PosencXPosSpec;

/* Queries or keys, and where their rotation goes. */
typedef struct PosencOperand {
    PosencBuffer x; /* read; no `data`: there are none */
    PosencHeads heads; /* the shape of `x` */
    PosencBuffer out; /* written; no `data`: `x` is rotated in place */
    PosencHeads out_heads; /* the shape of `out` */
} PosencOperand;

/* Cosines and sines of the caller, by position: row `p` holds one cosine, and one sine, for each pair. */
typedef struct PosencTable {
    PosencBuffer cos; /* the cosines; no `data`: there is no table, angles come from the spec */
    PosencBuffer sin; /* the sines; no `data`: they follow the cosines in each row */
    uint64_t rows; /* positions that have a row */
    uint64_t stride; /* elements from one row to the next */
    uint32_t element; /* `POSENC_F32`, or the tensors' type */
    uint32_t out_of_range; /* policy for positions outside the table: `POSENC_OUT_OF_RANGE_...` */
    PosencBuffer flag; /* of `POSENC_OUT_OF_RANGE_NAN`: a 32-bit word that becomes 1; or no `data` */
} PosencTable;

/* One rotation. */
typedef struct PosencRopeCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRopeCall)` */
    /* 1: the keys lie in the buffer of `q.x`, which is rotated in place (packed QKV); `k.heads` alone is read of `k` */
    uint32_t packed;
    uint32_t inverse; /* 0 forward, 1 back: the inverse, and the gradient */
    uint32_t xpos; /* which side of the score the first tensor is on, of xPos alone: `POSENC_XPOS_...` */
    uint32_t reserved; /* 0 */
    PosencOperand q; /* queries; keys alone of `POSENC_XPOS_KEY` */
    PosencOperand k; /* keys, in place or copied whatever the queries are */
    PosencPositions positions; /* token positions */
    PosencTable table; /* cosines and sines in place of the spec's angles */
} PosencRopeCall;

/* RoPE or xPos on a device, for one element type. */
typedef struct PosencRope PosencRope;

/* Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`,
   `POSENC_BF16`). */
PosencStatus posenc_rope_new(const PosencGpu *gpu, const PosencRopeSpec *spec, uint32_t element, PosencRope **out);

/* Makes a plan of xPos. */
PosencStatus posenc_rope_xpos_new(
    const PosencGpu *gpu,
    const PosencXPosSpec *spec,
    uint32_t element,
    PosencRope **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_rope_on(const PosencRope *rope, const PosencGpu *gpu, PosencRope **out);

/* Frees it; null is allowed. */
PosencStatus posenc_rope_free(PosencRope *rope);

/* Rotates queries, and keys if there are any, in one kernel. */
PosencStatus posenc_rope_rotate(const PosencRope *rope, const PosencRopeCall *call);

/* Learned frequencies of a plan. */
typedef struct PosencSetFrequenciesCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSetFrequenciesCall)` */
    /* f32 `[mixed_axes, mixed_heads, rotary / 2]`, radians per position, below 2^40 in magnitude */
    PosencBuffer frequencies;
    PosencBuffer flag; /* a 32-bit word that becomes 1 if one is not; or no `data` */
} PosencSetFrequenciesCall;

/* Makes the angles of a plan of `POSENC_MIXED` of learned frequencies, in one kernel. No other call uses `rope` at
   the same time. */
PosencStatus posenc_rope_set_frequencies(PosencRope *rope, const PosencSetFrequenciesCall *call);

/* A tensor with its gradient, both before the rotation or both after it. */
typedef struct PosencTensorGrad {
    PosencBuffer x; /* elements; no `data`: there is no such tensor */
    PosencHeads heads; /* the shape of `x` */
    PosencBuffer grad; /* their gradient */
    PosencHeads grad_heads; /* its shape, of the same sizes */
} PosencTensorGrad;

/* One call for the gradient of frequencies. */
typedef struct PosencFrequencyGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencFrequencyGradCall)` */
    PosencTensorGrad q; /* queries */
    PosencTensorGrad k; /* keys with the same frequencies, or none */
    PosencPositions positions; /* those of the rotation */
    PosencBuffer out; /* f32 `[axes, sets, rotary / 2]`, written */
} PosencFrequencyGradCall;

/* One call for the gradient of positions. */
typedef struct PosencPositionGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencPositionGradCall)` */
    PosencTensorGrad q; /* queries */
    PosencTensorGrad k; /* keys with the same frequencies, or none */
    PosencBuffer frequencies; /* f32 `[axes, sets, rotary / 2]`, learned ones; no `data`: those of the spec */
    PosencBuffer out; /* f32 `[axes, batch, tokens]`, written: per whole position */
} PosencPositionGradCall;

/* Gradients of RoPE's angles, for tensors of one element type. */
typedef struct PosencRopeGrad PosencRopeGrad;

/* Makes a plan: uploads the frequencies and loads the kernels for `element`. */
PosencStatus posenc_rope_grad_new(
    const PosencGpu *gpu,
    const PosencRopeSpec *spec,
    uint32_t element,
    PosencRopeGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_rope_grad_on(const PosencRopeGrad *rope, const PosencGpu *gpu, PosencRopeGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_rope_grad_free(PosencRopeGrad *rope);

/* Writes the gradient of frequencies: the sum over tokens and the heads of a set of `position * (a db - b da)`. */
PosencStatus posenc_rope_grad_frequencies(const PosencRopeGrad *rope, const PosencFrequencyGradCall *call);

/* Writes the gradient of positions: the sum over heads and pairs of `frequency * (a db - b da)`. */
PosencStatus posenc_rope_grad_positions(const PosencRopeGrad *rope, const PosencPositionGradCall *call);

/* Real positions in units. */
typedef struct PosencFixedCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencFixedCall)` */
    PosencBuffer positions; /* real numbers */
    uint32_t element; /* `POSENC_F32` or `POSENC_F64` */
    uint32_t bits; /* fraction bits, at most 62 */
    PosencBuffer out; /* 64-bit integers, as many, written: units of `2^-bits`, rounded to the nearest, ties to even */
    /* a 32-bit word that becomes 1 if a position is not finite or does not fit, whose units are 0; or no `data`. The
       CPU refuses such a position in place of it */
    PosencBuffer flag;
} PosencFixedCall;

/* What makes units of real positions. */
typedef struct PosencFixed PosencFixed;

/* Loads the kernel. */
PosencStatus posenc_fixed_new(const PosencGpu *gpu, PosencFixed **out);

/* Makes the same for another stream. */
PosencStatus posenc_fixed_on(const PosencFixed *fixed, const PosencGpu *gpu, PosencFixed **out);

/* Frees it; null is allowed. */
PosencStatus posenc_fixed_free(PosencFixed *fixed);

/* Writes real positions in units, in one kernel. */
PosencStatus posenc_fixed_write(const PosencFixed *fixed, const PosencFixedCall *call);

#define POSENC_ODD_REFUSE 0 /* Of an odd number of channels, the last one: is refused. */
#define POSENC_ODD_ZERO 1 /* holds 0 */
#define POSENC_ODD_LONGER 2 /* holds the first wave of one more pair */

#define POSENC_FREQUENCIES_EXACT 0 /* Frequencies: as the formula says. */
#define POSENC_FREQUENCIES_F32 1 /* rounded to f32 */
#define POSENC_FREQUENCIES_F16 2 /* rounded to f32, then to f16 */
#define POSENC_FREQUENCIES_BF16 3 /* rounded to f32, then to bf16 */

#define POSENC_ALONG_FRAMES 0 /* Directions of a grid: time, of videos. */
#define POSENC_ALONG_ROWS 1 /* downwards: y */
#define POSENC_ALONG_COLUMNS 2 /* to the right: x */

#define POSENC_BY_AXIS 0 /* Channels of several axes: the first axis whole, then the second. */
#define POSENC_BY_WAVE 1 /* The first wave of every axis, then the second. */

#define POSENC_BILINEAR 0 /* Filters: the two nearest on each axis. */
#define POSENC_BICUBIC 1 /* The four nearest on each axis, by Keys' cubic. */

#define POSENC_WEIGHTING_EXACT 0 /* Weights of a filter: the law's. */
#define POSENC_WEIGHTING_TORCH_F32 1 /* as PyTorch's CPU and CUDA kernels round them */

#define POSENC_ROWS_OFFSET 0 /* Rows of the position table: `position + first`. */
/* Tokens whose id is not `padding` are counted from row `first` on; padding reads row `padded`. */
#define POSENC_ROWS_KEPT_BY_ID 1
#define POSENC_ROWS_KEPT_BY_MASK 2 /* The same, by the mask. */

#define POSENC_NORM_NONE 0 /* Norms of the sum: none. */
#define POSENC_NORM_LAYER 1 /* layer norm: gain and bias */
#define POSENC_NORM_RMS 2 /* root mean square: gain */

/* Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 -
   shift))`.

   Of positions, of timesteps, and of the axes of a grid. */
typedef struct PosencSinusoidSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSinusoidSpec)` */
    uint64_t dim; /* channels */
    uint32_t pairing; /* `POSENC_INTERLEAVED` (the paper) or `POSENC_HALF` */
    uint32_t cosine_first; /* 1: the cosine comes first */
    uint32_t odd; /* `POSENC_ODD_...` */
    uint32_t frequencies; /* `POSENC_FREQUENCIES_...` */
    double shift; /* taken off half of `dim` in the exponent: 0 in the paper */
    double max_period; /* 10000 in the paper */
    double scale; /* multiplies the position: 1 in the paper */
    int64_t offset; /* added to the position */
    uint32_t has_padding; /* 1: the position `padding` gives zeros */
    uint32_t reserved; /* 0 */
    int64_t padding; /* see `has_padding`; `offset` included */
} PosencSinusoidSpec;

/* One call. */
typedef struct PosencSinusoidCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSinusoidCall)` */
    PosencBuffer x; /* written, or added to */
    PosencTokens tokens; /* the shape of `x` */
    PosencPositions positions; /* token positions */
    double scale; /* multiplies `x` before the sinusoid is added; `posenc_sinusoid_write` does not read it */
} PosencSinusoidCall;

/* Sinusoids of positions on a device, for one element type. */
typedef struct PosencSinusoid PosencSinusoid;

/* Makes a plan: uploads the frequencies and loads the kernels for `element`. */
PosencStatus posenc_sinusoid_new(
    const PosencGpu *gpu,
    const PosencSinusoidSpec *spec,
    uint32_t element,
    PosencSinusoid **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_sinusoid_on(const PosencSinusoid *sinusoid, const PosencGpu *gpu, PosencSinusoid **out);

/* Frees it; null is allowed. */
PosencStatus posenc_sinusoid_free(PosencSinusoid *sinusoid);

/* Writes sinusoids, in one kernel. */
PosencStatus posenc_sinusoid_write(const PosencSinusoid *sinusoid, const PosencSinusoidCall *call);

/* `x = x * scale + sinusoid` in place, in one kernel. */
PosencStatus posenc_sinusoid_add(const PosencSinusoid *sinusoid, const PosencSinusoidCall *call);

/* One call. */
typedef struct PosencTimestepCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencTimestepCall)` */
    PosencBuffer out; /* written: a row for each time */
    PosencTokens tokens; /* the shape of `out`; batch times tokens are the times */
    PosencBuffer t; /* the times, one after another */
    uint32_t t_element; /* the type of `t`: `POSENC_F32` or `POSENC_F64` */
    uint32_t reserved; /* 0 */
} PosencTimestepCall;

/* Sinusoids of fractional times, of diffusion models, on a device, for one element type. */
typedef struct PosencTimestep PosencTimestep;

/* Makes a plan: uploads the frequencies and loads the kernels for `element`. */
PosencStatus posenc_timestep_new(
    const PosencGpu *gpu,
    const PosencSinusoidSpec *spec,
    uint32_t element,
    PosencTimestep **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_timestep_on(const PosencTimestep *timestep, const PosencGpu *gpu, PosencTimestep **out);

/* Frees it; null is allowed. */
PosencStatus posenc_timestep_free(PosencTimestep *timestep);

/* Writes one row for each time, in one kernel. */
PosencStatus posenc_timestep_write(const PosencTimestep *timestep, const PosencTimestepCall *call);

/* One axis of a grid. */
typedef struct PosencAxis {
    uint32_t along; /* `POSENC_ALONG_...` */
    uint32_t reserved; /* 0 */
    PosencSinusoidSpec sinusoid; /* of its index; `offset` crops, `scale` stretches */
} PosencAxis;

/* The sinusoids of a grid's axes side by side. */
typedef struct PosencGridSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGridSpec)` */
    uint32_t blocks; /* `POSENC_BY_AXIS` or `POSENC_BY_WAVE` */
    uint32_t axis_count; /* axes */
    const PosencAxis *axes; /* in the order of their channels, in host memory */
} PosencGridSpec;

/* One call. */
typedef struct PosencGridCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGridCall)` */
    PosencBuffer x; /* written, or added to */
    PosencTokens tokens; /* the shape of `x`; its number of tokens is the grid's */
    uint64_t frames; /* frames, 1 for an image */
    uint64_t rows; /* rows of a frame */
    uint64_t columns; /* columns of a row */
    double scale; /* multiplies `x` before the grid is added; `posenc_grid_write` does not read it */
} PosencGridCall;

/* One call that counts coordinates over a padding mask. */
typedef struct PosencGridMaskedCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGridMaskedCall)` */
    PosencBuffer out; /* written */
    PosencTokens tokens; /* the shape of `out`: `rows * columns` tokens for each image of the batch */
    PosencBuffer mask; /* `[batch, rows * columns]` bytes, not 0 for a token of the image */
    uint64_t rows; /* rows of each image */
    uint64_t columns; /* columns of each row */
    uint32_t normalize; /* 1: counts are divided by the last one and multiplied by `scale` */
    uint32_t reserved; /* 0 */
    double scale; /* 2 pi in DETR */
    double centre; /* taken off the count: 0 in DETR, 0.5 in Deformable DETR */
} PosencGridMaskedCall;

/* A grid's sinusoids on a device, for one element type. */
typedef struct PosencGrid PosencGrid;

/* Makes a plan: uploads the channels and loads the kernels for `element`. */
PosencStatus posenc_grid_new(const PosencGpu *gpu, const PosencGridSpec *spec, uint32_t element, PosencGrid **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_grid_on(const PosencGrid *grid, const PosencGpu *gpu, PosencGrid **out);

/* Frees it; null is allowed. */
PosencStatus posenc_grid_free(PosencGrid *grid);

/* Writes the grid's table, once for every sequence, in one kernel. */
PosencStatus posenc_grid_write(const PosencGrid *grid, const PosencGridCall *call);

/* `x = x * scale + grid` in place, in one kernel. */
PosencStatus posenc_grid_add(const PosencGrid *grid, const PosencGridCall *call);

/* Writes a table for each image whose coordinates are counted over a padding mask, in one kernel. */
PosencStatus posenc_grid_write_masked(const PosencGrid *grid, const PosencGridMaskedCall *call);

/* Learned tables: `norm(token[id] * scale + position[row] + type[kind])`. */
typedef struct PosencLearnedSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencLearnedSpec)` */
    uint64_t dim; /* channels of one row of every table */
    double scale; /* multiplies token rows: 1, or the root of `dim` */
    uint32_t rows; /* `POSENC_ROWS_...` */
    uint32_t norm; /* `POSENC_NORM_...` */
    int64_t first; /* see `rows` */
    int64_t padded; /* see `rows` */
    int64_t padding; /* see `rows` */
    double eps; /* of the norm */
} PosencLearnedSpec;

/* The tables of a call, each `[rows, dim]` by its length; no `data`: there is none. */
typedef struct PosencTables {
    PosencBuffer token; /* by token id; without it, the rows of `x` take its place */
    PosencBuffer position; /* by the row that the spec gives */
    PosencBuffer types; /* by token type */
    PosencBuffer gain; /* `[dim]`, of the norm; ones without it */
    PosencBuffer bias; /* `[dim]`, of the norm; zeros without it */
} PosencTables;

/* Token ids, types, mask and positions of a call, each `[batch, tokens]`; no `data`: there is none. */
typedef struct PosencLookup {
    PosencIds ids; /* token ids */
    PosencIds types; /* token types */
    PosencBuffer mask; /* bytes: 1 for a token, 0 for padding */
    PosencPositions positions; /* token positions */
} PosencLookup;

/* A flag on the device that kernels raise when an id lies outside its table. */
typedef struct PosencErrorFlag PosencErrorFlag;

/* Makes a flag that is down. The CPU's stays down: its calls refuse such an id themselves. */
PosencStatus posenc_error_flag_new(const PosencGpu *gpu, PosencErrorFlag **out);

/* Frees it; null is allowed. */
PosencStatus posenc_error_flag_free(PosencErrorFlag *flag);

/* Waits for the stream and takes the flag down; `POSENC_VALUE`, with the first token and its table, if it was up. No
   other call uses `flag` at the same time. */
PosencStatus posenc_error_flag_check(PosencErrorFlag *flag);

/* One call. */
typedef struct PosencLearnedCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencLearnedCall)` */
    PosencBuffer x; /* written; read too if there is no token table */
    PosencTokens tokens; /* the shape of `x` */
    PosencTables tables; /* the tables */
    PosencLookup lookup; /* ids and positions */
    PosencErrorFlag *flag; /* raised when an id lies outside its table; or null. Two calls at once need two of them */
} PosencLearnedCall;

/* One call that writes the row of the position table that each token reads. */
typedef struct PosencRowsCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRowsCall)` */
    PosencBuffer rows; /* `[batch, tokens]` of 64-bit integers, written */
    uint64_t batch; /* sequences */
    uint64_t tokens; /* tokens of each */
    PosencLookup lookup; /* ids and positions */
} PosencRowsCall;

/* Learned tables on a device, for one element type. */
typedef struct PosencLearned PosencLearned;

/* Makes a plan: loads the kernels for `element`. */
PosencStatus posenc_learned_new(
    const PosencGpu *gpu,
    const PosencLearnedSpec *spec,
    uint32_t element,
    PosencLearned **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_learned_on(const PosencLearned *learned, const PosencGpu *gpu, PosencLearned **out);

/* Frees it; null is allowed. */
PosencStatus posenc_learned_free(PosencLearned *learned);

/* Gathers, adds and normalises, in one kernel. A row whose id lies outside its table becomes NaN. */
PosencStatus posenc_learned_gather(const PosencLearned *learned, const PosencLearnedCall *call);

/* Writes the row of the position table that each token reads, in one kernel. */
PosencStatus posenc_learned_rows(const PosencLearned *learned, const PosencRowsCall *call);

/* One call for the gradients of the sum before a norm, of gain and of bias. */
typedef struct PosencNormGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencNormGradCall)` */
    PosencBuffer sum; /* written: the gradient of the sum */
    PosencTokens sum_tokens; /* its shape */
    PosencBuffer gain; /* `[dim]`, written: the gradient of the gain; or none */
    PosencBuffer bias; /* `[dim]`, written: the gradient of the bias; or none */
    PosencBuffer grad; /* gradient of the result */
    PosencTokens grad_tokens; /* its shape */
    PosencBuffer x; /* what the forward call read in place of token rows; none with a token table */
    PosencTokens x_tokens; /* its shape */
    PosencTables tables; /* as in the forward call */
    PosencLookup lookup; /* as in the forward call */
    PosencErrorFlag *flag; /* as in the forward call */
    uint32_t accumulate; /* 1: adds to what is in `gain` and `bias` */
    uint32_t reserved; /* 0 */
} PosencNormGradCall;

/* One call for the gradient of a table. */
typedef struct PosencTableGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencTableGradCall)` */
    PosencBuffer table; /* `[rows, dim]`, written at the rows that some token reads */
    uint64_t rows; /* rows of the table */
    PosencBuffer grad; /* gradient of the sum */
    PosencTokens tokens; /* the shape of `grad` */
    PosencIds ids; /* `[batch, tokens]`; `posenc_learned_grad_counted` has none */
    /* every token once, in the order of their ids, 32 bits without sign, as `posenc_learned_grad_order` writes it;
       if it is not sorted, a row whose tokens lie in several runs gets the sum of one of them, any */
    PosencBuffer order;
    uint64_t first; /* of `posenc_learned_grad_counted`: the row of the first token */
    double scale; /* multiplies the sums: the forward call's scale for the token table, 1 for the others */
    uint32_t has_skipped; /* 1: the row of the id `skipped` has no gradient */
    uint32_t accumulate; /* 1: added to what is there */
    int64_t skipped; /* see `has_skipped` */
} PosencTableGradCall;

/* One call that orders tokens by their ids. */
typedef struct PosencOrderCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencOrderCall)` */
    PosencBuffer order; /* `[count]` of 32 bits without sign, written */
    PosencIds ids; /* `[count]` */
    uint64_t count; /* ids */
} PosencOrderCall;

/* Gradients of learned tables on a device, for one element type. Its calls follow one another in the stream. */
typedef struct PosencLearnedGrad PosencLearnedGrad;

/* Makes a plan: loads the kernels for `element`, and allocates scratch memory for calls of up to the sequences and
   tokens of `max_shape`. */
PosencStatus posenc_learned_grad_new(
    const PosencGpu *gpu,
    const PosencLearnedSpec *spec,
    const PosencTokens *max_shape,
    uint32_t element,
    PosencLearnedGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_learned_grad_on(const PosencLearnedGrad *grad, const PosencGpu *gpu, PosencLearnedGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_learned_grad_free(PosencLearnedGrad *grad);

/* The gradient of the sum from that of the normalised result, in one kernel; with gain or bias in two. */
PosencStatus posenc_learned_grad_norm(const PosencLearnedGrad *grad, const PosencNormGradCall *call);

/* The gradient of a position table whose positions are counted, a sum over the batch, in one kernel. */
PosencStatus posenc_learned_grad_counted(const PosencLearnedGrad *grad, const PosencTableGradCall *call);

/* Writes the tokens in the order of their ids, in one kernel up to 1024 of them. */
PosencStatus posenc_learned_grad_order(const PosencLearnedGrad *grad, const PosencOrderCall *call);

/* The gradient of a table by ids, in two kernels. */
PosencStatus posenc_learned_grad_table(const PosencLearnedGrad *grad, const PosencTableGradCall *call);

/* Resampling of a learned table of an image's tokens. */
typedef struct PosencResampleSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencResampleSpec)` */
    uint64_t from[2]; /* rows and columns of the table */
    uint64_t to[2]; /* rows and columns of the one that is made */
    uint64_t prefix; /* tokens before the grid, copied */
    uint32_t filter; /* `POSENC_BILINEAR` or `POSENC_BICUBIC` */
    uint32_t antialias; /* 1: the filter widens where the grid shrinks */
    double factors[2]; /* new over old of rows and columns; 0 and 0: the quotient of the sizes */
    uint32_t weighting; /* `POSENC_WEIGHTING_...` */
    /* 1: the first and last outputs stand on the first and last inputs; without factors and antialias */
    uint32_t align_corners;
} PosencResampleSpec;

/* One call. */
typedef struct PosencResampleCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencResampleCall)` */
    PosencBuffer table; /* read, and written by the gradient */
    PosencTokens table_tokens; /* its shape: `prefix + from rows * columns` tokens */
    PosencBuffer resampled; /* written, and read by the gradient */
    PosencTokens resampled_tokens; /* its shape: `prefix + to rows * columns` tokens */
    uint32_t accumulate; /* 1: the gradient is added to what is there */
    uint32_t reserved; /* 0 */
} PosencResampleCall;

/* Resampling on a device, for one element type. */
typedef struct PosencResample PosencResample;

/* Makes a plan: uploads the weights and loads the kernels for `element`. */
PosencStatus posenc_resample_new(
    const PosencGpu *gpu,
    const PosencResampleSpec *spec,
    uint32_t element,
    PosencResample **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_resample_on(const PosencResample *resample, const PosencGpu *gpu, PosencResample **out);

/* Frees it; null is allowed. */
PosencStatus posenc_resample_free(PosencResample *resample);

/* Resamples a table, in one kernel. */
PosencStatus posenc_resample_write(const PosencResample *resample, const PosencResampleCall *call);

/* The gradient of the table from that of the resampled one, in one kernel. */
PosencStatus posenc_resample_grad(const PosencResample *resample, const PosencResampleCall *call);

#define POSENC_TERM_WHOLE 0 /* Kinds of terms, by what chooses the number: query and key themselves (a dense bias). */
#define POSENC_TERM_DISTANCE 1 /* the distance: `distances` */
#define POSENC_TERM_WINDOW 2 /* coordinates in a window: `window` */
/* the mask of shifted windows: `shifted`; reads no numbers, adds `factor` between regions */
#define POSENC_TERM_SHIFTED 3
#define POSENC_TERM_GIVEN 4 /* an index for each pair of positions: `given` */
#define POSENC_TERM_ENDPOINTS 5 /* a number of the query less one of the key */
#define POSENC_TERM_DEBERTA 6 /* DeBERTa v2's and v3's logarithmic buckets of the distance: `deberta` */

#define POSENC_BY_TABLE 0 /* Rows of a term's numbers: none, a table that all queries and keys read. */
#define POSENC_BY_QUERIES 1 /* a row for each query: products of the queries' states and a table */
#define POSENC_BY_KEYS 2 /* a row for each key */

#define POSENC_KEY_MINUS_QUERY 0 /* Signs of a term's distance: `key - query`. */
#define POSENC_QUERY_MINUS_KEY 1 /* `query - key` */

#define POSENC_OUTSIDE_CLAMP 0 /* Distances without an entry: the number of the nearest distance that has one. */
#define POSENC_OUTSIDE_ZERO 1 /* nothing is added */

/* Coordinates that choose an entry of a window: `query - key` (Swin, BEiT). */
#define POSENC_COORDINATES_QUERY_MINUS_KEY 0
#define POSENC_COORDINATES_KEY_MINUS_QUERY 1 /* `key - query`: MaxViT */
#define POSENC_COORDINATES_ABSOLUTE 2 /* `|query - key|`: LeViT, TinyViT */
#define POSENC_COORDINATES_KEY 3 /* the key's own: SAM's and ViTDet's products with resized tables */

#define POSENC_WINDOW_BOTH 0 /* Axes of a window that choose an entry: rows and columns. */
#define POSENC_WINDOW_ROWS 1 /* rows alone */
#define POSENC_WINDOW_COLUMNS 2 /* columns alone */

/* Entries by distance: entry `lookup[clamp(distance - first, 0, count - 1)]`. */
typedef struct PosencDistances {
    uint32_t sign; /* which difference is the distance: `POSENC_KEY_MINUS_QUERY` or `POSENC_QUERY_MINUS_KEY` */
    uint32_t outside; /* what other distances get: `POSENC_OUTSIDE_...` */
    int64_t first; /* the distance of the first entry */
    uint64_t count; /* distances that have an entry */
    uint64_t entries; /* numbers of a row; without a lookup as many as distances */
    const uint16_t *lookup; /* the entry of each distance, `[count]` in host memory; null: each has its own */
} PosencDistances;

/* DeBERTa v2's and v3's logarithmic buckets of `query - key`: `2 * buckets` entries. */
typedef struct PosencDeberta {
    uint64_t buckets; /* 256 in deberta-v3-base */
    uint64_t max_positions; /* 512 in deberta-v3-base */
} PosencDeberta;

/* Entries by coordinates in a window of tokens, row after row. Positions are tokens of the window. */
typedef struct PosencWindow {
    uint64_t height; /* rows of keys */
    uint64_t width; /* keys of a row */
    uint64_t stride; /* a step of the queries' window on the keys': 2 where LeViT halves a grid, else 1 */
    uint64_t prefix; /* class and register tokens before the window */
    uint32_t coordinates; /* `POSENC_COORDINATES_...` */
    uint32_t axes; /* `POSENC_WINDOW_...` */
    /* 1: three more entries, for a token before the window against one in it, the reverse, and both before it (BEiT) */
    uint32_t prefix_entries;
    uint32_t reserved; /* 0 */
} PosencWindow;

/* The mask of shifted windows: sequence `b` is window `b % windows` of its image. */
typedef struct PosencShiftedWindows {
    uint64_t height; /* rows of the image */
    uint64_t width; /* tokens of a row */
    uint64_t window[2]; /* rows and columns of a window */
    uint64_t shift[2]; /* rows and columns of the shift; 0: an axis is not shifted */
} PosencShiftedWindows;

/* Sizes of given indices, and of the table that they read. */
typedef struct PosencGiven {
    uint64_t rows; /* positions of queries that have a row */
    uint64_t columns; /* positions of keys that have a column */
    uint64_t entries; /* numbers of a table */
} PosencGiven;

/* One term of a bias, filled in by `posenc_term_...` or field by field; `kind` says which of its structs is read. */
typedef struct PosencTerm {
    uint32_t kind; /* `POSENC_TERM_...` */
    uint32_t by; /* rows of the numbers: `POSENC_BY_...` */
    float factor; /* multiplies the number: 1. The mask of shifted windows: -100 or -inf */
    uint32_t reserved; /* 0 */
    PosencDistances distances; /* of `POSENC_TERM_DISTANCE` */
    PosencDeberta deberta; /* of `POSENC_TERM_DEBERTA` */
    PosencWindow window; /* of `POSENC_TERM_WINDOW` */
    PosencShiftedWindows shifted; /* of `POSENC_TERM_SHIFTED` */
    PosencGiven given; /* of `POSENC_TERM_GIVEN` */
} PosencTerm;

/* What one term of a call reads. */
typedef struct PosencTermInputs {
    uint32_t element; /* type of `numbers` and `key_numbers`: `POSENC_F32`, or the logits' type */
    uint32_t reserved; /* 0 */
    /* the array; of endpoints the queries' numbers, `[batch or 1, heads or 1, queries, 1 or 2]` */
    PosencBuffer numbers;
    PosencNumbers numbers_shape; /* its shape */
    PosencBuffer key_numbers; /* the keys' numbers, of `POSENC_TERM_ENDPOINTS` alone */
    PosencNumbers key_numbers_shape; /* their shape */
    /* `[batch or 1, rows, columns]` of `POSENC_U8`, `POSENC_U16` or `POSENC_I32`, of `POSENC_TERM_GIVEN` alone */
    PosencIds indices;
    PosencBuffer query_at; /* coordinates in place of the queries' positions, `[batch, queries]`, 32 bits; or none */
    PosencBuffer key_at; /* coordinates in place of the keys' positions, `[batch, keys]`, 32 bits; or none */
} PosencTermInputs;

/* Swin: a table by `query - key` in a window. */
PosencStatus posenc_term_swin(uint64_t height, uint64_t width, PosencTerm *out);

/* BEiT: Swin's entries, one class token and three entries for it. */
PosencStatus posenc_term_beit(uint64_t height, uint64_t width, PosencTerm *out);

/* MaxViT and CoAtNet: a table by `key - query` in a window. */
PosencStatus posenc_term_maxvit(uint64_t height, uint64_t width, PosencTerm *out);

/* LeViT and TinyViT: a table by `|query - key|` in a window; `stride` is 2 where LeViT halves the grid, else 1. */
PosencStatus posenc_term_levit(uint64_t height, uint64_t width, uint64_t stride, PosencTerm *out);

/* One axis of decomposed positions (SAM, ViTDet, MViTv2), `POSENC_WINDOW_ROWS` or `POSENC_WINDOW_COLUMNS`: the
   queries' products, by the key's coordinate. */
PosencStatus posenc_term_decomposed(uint64_t height, uint64_t width, uint32_t axes, PosencTerm *out);

/* Shaw's clipped distances, `clip(key - query, -left, right) + left`, of the queries' products. */
PosencStatus posenc_term_shaw(uint64_t left, uint64_t right, PosencTerm *out);

/* VITS: Shaw's entries up to `window` on both sides, nothing beyond, of the queries' products. */
PosencStatus posenc_term_vits(uint64_t window, PosencTerm *out);

/* SpeechT5: `clamp(query - key, -max_length, max_length - 1) + max_length`, of the queries' products. */
PosencStatus posenc_term_speecht5(uint64_t max_length, PosencTerm *out);

/* The audio encoders of Gemma 3n and Gemma 4: row `past - (query - key)`, nothing beyond `past` keys before the
   query and `right` after it, of the queries' products. */
PosencStatus posenc_term_gemma_audio(uint64_t past, uint64_t right, PosencTerm *out);

/* BERT's `relative_key`: `query - key + max_positions - 1`, of the queries' products. */
PosencStatus posenc_term_bert(uint64_t max_positions, PosencTerm *out);

/* Transformer-XL: `keys` rows, from the distance `keys - 1` into the past on, of the queries' products. */
PosencStatus posenc_term_transformer_xl(uint64_t keys, PosencTerm *out);

/* XLNet: `keys + queries` rows, from the distance `keys` into the past on, of the queries' products. */
PosencStatus posenc_term_xlnet(uint64_t queries, uint64_t keys, PosencTerm *out);

/* Conformer: `2 * tokens - 1` rows, from the distance `tokens - 1` into the past on, of the queries' products. */
PosencStatus posenc_term_conformer(uint64_t tokens, PosencTerm *out);

/* Inkling's band: `query - key` from 0 to below `extent`, nothing outside, of the queries' products. */
PosencStatus posenc_term_inkling(uint64_t extent, PosencTerm *out);

/* DeBERTa v1: `clamp(query - key + span, 0, 2 * span - 1)`, of the queries' products; `by = POSENC_BY_KEYS` makes
   the keys' term of it. */
PosencStatus posenc_term_deberta_v1(uint64_t span, PosencTerm *out);

/* DeBERTa v2 and v3: logarithmic buckets of `query - key`, `2 * buckets` entries, of the queries' products; `by =
   POSENC_BY_KEYS` makes the keys' term of it. */
PosencStatus posenc_term_deberta(uint64_t buckets, uint64_t max_positions, PosencTerm *out);

/* Gives how many numbers a row of the term has, `entries` of its shape; 0 for a dense bias, a mask and endpoints. */
PosencStatus posenc_term_entries(const PosencTerm *term, uint64_t *out);

#define POSENC_RESIZE_BILINEAR 0 /* Interpolation of a window's table: linear (Hugging Face's BEiT). */
#define POSENC_RESIZE_BICUBIC 1 /* cubic, A = -0.75: timm's simple resize, Swin's own code */
#define POSENC_RESIZE_BICUBIC_ANTIALIAS 2 /* cubic, A = -0.5, antialiased: timm's LeViT */
#define POSENC_RESIZE_GEOMETRIC 3 /* linear between geometric distances: timm's resize of BEiT */

/* One table of a window at another size, in host memory. */
typedef struct PosencWindowResizeCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencWindowResizeCall)` */
    PosencWindow window; /* the window of `table`: `window` of a term that `posenc_term_swin` and others fill in */
    uint64_t to[2]; /* rows and columns of the new window */
    uint32_t resize; /* `POSENC_RESIZE_...` */
    uint32_t element; /* type of `table` and `out` */
    const void *table; /* the table, in host memory */
    uint64_t table_len; /* elements there */
    PosencNumbers table_shape; /* its shape, `[1, heads, 1, entries]` */
    void *out; /* `[entries, heads]` of the new window in host memory, written */
    uint64_t out_len; /* elements there */
} PosencWindowResizeCall;

/* Relative positions of one axis of decomposed positions (SAM, ViTDet, MViTv2), in host memory. */
typedef struct PosencDecomposedAxisCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencDecomposedAxisCall)` */
    const void *table; /* `[length, dim]` in host memory; resized where `length` is not `2 * max(queries, keys) - 1` */
    uint64_t table_len; /* elements there */
    uint64_t dim; /* channels of a head */
    uint64_t queries; /* queries along the axis */
    uint64_t keys; /* keys along the axis */
    uint32_t element; /* type of `table` and `out` */
    uint32_t reserved; /* 0 */
    void *out; /* `[queries, keys, dim]` in host memory, written */
    uint64_t out_len; /* elements there */
} PosencDecomposedAxisCall;

/* Resizes the table of a window, once for each resolution, on the host. The new window's term differs in `height`
   and `width`. */
PosencStatus posenc_window_resize(const PosencWindowResizeCall *call);

/* Gives each query and key of an axis its row of the table, on the host: a query's products with a pair's row are
   the numbers of a term that `posenc_term_decomposed` fills in. */
PosencStatus posenc_decomposed_axis(const PosencDecomposedAxisCall *call);

#define POSENC_SIDES_SYMMETRIC 0 /* Keys of the future: `-slope * |distance|` on both sides. */
#define POSENC_SIDES_SIGNED 1 /* `slope * distance`: the future is rewarded. */
#define POSENC_SIDES_HALVES 2 /* The first half of the heads sees the past alone, the second half the future alone. */

#define POSENC_KEY_ONLY_BLOOM 0 /* A library's own ALiBi, a number per key: Hugging Face's BLOOM. */
#define POSENC_KEY_ONLY_MPT 1 /* Hugging Face's MPT and llm-foundry */
#define POSENC_KEY_ONLY_FLASH_ATTENTION 2 /* flash-attention's causal kernels */
#define POSENC_KEY_ONLY_FALCON 3 /* Falcon-RW */

#define POSENC_KERPLE_LOG 0 /* KERPLE's kernels: `-p * ln(1 + a * |distance|)`. */
#define POSENC_KERPLE_POWER 1 /* `-a * |distance|^p` */

/* ALiBi: the slopes of some of a model's heads. */
typedef struct PosencAlibiSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencAlibiSpec)` */
    uint64_t total_heads; /* heads of the whole model */
    uint64_t first; /* first head of this shard */
    uint64_t heads; /* heads of this shard */
    double max_bias; /* 8 in the paper */
    double scale; /* multiplies every slope: 1 */
    uint32_t sides; /* `POSENC_SIDES_...` */
    uint32_t key_only; /* 1: the key's position takes the place of the distance */
} PosencAlibiSpec;

/* ALiBi as one library computes it, for keys from position 0 on. */
typedef struct PosencKeyOnlySpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencKeyOnlySpec)` */
    PosencAlibiSpec alibi; /* the slopes; `sides` and `key_only` are not read */
    uint32_t library; /* `POSENC_KEY_ONLY_...` */
    uint32_t reserved; /* 0 */
    uint64_t keys; /* the most keys of a call */
} PosencKeyOnlySpec;

/* Slopes of the caller, one for the past and one for the future of each head. */
typedef struct PosencSlopesSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSlopesSpec)` */
    uint64_t batch; /* sequences with slopes of their own; 1: all share the same */
    uint64_t heads; /* heads */
    const float *left; /* `[batch, heads]` in host memory */
    const float *right; /* `[batch, heads]` in host memory; null: as `left` */
    uint32_t key_only; /* 1: the key's position takes the place of the distance */
    uint32_t reserved; /* 0 */
} PosencSlopesSpec;

/* T5: a number for each bucket of distances and each head. */
typedef struct PosencT5Spec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencT5Spec)` */
    uint64_t buckets; /* 32 in T5 */
    uint64_t max_distance; /* the distance from which all share the last bucket: 128 in T5 */
    uint64_t heads; /* heads */
    uint32_t bidirectional; /* 1: the future has buckets of its own, as in an encoder */
    uint32_t reserved; /* 0 */
    const float *table; /* `[buckets, heads]` in host memory; null: zeros until `posenc_bias_set_table` */
} PosencT5Spec;

/* Any law of distance: one row of numbers for each head. */
typedef struct PosencRowSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRowSpec)` */
    uint64_t heads; /* heads */
    int64_t first; /* the distance (key - query) of the first number */
    uint64_t distances; /* numbers of each head */
    const float *values; /* `[heads, distances]` in host memory; a gradient does not read them */
    uint32_t saturates; /* 1: distances outside take the number at the row's end */
    uint32_t key_only; /* 1: the key's position takes the place of the distance */
} PosencRowSpec;

/* KERPLE. */
typedef struct PosencKerpleSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencKerpleSpec)` */
    uint32_t kind; /* `POSENC_KERPLE_...` */
    uint32_t reserved; /* 0 */
    uint64_t heads; /* heads */
    const double *p; /* `[heads]` in host memory */
    const double *a; /* `[heads]` in host memory */
    int64_t least; /* the smallest distance of a call */
    int64_t most; /* the largest distance of a call */
} PosencKerpleSpec;

/* Sandwich. */
typedef struct PosencSandwichSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSandwichSpec)` */
    uint64_t total_heads; /* heads of the whole model */
    uint64_t first; /* first head of this shard */
    uint64_t heads; /* heads of this shard */
    uint64_t width; /* channels of the sinusoidal embedding: 128 in the paper */
    int64_t least; /* the smallest distance of a call */
    int64_t most; /* the largest distance of a call */
} PosencSandwichSpec;

/* A sum of terms. */
typedef struct PosencTermsSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencTermsSpec)` */
    const PosencTerm *terms; /* `[count]` in host memory */
    uint64_t count; /* terms: 1 to 4 */
} PosencTermsSpec;

/* FIRE. */
typedef struct PosencFireSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencFireSpec)` */
    double c; /* stretches distances */
    double threshold; /* the position from which a query is normalised by its own */
    double eps; /* keeps the normaliser above 0 */
    uint64_t width; /* inputs of the second layer */
    uint64_t heads; /* heads */
    const double *in_weight; /* `[width]` in host memory */
    const double *in_bias; /* `[width]` in host memory */
    const double *out_weight; /* `[heads, width]` in host memory */
    const double *out_bias; /* `[heads]` in host memory */
    uint64_t reach; /* larger positions and distances are taken as this one */
} PosencFireSpec;

/* One call that writes or adds a bias. */
typedef struct PosencBiasCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencBiasCall)` */
    PosencBuffer x; /* written, or added to */
    PosencLogits shape; /* the shape of `x` */
    PosencPlaces places; /* positions of queries and keys */
    PosencBuffer gates; /* `[batch, heads, queries]` of f32, multiply the bias; or none */
    const PosencTermInputs *terms; /* what each term of a sum of terms reads, `[term_count]` in host memory */
    uint64_t term_count; /* as many as the bias has; 0 for other biases */
} PosencBiasCall;

/* One call that takes a T5 table from the device. */
typedef struct PosencSetTableCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSetTableCall)` */
    PosencBuffer table; /* `[buckets, heads]` of f32 */
} PosencSetTableCall;

/* A bias on a device, for one element type of logits: written, added, or given to a softmax. */
typedef struct PosencBias PosencBias;

/* Makes a plan of ALiBi: uploads the slopes and loads the kernels for `element`. */
PosencStatus posenc_bias_alibi_new(
    const PosencGpu *gpu,
    const PosencAlibiSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of ALiBi in a library's rounding. */
PosencStatus posenc_bias_key_only_new(
    const PosencGpu *gpu,
    const PosencKeyOnlySpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of slopes of the caller. */
PosencStatus posenc_bias_slopes_new(
    const PosencGpu *gpu,
    const PosencSlopesSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of T5's bias. */
PosencStatus posenc_bias_t5_new(const PosencGpu *gpu, const PosencT5Spec *spec, uint32_t element, PosencBias **out);

/* Makes a plan of any law of distance. */
PosencStatus posenc_bias_row_new(const PosencGpu *gpu, const PosencRowSpec *spec, uint32_t element, PosencBias **out);

/* Makes a plan of KERPLE's bias. */
PosencStatus posenc_bias_kerple_new(
    const PosencGpu *gpu,
    const PosencKerpleSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of Sandwich's bias. */
PosencStatus posenc_bias_sandwich_new(
    const PosencGpu *gpu,
    const PosencSandwichSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of FIRE's bias. */
PosencStatus posenc_bias_fire_new(
    const PosencGpu *gpu,
    const PosencFireSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes a plan of a sum of terms; a call brings what they read. */
PosencStatus posenc_bias_terms_new(
    const PosencGpu *gpu,
    const PosencTermsSpec *spec,
    uint32_t element,
    PosencBias **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_bias_on(const PosencBias *bias, const PosencGpu *gpu, PosencBias **out);

/* Frees it; null is allowed. */
PosencStatus posenc_bias_free(PosencBias *bias);

/* Writes the bias of every query and key, in one kernel. */
PosencStatus posenc_bias_write(const PosencBias *bias, const PosencBiasCall *call);

/* Adds the bias to logits in place, in one kernel. */
PosencStatus posenc_bias_add(const PosencBias *bias, const PosencBiasCall *call);

/* Takes a new T5 table from the device, in one kernel; the plan was made without one. No other call uses `bias` at
   the same time. */
PosencStatus posenc_bias_set_table(PosencBias *bias, const PosencSetTableCall *call);

/* Gives the numbers of a plan on the device, f32, to be read or trained in place: 0 the row `[heads, distances]` or
   the slopes of the past, 1 those of the future. They live as long as the plan. No other call uses `bias` at the
   same time. */
PosencStatus posenc_bias_numbers(PosencBias *bias, uint32_t which, PosencBuffer *out);

/* The heads whose slopes have a gradient. */
typedef struct PosencSlopesGradSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSlopesGradSpec)` */
    uint64_t heads; /* heads */
} PosencSlopesGradSpec;

/* One call for the gradient of a bias's parameters. */
typedef struct PosencDistanceGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencDistanceGradCall)` */
    PosencBuffer grad; /* the gradient of every logit after the bias */
    PosencLogits shape; /* its shape */
    PosencPlaces places; /* positions of queries and keys */
    PosencBuffer gates; /* `[batch, heads, queries]` of f32: those that multiplied the bias; or none */
    /* f32, written, as many as `..._len` says: T5 `[buckets, heads]`, slopes and KERPLE `[2, heads]`, a row `[heads,
       distances]`, FIRE `c`, `threshold` and its four layers in their order */
    PosencBuffer out;
    float factor; /* multiplies the sums: 1 */
    uint32_t reserved; /* 0 */
} PosencDistanceGradCall;

/* Gradients of a distance bias on a device, for one element type of logits. Its calls follow one another in the
   stream. */
typedef struct PosencDistanceGrad PosencDistanceGrad;

/* Makes a plan for T5's table; `max_shape` is the shape of the largest call. */
PosencStatus posenc_distance_grad_t5_new(
    const PosencGpu *gpu,
    const PosencT5Spec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencDistanceGrad **out);

/* Makes a plan for slopes; `max_shape` is the shape of the largest call. */
PosencStatus posenc_distance_grad_slopes_new(
    const PosencGpu *gpu,
    const PosencSlopesGradSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencDistanceGrad **out);

/* Makes a plan for a row; `max_shape` is the shape of the largest call. The row's numbers are not read. */
PosencStatus posenc_distance_grad_row_new(
    const PosencGpu *gpu,
    const PosencRowSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencDistanceGrad **out);

/* Makes a plan for KERPLE's `p` and `a`, at their present values; `max_shape` is the shape of the largest call. */
PosencStatus posenc_distance_grad_kerple_new(
    const PosencGpu *gpu,
    const PosencKerpleSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencDistanceGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_distance_grad_on(const PosencDistanceGrad *grad, const PosencGpu *gpu, PosencDistanceGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_distance_grad_free(PosencDistanceGrad *grad);

/* Gives the number of gradient values. */
PosencStatus posenc_distance_grad_len(const PosencDistanceGrad *grad, uint64_t *out);

/* Writes the gradient of the parameters, in one kernel. */
PosencStatus posenc_distance_grad_apply(const PosencDistanceGrad *grad, const PosencDistanceGradCall *call);

/* Gradients of FIRE's parameters on a device, for one element type of logits. Its calls follow one another in the
   stream. */
typedef struct PosencFireGrad PosencFireGrad;

/* Makes a plan for FIRE's parameters, at their present values; `max_shape` is the shape of the largest call. */
PosencStatus posenc_fire_grad_new(
    const PosencGpu *gpu,
    const PosencFireSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencFireGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_fire_grad_on(const PosencFireGrad *grad, const PosencGpu *gpu, PosencFireGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_fire_grad_free(PosencFireGrad *grad);

/* Gives the number of gradient values. */
PosencStatus posenc_fire_grad_len(const PosencFireGrad *grad, uint64_t *out);

/* Writes the gradient of the parameters, in one kernel. */
PosencStatus posenc_fire_grad_apply(const PosencFireGrad *grad, const PosencDistanceGradCall *call);

/* The term whose numbers have a gradient. */
typedef struct PosencTermGradSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencTermGradSpec)` */
    PosencTerm term; /* as `posenc_term_...` fills it in */
} PosencTermGradSpec;

/* One call for the gradient of a term's numbers. */
typedef struct PosencTermGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencTermGradCall)` */
    PosencBuffer grad; /* the gradient of every logit after the bias */
    PosencLogits shape; /* its shape */
    PosencPlaces places; /* positions of queries and keys */
    PosencBuffer gates; /* `[batch, heads, queries]` of f32: those that multiplied the bias; or none */
    PosencTermInputs inputs; /* the term's indices or coordinates, without its numbers; zeros where it has neither */
    PosencBuffer out; /* f32, written */
    /* its shape, that of the numbers: a size of 1 sums over that dimension. Endpoints have one entry */
    PosencNumbers out_shape;
    /* multiplies the sums, the term's own factor on top: 1; `1 / scale` if `grad` is that of the logits */
    float factor;
    uint32_t reserved; /* 0 */
} PosencTermGradCall;

/* Gradients of a term's numbers on a device, for one element type of logits. Its calls follow one another in the
   stream. */
typedef struct PosencTermGrad PosencTermGrad;

/* Makes a plan for the numbers of a term; `max_shape` is the shape of the largest call. */
PosencStatus posenc_term_grad_new(
    const PosencGpu *gpu,
    const PosencTermGradSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencTermGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_term_grad_on(const PosencTermGrad *grad, const PosencGpu *gpu, PosencTermGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_term_grad_free(PosencTermGrad *grad);

/* Writes the gradient of the numbers, in one kernel; of `POSENC_TERM_ENDPOINTS` that of the queries' numbers. */
PosencStatus posenc_term_grad_apply(const PosencTermGrad *grad, const PosencTermGradCall *call);

/* Writes the gradient of the keys' numbers of `POSENC_TERM_ENDPOINTS`, which are subtracted, in one kernel. */
PosencStatus posenc_term_grad_apply_keys(const PosencTermGrad *grad, const PosencTermGradCall *call);

/* Products of queries' or keys' states with a table of relative positions: the numbers that a term by queries or
   keys reads, made where they are added and never stored. */
typedef struct PosencRelativeProductsSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeProductsSpec)` */
    /* a term of distances, as `posenc_term_shaw` to `posenc_term_deberta` fill it in: the row of the table, whose
       states are multiplied (`by`), and `factor` */
    PosencTerm term;
} PosencRelativeProductsSpec;

/* One call that adds products to logits, or writes them. */
typedef struct PosencRelativeProductsCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeProductsCall)` */
    PosencBuffer x; /* the logits, changed in place, or written */
    PosencLogits shape; /* their shape */
    PosencBuffer states; /* states of the queries, or of the keys, of the plan's element type */
    PosencHeads states_shape; /* their shape, `[batch, tokens, heads, width]` */
    PosencBuffer bias; /* `v`, `[heads, width]` of f32, added to the states: Transformer-XL's; or none */
    PosencBuffer table; /* the table, of the plan's element type */
    PosencNumbers table_shape; /* its shape, `[batch or 1, heads or 1, entries, width]` */
    PosencPlaces places; /* positions of queries and keys */
} PosencRelativeProductsCall;

/* Products of states and a table on a device, for one element type. */
typedef struct PosencRelativeProducts PosencRelativeProducts;

/* Makes a plan: uploads the lookup, if there is one, and loads the kernels for `element`. */
PosencStatus posenc_relative_products_new(
    const PosencGpu *gpu,
    const PosencRelativeProductsSpec *spec,
    uint32_t element,
    PosencRelativeProducts **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_relative_products_on(
    const PosencRelativeProducts *products,
    const PosencGpu *gpu,
    PosencRelativeProducts **out);

/* Frees it; null is allowed. */
PosencStatus posenc_relative_products_free(PosencRelativeProducts *products);

/* Adds the products to logits, in one kernel. */
PosencStatus posenc_relative_products_add(
    const PosencRelativeProducts *products,
    const PosencRelativeProductsCall *call);

/* Writes the products of every query and key, in one kernel. */
PosencStatus posenc_relative_products_write(
    const PosencRelativeProducts *products,
    const PosencRelativeProductsCall *call);

/* Coordinates of Swin v2's network: `sign(d) * log2(1 + 8 * |d| / (size - 1)) / log2(8)` of a distance `d = query -
   key` on an axis. */
#define POSENC_LOG_COORDINATES_RELATIVE 0
#define POSENC_LOG_COORDINATES_ABSOLUTE 1 /* `sign(d) * ln(1 + |d|)`: timm's Swin v2 CR and MaxViT RW */

/* Swin v2's continuous position bias: a network of log-spaced coordinates writes the table of a window. */
typedef struct PosencSwin2Spec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSwin2Spec)` */
    uint64_t window[2]; /* rows and columns */
    /* rows and columns of the pretraining window, the `size` of `POSENC_LOG_COORDINATES_RELATIVE`; 0: `window` */
    uint64_t pretrained[2];
    uint32_t coordinates; /* `POSENC_LOG_COORDINATES_...` */
    float limit; /* the table is `limit * sigmoid(z)` of the network's output: 16 in Swin v2; 0: `z` itself */
    uint64_t hidden; /* width of the hidden layer: 512 in Swin v2 */
    uint64_t heads; /* outputs of the network */
} PosencSwin2Spec;

/* The network's weights or their gradients, as `torch.nn.Linear` stores weights. */
typedef struct PosencSwin2Weights {
    PosencBuffer w1; /* `[hidden, 2]`: of rows and columns */
    PosencBuffer b1; /* `[hidden]` */
    PosencBuffer w2; /* `[heads, hidden]` */
    PosencBuffer b2; /* `[heads]`; none in Swin v2 */
} PosencSwin2Weights;

/* One call that writes a table. */
typedef struct PosencSwin2Call {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSwin2Call)` */
    PosencSwin2Weights weights; /* the weights, of the plan's element type */
    PosencBuffer table; /* `[entries, heads]` of f32, written: numbers of a term that `posenc_term_swin` fills in */
} PosencSwin2Call;

/* One call for the gradient of the weights. */
typedef struct PosencSwin2GradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSwin2GradCall)` */
    PosencSwin2Weights weights; /* the weights, of the plan's element type */
    PosencBuffer table_grad; /* `[entries, heads]` of f32: the gradient of the table */
    PosencSwin2Weights out; /* f32, written; without `b2` where it is not wanted */
} PosencSwin2GradCall;

/* Swin v2's network on a device, for weights of one element type. Its calls follow one another in the stream. */
typedef struct PosencSwin2 PosencSwin2;

/* Makes a plan: uploads the coordinates and loads the kernels for `element`. */
PosencStatus posenc_swin2_new(const PosencGpu *gpu, const PosencSwin2Spec *spec, uint32_t element, PosencSwin2 **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_swin2_on(const PosencSwin2 *swin2, const PosencGpu *gpu, PosencSwin2 **out);

/* Frees it; null is allowed. */
PosencStatus posenc_swin2_free(PosencSwin2 *swin2);

/* Writes the table, in one kernel. */
PosencStatus posenc_swin2_write(const PosencSwin2 *swin2, const PosencSwin2Call *call);

/* Writes the gradient of the weights from that of the table, in two kernels. */
PosencStatus posenc_swin2_grad(const PosencSwin2 *swin2, const PosencSwin2GradCall *call);

/* Swin v2's factor of cosine attention, `exp(min(logit_scale, ln 100))`: one of `scales` of a softmax call. */
float posenc_swin2_logit_scale(float logit_scale);

#define POSENC_GATES_LOGS 0 /* Numbers of gates: their logarithms, at most 0. */
#define POSENC_GATES_LOGITS 1 /* `x`, of the gate `ln(sigmoid(x))`: the output of a projection */

/* Prefix sums of log gates along the tokens of each head, as two floats each. */
typedef struct PosencGateSumsSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGateSumsSpec)` */
    uint32_t gates; /* `POSENC_GATES_...` */
    uint32_t reserved; /* 0 */
} PosencGateSumsSpec;

/* One call that writes sums. */
typedef struct PosencGateSumsCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGateSumsCall)` */
    uint32_t element; /* type of `gates`: `POSENC_F32`, or the plan's */
    uint32_t reserved; /* 0 */
    PosencBuffer gates; /* the gates */
    PosencNumbers gates_shape; /* their shape, `[batch, heads, tokens, 1]` */
    PosencBuffer out; /* f32, written: `numbers` and `key_numbers` of `POSENC_TERM_ENDPOINTS` */
    PosencNumbers out_shape; /* its shape, `[batch, heads, tokens, 2]` */
    /* `[batch, heads, 2]` of 64 bits, changed in place: the sums of the tokens before, 0 at the start of a sequence,
       become those with these tokens; none: a whole sequence */
    PosencBuffer state;
} PosencGateSumsCall;

/* One call for the gradient of the gates' numbers. */
typedef struct PosencGateSumsGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencGateSumsGradCall)` */
    uint32_t element; /* type of `gates`: `POSENC_F32`, or the plan's */
    uint32_t reserved; /* 0 */
    PosencBuffer gates; /* as in the sums; logarithms are not read */
    PosencNumbers gates_shape; /* their shape, `[batch, heads, tokens, 1]` */
    PosencBuffer query_grad; /* f32: the gradient of the sums as queries' numbers, of `posenc_term_grad_apply` */
    PosencNumbers query_grad_shape; /* its shape, `[batch, heads, tokens, 1]` */
    PosencBuffer key_grad; /* f32: as keys' numbers, of `posenc_term_grad_apply_keys` */
    PosencNumbers key_grad_shape; /* its shape, `[batch, heads, tokens, 1]` */
    PosencBuffer grad; /* f32, written */
    PosencNumbers grad_shape; /* its shape, `[batch, heads, tokens, 1]` */
} PosencGateSumsGradCall;

/* Prefix sums of log gates on a device, for gates of f32 or of one element type. */
typedef struct PosencGateSums PosencGateSums;

/* Makes a plan: loads the kernels for `element`. */
PosencStatus posenc_gate_sums_new(
    const PosencGpu *gpu,
    const PosencGateSumsSpec *spec,
    uint32_t element,
    PosencGateSums **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_gate_sums_on(const PosencGateSums *sums, const PosencGpu *gpu, PosencGateSums **out);

/* Frees it; null is allowed. */
PosencStatus posenc_gate_sums_free(PosencGateSums *sums);

/* Writes the sums, in one kernel. */
PosencStatus posenc_gate_sums_write(const PosencGateSums *sums, const PosencGateSumsCall *call);

/* Writes the gradient of the gates' numbers, in one kernel. */
PosencStatus posenc_gate_sums_grad(const PosencGateSums *sums, const PosencGateSumsGradCall *call);

#define POSENC_SOFTCAP_THEN_BIAS 0 /* Orders of scale, softcap and bias: `softcap(scale * s) + bias`. */
#define POSENC_BIAS_THEN_SOFTCAP 1 /* `softcap(scale * s + bias)` */
#define POSENC_BIAS_THEN_SCALE 2 /* `softcap(scale * (s + bias))` */

/* A softmax: what to compute. */
typedef struct PosencSoftmaxSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSoftmaxSpec)` */
    float scale; /* multiplies the logit */
    float softcap; /* the logit's limit; 0: none */
    uint32_t order; /* in which order they act, and the bias */
    uint32_t has_left; /* 1: a key may lie at most `left` before its query */
    uint32_t left; /* see `has_left` */
    uint32_t has_right; /* 1: a key may lie at most `right` after its query; 0 there is a causal softmax */
    uint32_t right; /* see `has_right` */
    uint32_t reserved; /* 0 */
} PosencSoftmaxSpec;

/* Bias, mask, sinks, gates and scales of one softmax call. */
typedef struct PosencInputs {
    const PosencBias *bias; /* the bias, made for the same element type; null: none */
    PosencPlaces places; /* positions of queries and keys */
    const PosencTermInputs *terms; /* what each term of a sum of terms reads, `[term_count]` in host memory */
    uint64_t term_count; /* as many as the bias has; 0 for other biases */
    PosencBuffer gates; /* `[batch, heads, queries]` of f32, multiply the bias; or none */
    PosencBuffer mask; /* added last, -inf masks; or none. A gradient does not read it */
    PosencLogits mask_shape; /* the shape of `mask`: each size but the keys' may be 1 */
    PosencBuffer sinks; /* `[heads]` of f32, logits without keys; or none. A gradient does not read them */
    /* `[heads]` of f32, multiply `scale` (cosine attention, `posenc_swin2_logit_scale`); or none */
    PosencBuffer scales;
} PosencInputs;

/* One call. */
typedef struct PosencSoftmaxCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSoftmaxCall)` */
    PosencBuffer x; /* logits */
    PosencLogits shape; /* their shape */
    PosencBuffer out; /* probabilities; none: in place */
    PosencLogits out_shape; /* their shape */
    PosencInputs inputs; /* bias, places, mask, sinks, gates, scales */
    PosencBuffer lse; /* `[batch, heads, queries]` of f32, written: the log-sum-exp; or none */
} PosencSoftmaxCall;

/* One call for the gradients of logits and bias. */
typedef struct PosencSoftmaxGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSoftmaxGradCall)` */
    PosencBuffer probabilities; /* what the softmax gave */
    PosencLogits probabilities_shape; /* their shape */
    PosencBuffer grad; /* the gradient of the probabilities */
    PosencLogits grad_shape; /* its shape */
    PosencBuffer out; /* the gradient of the logits; none: in place of `grad` */
    PosencLogits out_shape; /* its shape */
    PosencInputs inputs; /* as in the softmax */
    PosencBuffer logits; /* the logits, where a softcap needs them */
    PosencLogits logits_shape; /* their shape */
    PosencBuffer bias_grad; /* written: the gradient of the bias, laid out as that of the logits; or none */
    /* `[batch, heads, queries]` of f32, written: the sum of probability and gradient of each row; or none */
    PosencBuffer dots;
} PosencSoftmaxGradCall;

/* One call for the gradient of the sinks. */
typedef struct PosencSinkGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencSinkGradCall)` */
    PosencBuffer sinks; /* `[heads]` of f32, as in the softmax */
    PosencBuffer lse; /* of the softmax */
    PosencBuffer dots; /* of its gradient */
    PosencBuffer grad; /* `[heads]` of f32, written */
    PosencLogits shape; /* the shape of the logits */
} PosencSinkGradCall;

/* Softmax on a device, for one element type. Its calls follow one another in the stream. */
typedef struct PosencSoftmax PosencSoftmax;

/* Makes a plan: loads the kernels for `element`. A call brings its bias. */
PosencStatus posenc_softmax_new(
    const PosencGpu *gpu,
    const PosencSoftmaxSpec *spec,
    uint32_t element,
    PosencSoftmax **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_softmax_on(const PosencSoftmax *softmax, const PosencGpu *gpu, PosencSoftmax **out);

/* Frees it; null is allowed. */
PosencStatus posenc_softmax_free(PosencSoftmax *softmax);

/* The softmax of every row, in one kernel. */
PosencStatus posenc_softmax_apply(const PosencSoftmax *softmax, const PosencSoftmaxCall *call);

/* The gradients of the logits, and of the bias if it is wanted, in one kernel. */
PosencStatus posenc_softmax_grad(const PosencSoftmax *softmax, const PosencSoftmaxGradCall *call);

/* The gradient of the sinks, in one kernel. */
PosencStatus posenc_softmax_sink_grad(const PosencSoftmax *softmax, const PosencSinkGradCall *call);

/* Shaw's relative positions on the value side: each key adds the vector of a table that its distance chooses. */
typedef struct PosencRelativeValuesSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeValuesSpec)` */
    /* the entry of each distance: `distances` of a term that `posenc_term_shaw` or `posenc_term_vits` fills in */
    PosencDistances distances;
} PosencRelativeValuesSpec;

/* One call that adds to values. */
typedef struct PosencRelativeValuesCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeValuesCall)` */
    PosencBuffer probabilities; /* what the softmax gave */
    PosencLogits shape; /* their shape */
    PosencBuffer table; /* the vectors of the entries */
    PosencNumbers table_shape; /* their shape, `[1, heads or 1, entries, dim]` */
    uint32_t element; /* type of `table`: `POSENC_F32`, or the plan's */
    uint32_t reserved; /* 0 */
    PosencBuffer z; /* the values, changed in place */
    PosencHeads z_shape; /* their shape, `[batch, queries, heads, dim]` */
    PosencPlaces places; /* positions of queries and keys */
} PosencRelativeValuesCall;

/* One call for the gradient of the probabilities. */
typedef struct PosencRelativeValuesGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeValuesGradCall)` */
    PosencBuffer dz; /* the gradient of the values */
    PosencHeads dz_shape; /* its shape, `[batch, queries, heads, dim]` */
    PosencBuffer table; /* the vectors of the entries */
    PosencNumbers table_shape; /* their shape, `[1, heads or 1, entries, dim]` */
    uint32_t element; /* type of `table`: `POSENC_F32`, or the plan's */
    uint32_t add; /* 1: added to what is there; 0: written */
    PosencBuffer dp; /* the gradient of the probabilities */
    PosencLogits dp_shape; /* its shape */
    PosencPlaces places; /* positions of queries and keys */
} PosencRelativeValuesGradCall;

/* The table whose gradient is wanted. */
typedef struct PosencRelativeTableGradSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeTableGradSpec)` */
    PosencDistances distances; /* as in `PosencRelativeValuesSpec` */
    uint64_t heads; /* heads of the table; 1: all share it */
    uint64_t dim; /* channels of a head */
} PosencRelativeTableGradSpec;

/* One call for the gradient of the table. */
typedef struct PosencRelativeTableGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencRelativeTableGradCall)` */
    PosencBuffer probabilities; /* what the softmax gave */
    PosencLogits shape; /* their shape */
    PosencBuffer dz; /* the gradient of the values */
    PosencHeads dz_shape; /* its shape, `[batch, queries, heads, dim]` */
    PosencPlaces places; /* positions of queries and keys */
    PosencBuffer out; /* `[heads or 1, entries, dim]` of f32, written */
} PosencRelativeTableGradCall;

/* Relative positions on the value side on a device, for one element type. */
typedef struct PosencRelativeValues PosencRelativeValues;

/* Makes a plan: loads the kernels for `element`. */
PosencStatus posenc_relative_values_new(
    const PosencGpu *gpu,
    const PosencRelativeValuesSpec *spec,
    uint32_t element,
    PosencRelativeValues **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_relative_values_on(
    const PosencRelativeValues *values,
    const PosencGpu *gpu,
    PosencRelativeValues **out);

/* Frees it; null is allowed. */
PosencStatus posenc_relative_values_free(PosencRelativeValues *values);

/* Adds the sum over keys of probability and vector to every value, in one kernel. */
PosencStatus posenc_relative_values_add(const PosencRelativeValues *values, const PosencRelativeValuesCall *call);

/* Writes or adds the gradient of the probabilities, in one kernel. */
PosencStatus posenc_relative_values_grad(const PosencRelativeValues *values, const PosencRelativeValuesGradCall *call);

/* The gradient of the table of relative values on a device, for one element type. Its calls follow one another in
   the stream. */
typedef struct PosencRelativeTableGrad PosencRelativeTableGrad;

/* Makes a plan; `max_shape` is the shape of the probabilities of the largest call. */
PosencStatus posenc_relative_table_grad_new(
    const PosencGpu *gpu,
    const PosencRelativeTableGradSpec *spec,
    const PosencLogits *max_shape,
    uint32_t element,
    PosencRelativeTableGrad **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_relative_table_grad_on(
    const PosencRelativeTableGrad *grad,
    const PosencGpu *gpu,
    PosencRelativeTableGrad **out);

/* Frees it; null is allowed. */
PosencStatus posenc_relative_table_grad_free(PosencRelativeTableGrad *grad);

/* Gives the number of gradient values. */
PosencStatus posenc_relative_table_grad_len(const PosencRelativeTableGrad *grad, uint64_t *out);

/* Writes the gradient of the table, in one kernel. */
PosencStatus posenc_relative_table_grad_apply(
    const PosencRelativeTableGrad *grad,
    const PosencRelativeTableGradCall *call);

/* Attention outputs put together. */
typedef struct PosencMergeSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencMergeSpec)` */
    uint64_t reserved; /* 0 */
} PosencMergeSpec;

/* Attention of queries over some of their keys. */
typedef struct PosencState {
    PosencBuffer out; /* probabilities times values; of a call's result no `data`: in place */
    PosencHeads heads; /* its shape */
    PosencBuffer lse; /* f32: natural logarithms of the sums of exponentials; -inf: no keys */
    PosencNumbers lse_shape; /* its shape, `[batch, heads, tokens, 1]` */
} PosencState;

/* One call that puts two states together. */
typedef struct PosencMergeCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencMergeCall)` */
    PosencState a; /* over some of the keys; changed in place if there is no `result.out.data` */
    PosencState b; /* over others */
    PosencState result; /* written: the attention over both; or nothing */
} PosencMergeCall;

/* One call for the gradient of both states. */
typedef struct PosencMergeGradCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencMergeGradCall)` */
    PosencState a; /* as it was put in */
    PosencState b; /* as it was put in */
    PosencState grad; /* gradients of the result and of its log-sum-exps; no `lse.data`: those are 0 */
    PosencState a_grad; /* written: gradients of `a` and of its log-sum-exps */
    PosencState b_grad; /* written: gradients of `b` and of its log-sum-exps */
} PosencMergeGradCall;

/* Attention outputs put together, for one element type. */
typedef struct PosencMerge PosencMerge;

/* Makes a plan: loads the kernels for `element`. */
PosencStatus posenc_merge_new(const PosencGpu *gpu, const PosencMergeSpec *spec, uint32_t element, PosencMerge **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_merge_on(const PosencMerge *merge, const PosencGpu *gpu, PosencMerge **out);

/* Frees it; null is allowed. */
PosencStatus posenc_merge_free(PosencMerge *merge);

/* Puts two states together: the attention over both sets of keys, in one kernel. */
PosencStatus posenc_merge_states(const PosencMerge *merge, const PosencMergeCall *call);

/* Writes the gradient of both states from that of the result, in one kernel. */
PosencStatus posenc_merge_grad(const PosencMerge *merge, const PosencMergeGradCall *call);

#define POSENC_QUERY_SCALE_ONE 0 /* Query scale: 1 everywhere. */
#define POSENC_QUERY_SCALE_LLAMA4 1 /* `1 + factor * ln(1 + floor((position + 1) / context))`: Llama 4 */
#define POSENC_QUERY_SCALE_MISTRAL 2 /* `1 + factor * ln(1 + floor(position / context))`: Mistral */
#define POSENC_QUERY_SCALE_LOG_N 3 /* `max(1, ln(position + 1) / ln(context))` */
#define POSENC_QUERY_SCALE_INKLING 4 /* `1 + factor * ln(max(1, (position + 1) / context))`: Inkling */

#define POSENC_EMBEDDING_NONE 0 /* What a model adds to its tokens' vectors: nothing. */
#define POSENC_EMBEDDING_LEARNED 1 /* a row of a learned table: `learned` */
#define POSENC_EMBEDDING_SINUSOID 2 /* sinusoids: `sinusoid` */

#define POSENC_LOGIT_BIAS_NONE 0 /* What a layer adds to its logits: nothing. */
#define POSENC_LOGIT_BIAS_ALIBI 1 /* a slope for each head: `heads`, `max_bias` */
#define POSENC_LOGIT_BIAS_T5 2 /* buckets of distance: `buckets`, `max_distance`, `has_encoder`, `has_decoder` */
#define POSENC_LOGIT_BIAS_RELATIVE 3 /* products with a table of relative positions: `queries`, `keys`, `states` */

/* Stretches of a sequence: `tokens` with the same position on all axes, one after the other. */
#define POSENC_SPAN_TEXT 0
#define POSENC_SPAN_TOGETHER 1 /* `tokens` at one position */
#define POSENC_SPAN_PATCHES 2 /* an image or a video */
#define POSENC_SPAN_SOUNDING 3 /* a video mixed with `tokens` of its sound */

#define POSENC_MIX_CHUNKS 0 /* How a video and its sound are mixed: by chunks of `chunk` positions (Qwen2.5-Omni). */
#define POSENC_MIX_TIME 1 /* by time (Qwen3-Omni) */

/* Where a sequence goes on after a grid: behind the largest position of the last stretch. */
#define POSENC_AFTER_LARGEST 0
#define POSENC_AFTER_SPACE 1 /* the larger of height and width further on: transformers 5, but for the Omni models */

#define POSENC_GRID_AXIS_TIME 0 /* Coordinate of a patch of an image or a video: its step of time. */
#define POSENC_GRID_AXIS_ROW 1 /* its row, counted from the top */
#define POSENC_GRID_AXIS_COLUMN 2 /* its column, counted from the left */

#define POSENC_GRID_COORDINATE_INDEX 0 /* How an index becomes a position: counted from `first` on. */
#define POSENC_GRID_COORDINATE_CENTER 1 /* the patch's centre, `(2 index + 1) / extent - 1`, in units of `2^-bits` */

#define POSENC_GRID_EXTENT_OWN 0 /* What a centre is divided by: rows for a row, columns for a column. */
#define POSENC_GRID_EXTENT_LONGER 1 /* the larger of rows and columns */
#define POSENC_GRID_EXTENT_SHORTER 2 /* the smaller of rows and columns */

/* A factor on the query that depends on its position: attention temperature. */
typedef struct PosencQueryScale {
    uint32_t kind; /* `POSENC_QUERY_SCALE_...` */
    uint32_t reserved; /* 0 */
    double factor; /* see the kind */
    double context; /* tokens; see the kind */
} PosencQueryScale;

/* What position does in one layer of a model. */
typedef struct PosencLayer {
    uint32_t has_rope; /* 1: the layer rotates; `posenc_rope_of_model` makes its plan */
    uint32_t has_dual_chunk; /* 1: Dual Chunk Attention */
    uint64_t head; /* channels of a query's head */
    uint64_t rotary; /* rotated channels of a head */
    uint64_t offset; /* the first rotated channel */
    double logit_scale; /* multiplies every logit, beside `1 / sqrt(head)` */
    PosencQueryScale query_scale; /* multiplies the query at each position */
    int64_t chunk; /* of Dual Chunk Attention: the longest distance */
    int64_t local; /* of Dual Chunk Attention: how far distances to the chunk before are exact */
} PosencLayer;

/* What a layer of a model adds beside its rotation, and what the model adds to its tokens. */
typedef struct PosencAdded {
    uint32_t embedding; /* `POSENC_EMBEDDING_...`, of the model */
    uint32_t bias; /* `POSENC_LOGIT_BIAS_...`, of the layer */
    PosencLearnedSpec learned; /* see `embedding` */
    uint64_t table_rows; /* rows of the learned table; 0 if the config does not say */
    PosencSinusoidSpec sinusoid; /* see `embedding` */
    uint64_t heads; /* heads of ALiBi */
    double max_bias; /* of ALiBi */
    uint64_t buckets; /* of T5 */
    uint64_t max_distance; /* of T5 */
    uint32_t has_encoder; /* 1: T5's encoder has the buckets of both sides */
    uint32_t has_decoder; /* 1: T5's decoder has those of the past */
    uint32_t has_queries; /* 1: queries, or states of their own, meet the table */
    uint32_t has_keys; /* 1: keys meet the table */
    uint64_t states; /* channels of states in place of the queries (Inkling); 0: the queries */
    PosencDistances queries; /* rows that queries meet; `lookup` lives as long as the model */
    PosencDistances keys; /* rows that keys meet; `lookup` lives as long as the model */
} PosencAdded;

/* A stretch of a sequence. */
typedef struct PosencSpan {
    uint32_t kind; /* `POSENC_SPAN_...` */
    uint32_t mix; /* `POSENC_MIX_...`, of a video with its sound */
    uint64_t tokens; /* of text, or of the sound */
    uint64_t grid[3]; /* patches of time, height and width, before merging */
    uint64_t merge; /* patches of a token along height and along width */
    uint64_t temporal_merge; /* patches of a token along time: 1 */
    double interval; /* positions from one token of time to the next: 1 */
    uint64_t chunk; /* positions of a chunk of `POSENC_MIX_CHUNKS` */
} PosencSpan;

/* How a vision tower counts the patches of its images. Tokens before and after them have position 0 on every axis. */
typedef struct PosencPatchGrid {
    uint32_t axis_count; /* axes of the rope, at most 3; 0: none */
    uint32_t axes[3]; /* `POSENC_GRID_AXIS_...` of each */
    uint32_t coordinate; /* `POSENC_GRID_COORDINATE_...` */
    uint32_t extent; /* `POSENC_GRID_EXTENT_...` of centres */
    int64_t first; /* position of the first index */
    uint32_t bits; /* fraction bits of centres, those of the rope */
    uint32_t reserved; /* 0 */
    uint64_t merge; /* rows and columns of a block of patches that follow one another; 1: patches are in rows */
    uint64_t before; /* tokens before the patches of each grid */
    uint64_t after; /* tokens after them */
} PosencPatchGrid;

/* What a model does with positions. */
typedef struct PosencModel PosencModel;

/* Reads Hugging Face's `config.json`, a text that ends in a zero byte. What is not understood is an error, never a
   default. */
PosencStatus posenc_model_from_hf(const char *config, PosencModel **out);

/* The same for a model whose own type is not known but which rotates as `model_type` does. */
PosencStatus posenc_model_from_hf_as(const char *config, const char *model_type, PosencModel **out);

/* Reads Mistral's `params.json`, a text that ends in a zero byte. */
PosencStatus posenc_model_from_mistral(const char *params, PosencModel **out);

/* Reads the head of the `.gguf` file at `path`. */
PosencStatus posenc_model_from_gguf(const char *path, PosencModel **out);

/* Reads the model at `path`: a folder, its `config.json`, `params.json` or `.gguf`. */
PosencStatus posenc_model_open(const char *path, PosencModel **out);

/* Frees it; null is allowed. */
PosencStatus posenc_model_free(PosencModel *model);

/* Gives the model's type, as its config names it; it lives as long as the handle. */
PosencStatus posenc_model_name(const PosencModel *model, const char **out);

/* Gives what was understood, for a person to read; it lives as long as the handle. */
PosencStatus posenc_model_describe(const PosencModel *model, const char **out);

/* Gives the positions that the config promises; 0 if it promises none. */
PosencStatus posenc_model_context(const PosencModel *model, uint64_t *out);

/* Gives the number of layers; 0 if the config does not count them, and all are alike. */
PosencStatus posenc_model_layers(const PosencModel *model, uint64_t *out);

/* Gives what position does in layer `layer`, counted from 0. */
PosencStatus posenc_model_layer(const PosencModel *model, uint64_t layer, PosencLayer *out);

/* Gives what layer `layer` adds beside its rotation, and what the model adds to its tokens. Tables whose size
   depends on the call (Transformer-XL, windows of towers) are named by `posenc_model_describe` alone. */
PosencStatus posenc_model_added(const PosencModel *model, uint64_t layer, PosencAdded *out);

/* Gives how a vision tower counts the patches of its images; `axis_count` is 0 where tokens have their indices as
   positions, or positions without such a rule, which `posenc_model_describe` notes. */
PosencStatus posenc_model_grid(const PosencModel *model, PosencPatchGrid *out);

/* Gives the tokens of `count` grids of times, rows and columns, `grids[3 * i]`, those before and after the patches
   included. */
PosencStatus posenc_patch_tokens(const PosencPatchGrid *grid, const uint64_t *grids, uint64_t count, uint64_t *out);

/* Writes the positions of `count` grids, one after the other: `ids[axis * stride + token]`, in host memory, where
   `stride` is at least the tokens; gives their number. */
PosencStatus posenc_patch_positions(
    const PosencPatchGrid *grid,
    const uint64_t *grids,
    uint64_t count,
    uint64_t stride,
    int64_t *ids,
    uint64_t *out);

/* Writes the positions of sound in windows of frames on two axes, as MusicFlamingo counts them: `ids[axis * stride +
   frame]`, in host memory, where `stride` is at least `windows * frames`, which it gives. */
PosencStatus posenc_timed_windows(uint64_t windows, uint64_t frames, uint64_t stride, int64_t *ids, uint64_t *out);

/* Gives the tokens of `count` stretches. */
PosencStatus posenc_span_tokens(const PosencSpan *spans, uint64_t count, uint64_t *out);

/* Writes the positions of one sequence of `count` stretches on time, height and width: `ids[axis * stride + token]`,
   in host memory, where `stride` is at least the sequence's tokens; gives the position of the token that follows it. */
PosencStatus posenc_span_positions(
    const PosencSpan *spans,
    uint64_t count,
    uint32_t after,
    uint64_t stride,
    int64_t *ids,
    int64_t *out);

/* Gives the factor on the query at `position`. */
PosencStatus posenc_query_scale_at(const PosencQueryScale *scale, uint64_t position, double *out);

/* Makes the plan of layer `layer` of a model; `length` is the tokens of the longest sequence, the new ones included,
   for scalings that depend on it. In latent attention (DeepSeek) it is the query's: the key's rotary part is a
   tensor of its own, which a call of its own rotates whole, as heads of `rotary` channels. The plan of a layer
   without RoPE rotates nothing. */
PosencStatus posenc_rope_of_model(
    const PosencGpu *gpu,
    const PosencModel *model,
    uint64_t layer,
    uint64_t length,
    uint32_t element,
    PosencRope **out);

/* The same of a `config.json` at once: `posenc_model_from_hf` and `posenc_rope_of_model`. */
PosencStatus posenc_rope_from_hf(
    const PosencGpu *gpu,
    const char *config,
    uint64_t layer,
    uint64_t length,
    uint32_t element,
    PosencRope **out);

/* YaRN's factor on cosine and sine, `attention_factor` of its spec: `0.1 mscale ln(factor) + 1`; 1 up to a factor of
   1. */
double posenc_yarn_mscale(double factor, double mscale);

/* DeepSeek's factor on the logits beside `1 / sqrt(head)`: the square of `posenc_yarn_mscale`. */
double posenc_mla_logit_scale(double factor, double mscale_all_dim);

/* LongRoPE's factor on cosine and sine: `sqrt(1 + ln(factor) / ln(original_context))`; 1 up to a factor of 1. */
double posenc_longrope_attention_factor(double factor, double original_context);

#define POSENC_HEAD_NORM_NONE 0 /* Norms of a head: none. */
#define POSENC_HEAD_NORM_RMS 1 /* by `sqrt(mean(x^2) + eps)` */
#define POSENC_HEAD_NORM_L2 2 /* by `sqrt(sum(x^2) + eps)` */

#define POSENC_NORM_WEIGHT_NONE 0 /* What a norm multiplies by afterwards: nothing. */
#define POSENC_NORM_WEIGHT 1 /* the weight */
#define POSENC_NORM_ONE_PLUS_WEIGHT 2 /* 1 + the weight: Gemma 3, Qwen3-Next */

#define POSENC_NORM_OVER_HEAD 0 /* Channels of one norm: those of a head, with a weight `[dim]`. */
#define POSENC_NORM_OVER_ALL_HEADS 1 /* those of all heads, with a weight `[heads, dim]`: OLMo 2, MiniMax, Wan */

#define POSENC_ROUNDING_ONCE 0 /* Where values are rounded to the element type: at the end alone. */
#define POSENC_ROUNDING_STEPS 1 /* after each step: the bits of separate operations */
/* after each step, and before the norm's weight: Hugging Face's Llama-type norms */
#define POSENC_ROUNDING_BEFORE_WEIGHT 2

/* Rows of a cache: a slot for each token, `page * rows of a page + row`; below 0: not cached. */
#define POSENC_CACHE_SLOTS 0
/* Row `n` of a sequence is row `n % rows of a page` of page `table[sequence, n / rows of a page]`. */
#define POSENC_CACHE_PAGES 1
#define POSENC_CACHE_ROWS 2 /* A page for each sequence: a contiguous cache. */

#define POSENC_STORE_SAME 0 /* What a cache holds: the element type. */
/* eight bits (`e4m3fn`): nearest, ties to even, saturated; a value is the code times a scale */
#define POSENC_STORE_E4M3 1
#define POSENC_STORE_E5M2 2 /* eight bits */
#define POSENC_STORE_INT8 3 /* whole numbers of eight bits, symmetric */

#define POSENC_SCALE_GIVEN 0 /* What codes are multiplied by: one f32, or one for each head. */
#define POSENC_SCALE_DYNAMIC 1 /* an f32 of each token and head, by its largest magnitude: written */
/* the same, in the first four of 16 bytes behind the channels of a head; the shape has as many channels more */
#define POSENC_SCALE_INLINE 2

#define POSENC_TO_CACHE 0 /* Where a result goes beside the cache: nowhere. */
#define POSENC_TO_PLACE 1 /* It takes the place of `x`. */
#define POSENC_TO_OUT 2 /* It goes to `out`. */

/* What is done with queries, keys or values. */
typedef struct PosencBranch {
    uint32_t norm; /* `POSENC_HEAD_NORM_...` */
    uint32_t weight; /* `POSENC_NORM_...` */
    uint32_t over; /* `POSENC_NORM_OVER_...` */
    uint32_t rounding; /* `POSENC_ROUNDING_...` */
    uint32_t bias; /* 1: a bias `[heads, dim]` is added first */
    uint32_t rope; /* 1: pairs are rotated */
    double eps; /* of the norm */
} PosencBranch;

/* Bias, norm, rotation and factor: what to compute. */
typedef struct PosencPrologueSpec {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencPrologueSpec)` */
    PosencRopeSpec rope; /* the rotation, if a branch has one */
    PosencBranch q; /* what is done with queries */
    PosencBranch k; /* what is done with keys */
    PosencBranch v; /* what is done with values */
    PosencQueryScale query_scale; /* factor on queries by their position, zeros: 1 */
    uint32_t rope_first; /* 1: the rotation comes before the norm */
    uint32_t reserved; /* 0 */
} PosencPrologueSpec;

/* What one layer of a model does between projection and attention, beside its rotation. */
typedef struct PosencLayerPrologue {
    PosencBranch q; /* what is done with queries */
    PosencBranch k; /* what is done with keys; in latent attention, with the shared rotary part */
    PosencBranch v; /* what is done with values; in latent attention, with the latent */
    PosencQueryScale query_scale; /* factor on queries by their position */
    uint32_t rope_first; /* 1: the rotation comes before the norm */
    uint32_t gated; /* 1: queries and a gate are interleaved by head, `[heads, 2, dim]` */
    uint32_t latent; /* 1: latent attention */
    uint32_t shares_keys; /* 1: keys and values are those of a layer before */
} PosencLayerPrologue;

/* Queries, keys or values of one call. */
typedef struct PosencProjected {
    PosencBuffer x; /* read; no `data`: there are none */
    PosencHeads heads; /* the shape of `x` */
    PosencBuffer out; /* of `POSENC_TO_OUT`: written */
    PosencHeads out_heads; /* the shape of `out` */
    uint32_t to; /* `POSENC_TO_...` */
    /* of keys and values: 1: they lie in the buffer of `q.x`, whose queries are changed in place; `x` is not read */
    uint32_t packed;
    PosencBuffer weight; /* of the norm: `[dim]`, or `[heads, dim]` over all heads; or no `data` */
    PosencBuffer bias; /* `[heads, dim]`, or no `data` */
} PosencProjected;

/* What is kept of queries, keys or values: `[pages, rows of a page, heads, dim]` in any order of memory, where
   `batch` of a shape counts pages and `tokens` the rows of each. */
typedef struct PosencStored {
    PosencBuffer x; /* elements or codes, written where tokens have a row; no `data`: nothing is kept */
    PosencHeads heads; /* its shape */
    uint32_t store; /* `POSENC_STORE_...` */
    uint32_t scale; /* of codes: `POSENC_SCALE_...` */
    PosencBuffer scales; /* of codes, but of inline scales: f32, above 0 and finite, and so the inverse */
    PosencHeads scale_heads; /* of `POSENC_SCALE_DYNAMIC`: their shape `[pages, rows of a page, heads, 1]` */
} PosencStored;

/* A cache of keys and values. */
typedef struct PosencCache {
    PosencStored k; /* of keys; no `data`: there is no cache */
    PosencStored v; /* of values, of as many pages and rows; no `data`: they are not cached */
    uint32_t rows; /* `POSENC_CACHE_...` */
    uint32_t reserved; /* 0 */
    PosencIds slots; /* slots `[batch, tokens]`, or the table of pages `[sequences, width]` */
    uint64_t width; /* of `POSENC_CACHE_PAGES`: pages of a sequence */
    /* but of slots: the row in its sequence that each token takes, given like positions; below 0: not cached */
    PosencPositions first;
    /* a 32-bit word that becomes 1 by a row outside the cache, whose token is not cached, and by a scale that is not
       above 0 and finite; or no `data`. The CPU refuses both in place of it */
    PosencBuffer flag;
} PosencCache;

/* One call. */
typedef struct PosencPrologueCall {
    uint32_t version; /* `POSENC_ABI` */
    uint32_t size; /* `sizeof(PosencPrologueCall)` */
    PosencProjected q; /* queries */
    PosencProjected k; /* keys */
    PosencProjected v; /* values */
    PosencPositions positions; /* token positions */
    PosencCache cache; /* where keys and values are kept */
    PosencStored q_codes; /* queries in eight bits `[batch, tokens, heads, dim]`, beside or in place of `q.out` */
} PosencPrologueCall;

/* Between a projection and attention, on a device, for one element type. */
typedef struct PosencPrologue PosencPrologue;

/* Makes a plan: uploads the frequencies and loads the kernels for `element`. */
PosencStatus posenc_prologue_new(
    const PosencGpu *gpu,
    const PosencPrologueSpec *spec,
    uint32_t element,
    PosencPrologue **out);

/* Gives what layer `layer` of a model does between projection and attention; refused where the model's norms and
   biases are not known. */
PosencStatus posenc_model_prologue(const PosencModel *model, uint64_t layer, PosencLayerPrologue *out);

/* Makes the plan of layer `layer` of a model: norms, biases, rotation and factor; `length` is the tokens of the
   longest sequence, for scalings that depend on it. */
PosencStatus posenc_prologue_of_model(
    const PosencGpu *gpu,
    const PosencModel *model,
    uint64_t layer,
    uint64_t length,
    uint32_t element,
    PosencPrologue **out);

/* Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That
   stream waits for what the plan's own has been given so far. */
PosencStatus posenc_prologue_on(const PosencPrologue *prologue, const PosencGpu *gpu, PosencPrologue **out);

/* Frees it; null is allowed. */
PosencStatus posenc_prologue_free(PosencPrologue *prologue);

/* Applies bias, norm, rotation and factor to queries, keys and values, and writes the cache, in one kernel. */
PosencStatus posenc_prologue_apply(const PosencPrologue *prologue, const PosencPrologueCall *call);

#ifdef __cplusplus
} /* extern "C" */

template <class T> inline T posenc_init() {
    T t = T();
    t.version = POSENC_ABI;
    t.size = sizeof(T);
    return t;
}
#define POSENC_INIT(type) posenc_init<type>()
#else
/* Begins a spec or a call: PosencRopeCall call = POSENC_INIT(PosencRopeCall); */
#define POSENC_INIT(type) {.version = POSENC_ABI, .size = sizeof(type)}
#endif

#endif /* POSENC_H */
