/* posenc: positional encodings of transformers as CUDA kernels. Written by cbindgen from adapters/c; do not edit.

   One pattern for each operation: a Posenc...Spec says what to compute, posenc_..._new makes a handle of it for one
   element type (POSENC_F32, POSENC_F16, POSENC_BF16), posenc_..._free frees that, and each verb takes the handle and a
   Posenc...Call. The crate's documentation states formulas and accuracy; names are the same.

   - Every function returns a status, 0 for success. posenc_last_error is the sentence to the thread's last other one.
   - A spec and a call begin with `version` and `size`: POSENC_INIT(PosencRopeCall) fills both in, and 0 everywhere else.
     Other versions and sizes are refused, so that a program and a library of different versions cannot misread each other.
     A `scale` or `factor` of 0 is refused too, where it was forgotten: 1 changes nothing.
   - A buffer is an address on the device and the elements that lie there; a shape has an offset and strides in elements.
     Lengths are checked against shapes. Whether so much memory lies there is the caller's word.
   - Everything is checked before anything is launched. A call launches into the stream and returns; it allocates nothing
     and waits for nothing, and can be captured in a graph.
   - Pointers to host memory are null or point to what their types say, for as long as the call; handles come from their
     constructors and were not freed; memory on the device stays until the kernel has run. Several threads may use one
     handle at once unless a function says otherwise. A plan is freed when its stream has no call of it left, and no
     graph that captured one will be launched again.
   - No panic leaves the library. */

#ifndef POSENC_H
#define POSENC_H

#include <stdint.h>

/* The driver's stream: CUstream of cuda.h, cudaStream_t of the runtime. NULL is the default stream. */
typedef struct CUstream_st *PosencStream;

/* Begins a spec or a call: PosencRopeCall call = POSENC_INIT(PosencRopeCall); */
#define POSENC_INIT(type) {.version = POSENC_ABI, .size = sizeof(type)}


/*
 The version of every struct of this header that begins with `version` and `size`.
 */
#define POSENC_ABI 1

/*
 Element types of tensors and tables.
 */
#define POSENC_F32 0

/*
 IEEE half precision
 */
#define POSENC_F16 1

/*
 bfloat16
 */
#define POSENC_BF16 2

/*
 double precision; of timesteps alone
 */
#define POSENC_F64 3

/*
 Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral.
 */
#define POSENC_HALF 0

/*
 Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek; the paper's sinusoid.
 */
#define POSENC_INTERLEAVED 1

/*
 Keys of the future: `-slope * |distance|` on both sides.
 */
#define POSENC_SIDES_SYMMETRIC 0

/*
 `slope * distance`: the future is rewarded.
 */
#define POSENC_SIDES_SIGNED 1

/*
 The first half of the heads sees the past alone, the second half the future alone.
 */
#define POSENC_SIDES_HALVES 2

/*
 KERPLE's kernels: `-p * ln(1 + a * |distance|)`.
 */
#define POSENC_KERPLE_LOG 0

/*
 `-a * |distance|^p`
 */
#define POSENC_KERPLE_POWER 1

/*
 Place of queries or keys: element `i` sits at `start + i`.
 */
#define POSENC_PLACE_FROM 0

/*
 The last query at the last key; of queries alone.
 */
#define POSENC_PLACE_LAST 1

/*
 A position for each, `[batch, n]`, 32 bits.
 */
#define POSENC_PLACE_EACH 2

/*
 Orders of scale, softcap and bias: `softcap(scale * s) + bias`.
 */
#define POSENC_SOFTCAP_THEN_BIAS 0

/*
 `softcap(scale * s + bias)`
 */
#define POSENC_BIAS_THEN_SOFTCAP 1

/*
 `softcap(scale * (s + bias))`
 */
#define POSENC_BIAS_THEN_SCALE 2

/*
 Directions of a grid: time, of videos.
 */
#define POSENC_ALONG_FRAMES 0

/*
 downwards: y
 */
#define POSENC_ALONG_ROWS 1

/*
 to the right: x
 */
#define POSENC_ALONG_COLUMNS 2

/*
 Channels of several axes: the first axis whole, then the second.
 */
#define POSENC_BY_AXIS 0

/*
 The first wave of every axis, then the second.
 */
#define POSENC_BY_WAVE 1

/*
 Rows of the position table: `position + first`.
 */
#define POSENC_ROWS_OFFSET 0

/*
 Tokens whose id is not `padding` are counted from row `first` on; padding reads row `padded`.
 */
#define POSENC_ROWS_KEPT_BY_ID 1

/*
 The same, by the mask.
 */
#define POSENC_ROWS_KEPT_BY_MASK 2

/*
 Norms behind the sum: none.
 */
#define POSENC_NORM_NONE 0

/*
 layer norm: gain and bias
 */
#define POSENC_NORM_LAYER 1

/*
 root mean square: gain
 */
#define POSENC_NORM_RMS 2

/*
 Filters: the two nearest on each axis.
 */
#define POSENC_BILINEAR 0

/*
 The four nearest on each axis, by Keys' cubic.
 */
#define POSENC_BICUBIC 1

/*
 Of an odd number of channels, the last one: is refused.
 */
#define POSENC_ODD_REFUSE 0

/*
 holds 0
 */
#define POSENC_ODD_ZERO 1

/*
 holds the first wave of one more pair
 */
#define POSENC_ODD_LONGER 2

/*
 Frequencies: as the formula says.
 */
#define POSENC_FREQUENCIES_EXACT 0

/*
 rounded to f32
 */
#define POSENC_FREQUENCIES_F32 1

/*
 rounded to f32, then to f16
 */
#define POSENC_FREQUENCIES_F16 2

/*
 rounded to f32, then to bf16
 */
#define POSENC_FREQUENCIES_BF16 3

/*
 Integer types of positions and ids: 32 bits.
 */
#define POSENC_I32 0

/*
 64 bits
 */
#define POSENC_I64 1

/*
 32 bits without sign
 */
#define POSENC_U32 2

/*
 Position kinds: an id for each token, `[axes, batch, tokens]`.
 */
#define POSENC_IDS 0

/*
 One start for each sequence, `[axes, batch]`.
 */
#define POSENC_STARTS 1

/*
 Sequences packed into a batch of one; `indptr` holds `sequences + 1` first tokens, `ids` (or none) their first positions.
 */
#define POSENC_PACKED 2

/*
 Every sequence counts from 0; no ids are read.
 */
#define POSENC_COUNTED 3

/*
 `pairing_out`: a pair is written where it was read.
 */
#define POSENC_SAME 0

/*
 It is written where the other pairing has it; out of place alone.
 */
#define POSENC_OTHER 1

/*
 Angles: exact at every position.
 */
#define POSENC_EXACT 0

/*
 The product of an f32 frequency and an f32 position, as Hugging Face's models compute it.
 */
#define POSENC_HF_COMPAT 1

/*
 The same of given frequencies, a model's `inv_freq`; base and scaling then say nothing.
 */
#define POSENC_GIVEN 2

/*
 Scaling: none.
 */
#define POSENC_SCALING_NONE 0

/*
 `factor`
 */
#define POSENC_SCALING_LINEAR 1

/*
 `factor` is alpha
 */
#define POSENC_SCALING_NTK 2

/*
 `factor`, `low` and `high` (turns over the original context), `original_context`
 */
#define POSENC_SCALING_LLAMA3 3

/*
 `factor`, `original_context`, `high` is beta_fast and `low` is beta_slow
 */
#define POSENC_SCALING_YARN 4

/*
 `divisors`, one for each pair
 */
#define POSENC_SCALING_DIVISORS 5

/*
 Axes: one position a token.
 */
#define POSENC_AXES_ONE 0

/*
 Runs of `axis_sizes` pairs, one ladder of frequencies.
 */
#define POSENC_AXES_SECTIONS 1

/*
 Axes take turns.
 */
#define POSENC_AXES_INTERLEAVED 2

/*
 Runs of `axis_sizes` pairs, each with a ladder of its own.
 */
#define POSENC_AXES_LADDERS 3

/*
 A bias on a device, for one element type of logits.
 */
typedef struct PosencBias PosencBias;

/*
 Gradients of a distance bias on a device, for one element type of logits.
 */
typedef struct PosencDistanceGrad PosencDistanceGrad;

/*
 A flag on the device that kernels raise when an id lies outside its table.
 */
typedef struct PosencFault PosencFault;

/*
 Gradients of FIRE's parameters on a device, for one element type of logits.
 */
typedef struct PosencFireGrad PosencFireGrad;

/*
 A device and a stream on it.
 */
typedef struct PosencGpu PosencGpu;

/*
 A grid's sinusoids on a device, for one element type.
 */
typedef struct PosencGrid PosencGrid;

/*
 Learned tables on a device, for one element type.
 */
typedef struct PosencLearned PosencLearned;

/*
 Gradients of learned tables on a device, for one element type.
 */
typedef struct PosencLearnedGrad PosencLearnedGrad;

/*
 Resampling on a device, for one element type.
 */
typedef struct PosencResample PosencResample;

/*
 RoPE on a device, for one element type.
 */
typedef struct PosencRope PosencRope;

/*
 Sinusoids of positions on a device, for one element type.
 */
typedef struct PosencSinusoid PosencSinusoid;

/*
 Softmax on a device, for one element type.
 */
typedef struct PosencSoftmax PosencSoftmax;

/*
 Sinusoids of times on a device, for one element type.
 */
typedef struct PosencTimestep PosencTimestep;

/*
 xPos on a device, for one element type.
 */
typedef struct PosencXPos PosencXPos;

/*
 0 for success, else one of the constants below.
 */
typedef int32_t PosencStatus;

/*
 T5: a number for each bucket of distances and each head.
 */
typedef struct PosencT5Spec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencT5Spec)`
   */
  uint32_t size;
  /*
   32 in T5
   */
  uint64_t buckets;
  /*
   the distance from which all share the last bucket: 128 in T5
   */
  uint64_t max_distance;
  /*
   heads
   */
  uint64_t heads;
  /*
   1: the future has buckets of its own, as in an encoder
   */
  uint32_t bidirectional;
  /*
   0
   */
  uint32_t reserved;
  /*
   `[buckets, heads]` in host memory; null: zeros until `posenc_bias_set_table`
   */
  const float *table;
} PosencT5Spec;

/*
 The shape of logits `[batch, heads, queries, keys]`; the keys of a row are contiguous.
 */
typedef struct PosencLogits {
  /*
   sequences
   */
  uint64_t batch;
  /*
   heads of each
   */
  uint64_t heads;
  /*
   rows of each
   */
  uint64_t queries;
  /*
   logits of each
   */
  uint64_t keys;
  /*
   first element
   */
  uint64_t offset;
  /*
   elements from one sequence, head and query to the next
   */
  uint64_t strides[3];
} PosencLogits;

/*
 The heads whose slopes have a gradient.
 */
typedef struct PosencSlopesGradSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSlopesGradSpec)`
   */
  uint32_t size;
  /*
   heads
   */
  uint64_t heads;
} PosencSlopesGradSpec;

/*
 Any law of distance: one row of numbers for each head.
 */
typedef struct PosencRowSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencRowSpec)`
   */
  uint32_t size;
  /*
   heads
   */
  uint64_t heads;
  /*
   the distance (key - query) of the first number
   */
  int64_t first;
  /*
   numbers of each head
   */
  uint64_t distances;
  /*
   `[heads, distances]` in host memory; a gradient does not look at them
   */
  const float *values;
  /*
   1: distances outside take the number at the row's end
   */
  uint32_t saturates;
  /*
   1: the key's position takes the place of the distance
   */
  uint32_t key_only;
} PosencRowSpec;

/*
 KERPLE.
 */
typedef struct PosencKerpleSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencKerpleSpec)`
   */
  uint32_t size;
  /*
   `POSENC_KERPLE_...`
   */
  uint32_t kind;
  /*
   0
   */
  uint32_t reserved;
  /*
   heads
   */
  uint64_t heads;
  /*
   `[heads]` in host memory
   */
  const double *p;
  /*
   `[heads]` in host memory
   */
  const double *a;
  /*
   the smallest distance of a call
   */
  int64_t least;
  /*
   the largest distance of a call
   */
  int64_t most;
} PosencKerpleSpec;

/*
 Memory on the device.
 */
typedef struct PosencBuffer {
  /*
   address; 0: there is none, or it is empty
   */
  uint64_t data;
  /*
   elements there
   */
  uint64_t len;
} PosencBuffer;

/*
 Where queries or keys sit, and how many of them each sequence has.
 */
typedef struct PosencPlace {
  /*
   `POSENC_PLACE_...`
   */
  uint32_t kind;
  /*
   0
   */
  uint32_t reserved;
  /*
   of `POSENC_PLACE_FROM`
   */
  int64_t start;
  /*
   of `POSENC_PLACE_EACH`: the positions, 32 bits
   */
  struct PosencBuffer each;
  /*
   the lengths of the sequences, `[batch]`, 32 bits; none: all
   */
  struct PosencBuffer lengths;
} PosencPlace;

/*
 Where queries and keys sit.
 */
typedef struct PosencPlaces {
  /*
   queries
   */
  struct PosencPlace queries;
  /*
   keys
   */
  struct PosencPlace keys;
  /*
   sequences packed into a batch of one, in place of lengths; 0: they are not packed
   */
  uint64_t sequences;
  /*
   their first queries and the end of the last, `[sequences + 1]`, 32 bits
   */
  struct PosencBuffer packed_queries;
  /*
   their first keys and the end of the last, `[sequences + 1]`, 32 bits
   */
  struct PosencBuffer packed_keys;
} PosencPlaces;

/*
 One call.
 */
typedef struct PosencDistanceGradCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencDistanceGradCall)`
   */
  uint32_t size;
  /*
   the gradient of every logit after the bias
   */
  struct PosencBuffer grad;
  /*
   its shape
   */
  struct PosencLogits shape;
  /*
   where queries and keys sit
   */
  struct PosencPlaces places;
  /*
   `[batch, heads, queries]` of f32: those that multiplied the bias; or none
   */
  struct PosencBuffer gates;
  /*
   f32, written, as many as `..._len` says: T5 `[buckets, heads]`, slopes and KERPLE `[2, heads]`, a row
   `[heads, distances]`, FIRE `c`, `threshold` and its four layers in their order
   */
  struct PosencBuffer out;
  /*
   multiplies the sums: 1
   */
  float factor;
  /*
   0
   */
  uint32_t reserved;
} PosencDistanceGradCall;

/*
 FIRE.
 */
typedef struct PosencFireSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencFireSpec)`
   */
  uint32_t size;
  /*
   stretches distances
   */
  double c;
  /*
   the position from which a query is normalised by its own
   */
  double threshold;
  /*
   keeps the normaliser above 0
   */
  double eps;
  /*
   inputs of the second layer
   */
  uint64_t width;
  /*
   heads
   */
  uint64_t heads;
  /*
   `[width]` in host memory
   */
  const double *in_weight;
  /*
   `[width]` in host memory
   */
  const double *in_bias;
  /*
   `[heads, width]` in host memory
   */
  const double *out_weight;
  /*
   `[heads]` in host memory
   */
  const double *out_bias;
  /*
   larger positions and distances are taken as this one
   */
  uint64_t reach;
} PosencFireSpec;

/*
 What to compute.
 */
typedef struct PosencSoftmaxSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSoftmaxSpec)`
   */
  uint32_t size;
  /*
   multiplies the logit
   */
  float scale;
  /*
   the logit's limit; 0: none
   */
  float softcap;
  /*
   in which order they act, and the bias
   */
  uint32_t order;
  /*
   1: a key may lie at most `left` before its query
   */
  uint32_t has_left;
  /*
   see `has_left`
   */
  uint32_t left;
  /*
   1: a key may lie at most `right` after its query; 0 there is a causal softmax
   */
  uint32_t has_right;
  /*
   see `has_right`
   */
  uint32_t right;
  /*
   0
   */
  uint32_t reserved;
} PosencSoftmaxSpec;

/*
 What a softmax and its gradient take beside their logits.
 */
typedef struct PosencSoftmaxInputs {
  /*
   the bias, made for the same element type; null: none
   */
  const struct PosencBias *bias;
  /*
   where queries and keys sit
   */
  struct PosencPlaces places;
  /*
   `[batch, heads, queries]` of f32, multiply the bias; or none
   */
  struct PosencBuffer gates;
  /*
   added last, -inf masks; or none. A gradient does not look at it
   */
  struct PosencBuffer mask;
  /*
   the shape of `mask`: each size but the keys' may be 1
   */
  struct PosencLogits mask_shape;
  /*
   `[heads]` of f32, logits without keys; or none. A gradient does not look at them
   */
  struct PosencBuffer sinks;
} PosencSoftmaxInputs;

/*
 One call.
 */
typedef struct PosencSoftmaxCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSoftmaxCall)`
   */
  uint32_t size;
  /*
   logits
   */
  struct PosencBuffer x;
  /*
   their shape
   */
  struct PosencLogits shape;
  /*
   probabilities; none: in place
   */
  struct PosencBuffer out;
  /*
   their shape
   */
  struct PosencLogits out_shape;
  /*
   bias, places, mask, sinks, gates
   */
  struct PosencSoftmaxInputs inputs;
  /*
   `[batch, heads, queries]` of f32, written: the log-sum-exp; or none
   */
  struct PosencBuffer lse;
} PosencSoftmaxCall;

/*
 One call for the gradients of logits and bias.
 */
typedef struct PosencSoftmaxGradCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSoftmaxGradCall)`
   */
  uint32_t size;
  /*
   what the softmax gave
   */
  struct PosencBuffer probabilities;
  /*
   their shape
   */
  struct PosencLogits probabilities_shape;
  /*
   the gradient of the probabilities
   */
  struct PosencBuffer grad;
  /*
   its shape
   */
  struct PosencLogits grad_shape;
  /*
   the gradient of the logits; none: in place of `grad`
   */
  struct PosencBuffer out;
  /*
   its shape
   */
  struct PosencLogits out_shape;
  /*
   as in the softmax
   */
  struct PosencSoftmaxInputs inputs;
  /*
   the logits, where a softcap needs them
   */
  struct PosencBuffer logits;
  /*
   their shape
   */
  struct PosencLogits logits_shape;
  /*
   written: the gradient of the bias, laid out as that of the logits; or none
   */
  struct PosencBuffer bias_grad;
  /*
   `[batch, heads, queries]` of f32, written: the sum of probability and gradient of each row; or none
   */
  struct PosencBuffer dots;
} PosencSoftmaxGradCall;

/*
 One call for the gradient of the sinks.
 */
typedef struct PosencSinkGradCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSinkGradCall)`
   */
  uint32_t size;
  /*
   `[heads]` of f32, as in the softmax
   */
  struct PosencBuffer sinks;
  /*
   of the softmax
   */
  struct PosencBuffer lse;
  /*
   of its gradient
   */
  struct PosencBuffer dots;
  /*
   `[heads]` of f32, written
   */
  struct PosencBuffer grad;
  /*
   the shape of the logits
   */
  struct PosencLogits shape;
} PosencSinkGradCall;

/*
 ALiBi: the slopes of some of a model's heads.
 */
typedef struct PosencAlibiSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencAlibiSpec)`
   */
  uint32_t size;
  /*
   heads of the whole model
   */
  uint64_t total_heads;
  /*
   first head of this shard
   */
  uint64_t first;
  /*
   heads of this shard
   */
  uint64_t heads;
  /*
   8 in the paper
   */
  double max_bias;
  /*
   multiplies every slope: 1
   */
  double scale;
  /*
   `POSENC_SIDES_...`
   */
  uint32_t sides;
  /*
   1: the key's position takes the place of the distance
   */
  uint32_t key_only;
} PosencAlibiSpec;

/*
 Slopes of the caller, one for the past and one for the future of each head.
 */
typedef struct PosencSlopesSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSlopesSpec)`
   */
  uint32_t size;
  /*
   sequences with slopes of their own; 1: all share the same
   */
  uint64_t batch;
  /*
   heads
   */
  uint64_t heads;
  /*
   `[batch, heads]` in host memory
   */
  const float *left;
  /*
   `[batch, heads]` in host memory; null: as `left`
   */
  const float *right;
  /*
   1: the key's position takes the place of the distance
   */
  uint32_t key_only;
  /*
   0
   */
  uint32_t reserved;
} PosencSlopesSpec;

/*
 Sandwich.
 */
typedef struct PosencSandwichSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSandwichSpec)`
   */
  uint32_t size;
  /*
   heads of the whole model
   */
  uint64_t total_heads;
  /*
   first head of this shard
   */
  uint64_t first;
  /*
   heads of this shard
   */
  uint64_t heads;
  /*
   channels of the sinusoidal embedding: 128 in the paper
   */
  uint64_t width;
  /*
   the smallest distance of a call
   */
  int64_t least;
  /*
   the largest distance of a call
   */
  int64_t most;
} PosencSandwichSpec;

/*
 One call that writes or adds a bias.
 */
typedef struct PosencBiasCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencBiasCall)`
   */
  uint32_t size;
  /*
   written, or added to
   */
  struct PosencBuffer x;
  /*
   the shape of `x`
   */
  struct PosencLogits shape;
  /*
   where queries and keys sit
   */
  struct PosencPlaces places;
} PosencBiasCall;

/*
 One call that takes a T5 table from the device.
 */
typedef struct PosencSetTableCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSetTableCall)`
   */
  uint32_t size;
  /*
   `[buckets, heads]` of f32
   */
  struct PosencBuffer table;
} PosencSetTableCall;

/*
 Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 - shift))`.

 Of positions, of timesteps, and of the axes of a grid.
 */
typedef struct PosencSinusoidSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSinusoidSpec)`
   */
  uint32_t size;
  /*
   channels
   */
  uint64_t dim;
  /*
   `POSENC_INTERLEAVED` (the paper) or `POSENC_HALF`
   */
  uint32_t pairing;
  /*
   1: the cosine comes first
   */
  uint32_t cosine_first;
  /*
   `POSENC_ODD_...`
   */
  uint32_t odd;
  /*
   `POSENC_FREQUENCIES_...`
   */
  uint32_t frequencies;
  /*
   taken off half of `dim` in the exponent: 0 in the paper
   */
  double shift;
  /*
   10000 in the paper
   */
  double max_period;
  /*
   multiplies the position: 1 in the paper
   */
  double scale;
  /*
   added to the position
   */
  int64_t offset;
  /*
   1: the position `padding` gives zeros
   */
  uint32_t has_padding;
  /*
   0
   */
  uint32_t reserved;
  /*
   see `has_padding`; `offset` included
   */
  int64_t padding;
} PosencSinusoidSpec;

/*
 One axis of a grid.
 */
typedef struct PosencAxis {
  /*
   `POSENC_ALONG_FRAMES`, `POSENC_ALONG_ROWS` or `POSENC_ALONG_COLUMNS`
   */
  uint32_t along;
  /*
   0
   */
  uint32_t reserved;
  /*
   of its index; `offset` crops, `scale` stretches
   */
  struct PosencSinusoidSpec sinusoid;
} PosencAxis;

/*
 What to compute: the sinusoids of a grid's axes side by side.
 */
typedef struct PosencGridSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencGridSpec)`
   */
  uint32_t size;
  /*
   `POSENC_BY_AXIS` or `POSENC_BY_WAVE`
   */
  uint32_t blocks;
  /*
   axes
   */
  uint32_t axis_count;
  /*
   in the order of their channels, in host memory
   */
  const struct PosencAxis *axes;
} PosencGridSpec;

/*
 The shape of embeddings `[batch, tokens, dim]`; the channels of a token are contiguous.
 */
typedef struct PosencTokens {
  /*
   sequences
   */
  uint64_t batch;
  /*
   tokens of each
   */
  uint64_t tokens;
  /*
   channels of each token
   */
  uint64_t dim;
  /*
   first element
   */
  uint64_t offset;
  /*
   elements from one sequence and one token to the next
   */
  uint64_t strides[2];
} PosencTokens;

/*
 One call.
 */
typedef struct PosencGridCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencGridCall)`
   */
  uint32_t size;
  /*
   written, or added to
   */
  struct PosencBuffer x;
  /*
   the shape of `x`; its number of tokens is the grid's
   */
  struct PosencTokens tokens;
  /*
   frames, 1 for an image
   */
  uint64_t frames;
  /*
   rows of a frame
   */
  uint64_t rows;
  /*
   columns of a row
   */
  uint64_t columns;
  /*
   multiplies `x` before the grid is added; `posenc_grid_write` does not look at it
   */
  double scale;
} PosencGridCall;

/*
 One call that counts coordinates over a padding mask.
 */
typedef struct PosencGridMaskedCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencGridMaskedCall)`
   */
  uint32_t size;
  /*
   `[batch, rows * columns, dim]`, written
   */
  struct PosencBuffer out;
  /*
   `[batch, rows * columns]` bytes, not 0 for a token of the image
   */
  struct PosencBuffer mask;
  /*
   images
   */
  uint64_t batch;
  /*
   rows of each
   */
  uint64_t rows;
  /*
   columns of each row
   */
  uint64_t columns;
  /*
   1: counts are divided by the last one and multiplied by `scale`
   */
  uint32_t normalize;
  /*
   0
   */
  uint32_t reserved;
  /*
   2 pi in DETR
   */
  double scale;
  /*
   taken off the count: 0 in DETR, 0.5 in Deformable DETR
   */
  double centre;
} PosencGridMaskedCall;

/*
 What to compute: `norm(token[id] * scale + position[row] + type[kind])`.
 */
typedef struct PosencLearnedSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencLearnedSpec)`
   */
  uint32_t size;
  /*
   channels of one row of every table
   */
  uint64_t dim;
  /*
   multiplies token rows: 1, or the root of `dim`
   */
  double scale;
  /*
   `POSENC_ROWS_...`
   */
  uint32_t rows;
  /*
   `POSENC_NORM_...`
   */
  uint32_t norm;
  /*
   see `rows`
   */
  int64_t first;
  /*
   see `rows`
   */
  int64_t padded;
  /*
   see `rows`
   */
  int64_t padding;
  /*
   of the norm
   */
  double eps;
} PosencLearnedSpec;

/*
 The tables of a call, each `[rows, dim]` by its length, or not there.
 */
typedef struct PosencWeights {
  /*
   by token id; without it, the rows of `x` take its place
   */
  struct PosencBuffer token;
  /*
   by the row that the spec gives
   */
  struct PosencBuffer position;
  /*
   by token type
   */
  struct PosencBuffer types;
  /*
   `[dim]`, of the norm; ones without it
   */
  struct PosencBuffer gain;
  /*
   `[dim]`, of the norm; zeros without it
   */
  struct PosencBuffer bias;
} PosencWeights;

/*
 Integers on the device.
 */
typedef struct PosencIds {
  /*
   address; 0: there are none
   */
  uint64_t data;
  /*
   elements there
   */
  uint64_t len;
  /*
   `POSENC_I32`, `POSENC_I64` or `POSENC_U32`
   */
  uint32_t element;
  /*
   0
   */
  uint32_t reserved;
} PosencIds;

/*
 Where the tokens of a call stand.
 */
typedef struct PosencPositions {
  /*
   `POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED`
   */
  uint32_t kind;
  /*
   1: one row of ids for every sequence
   */
  uint32_t shared;
  /*
   the ids, or the starts
   */
  struct PosencIds ids;
  /*
   elements from one axis to the next; 0: they follow one another
   */
  uint64_t axis_stride;
  /*
   `sequences + 1` 32-bit integers, of a packed batch
   */
  struct PosencBuffer indptr;
  /*
   sequences of a packed batch
   */
  uint64_t sequences;
} PosencPositions;

/*
 What the tokens of a call are, each `[batch, tokens]`, or not there.
 */
typedef struct PosencInputs {
  /*
   token ids
   */
  struct PosencIds ids;
  /*
   token types
   */
  struct PosencIds types;
  /*
   bytes: 1 for a token, 0 for padding
   */
  struct PosencBuffer mask;
  /*
   where the tokens stand
   */
  struct PosencPositions positions;
} PosencInputs;

/*
 One call.
 */
typedef struct PosencLearnedCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencLearnedCall)`
   */
  uint32_t size;
  /*
   written; read too if there is no token table
   */
  struct PosencBuffer x;
  /*
   the shape of `x`
   */
  struct PosencTokens tokens;
  /*
   the tables
   */
  struct PosencWeights weights;
  /*
   what the tokens are
   */
  struct PosencInputs inputs;
  /*
   raised when an id lies outside its table; or null. Two calls at once need two of them
   */
  struct PosencFault *fault;
} PosencLearnedCall;

/*
 One call that writes the row of the position table that each token reads.
 */
typedef struct PosencRowsCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencRowsCall)`
   */
  uint32_t size;
  /*
   `[batch, tokens]` of 64-bit integers, written
   */
  struct PosencBuffer rows;
  /*
   sequences
   */
  uint64_t batch;
  /*
   tokens of each
   */
  uint64_t tokens;
  /*
   what the tokens are
   */
  struct PosencInputs inputs;
} PosencRowsCall;

/*
 One call for the gradients of the sum that a norm follows, of gain and of bias.
 */
typedef struct PosencNormGradCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencNormGradCall)`
   */
  uint32_t size;
  /*
   written: the gradient of the sum
   */
  struct PosencBuffer sum;
  /*
   `[dim]`, written: the gradient of the gain; or none
   */
  struct PosencBuffer gain;
  /*
   `[dim]`, written: the gradient of the bias; or none
   */
  struct PosencBuffer bias;
  /*
   written: as many f32 as `posenc_learned_grad_partials` says
   */
  struct PosencBuffer partials;
  /*
   gradient of the result
   */
  struct PosencBuffer grad;
  /*
   what the forward call read in place of token rows; none with a token table
   */
  struct PosencBuffer x;
  /*
   the shape of `sum`, `grad` and `x`
   */
  struct PosencTokens tokens;
  /*
   as in the forward call
   */
  struct PosencWeights weights;
  /*
   as in the forward call
   */
  struct PosencInputs inputs;
  /*
   as in the forward call
   */
  struct PosencFault *fault;
  /*
   1: adds to what is in `gain` and `bias`
   */
  uint32_t accumulate;
  /*
   0
   */
  uint32_t reserved;
} PosencNormGradCall;

/*
 One call for the gradient of a table.
 */
typedef struct PosencTableGradCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencTableGradCall)`
   */
  uint32_t size;
  /*
   `[rows, dim]`, written at the rows that some token reads
   */
  struct PosencBuffer table;
  /*
   rows of the table
   */
  uint64_t rows;
  /*
   of `posenc_learned_grad_table`, written: as many f32 as `posenc_learned_grad_table_partials` says
   */
  struct PosencBuffer partials;
  /*
   gradient of the sum
   */
  struct PosencBuffer grad;
  /*
   the shape of `grad`
   */
  struct PosencTokens tokens;
  /*
   `[batch, tokens]`; `posenc_learned_grad_counted` has none
   */
  struct PosencIds ids;
  /*
   the tokens in the order of their ids, 32 bits without sign, as `posenc_learned_grad_order` writes it
   */
  struct PosencBuffer order;
  /*
   of `posenc_learned_grad_counted`: the row of the first token
   */
  uint64_t first;
  /*
   multiplies the sums: the forward call's scale for the token table, 1 for the others
   */
  double scale;
  /*
   1: the row of the id `skipped` has no gradient
   */
  uint32_t has_skipped;
  /*
   1: added to what is there
   */
  uint32_t accumulate;
  /*
   see `has_skipped`
   */
  int64_t skipped;
} PosencTableGradCall;

/*
 One call that orders tokens by their ids.
 */
typedef struct PosencOrderCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencOrderCall)`
   */
  uint32_t size;
  /*
   `[count]` of 32 bits without sign, written
   */
  struct PosencBuffer order;
  /*
   as `order`: runs that are not merged yet; none up to 1024 ids
   */
  struct PosencBuffer between;
  /*
   `[count]`
   */
  struct PosencIds ids;
  /*
   ids
   */
  uint64_t count;
} PosencOrderCall;

/*
 What to compute.
 */
typedef struct PosencResampleSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencResampleSpec)`
   */
  uint32_t size;
  /*
   rows and columns of the table
   */
  uint64_t from[2];
  /*
   rows and columns of the one that is made
   */
  uint64_t to[2];
  /*
   tokens before the grid, copied
   */
  uint64_t prefix;
  /*
   `POSENC_BILINEAR` or `POSENC_BICUBIC`
   */
  uint32_t filter;
  /*
   1: the filter widens where the grid shrinks
   */
  uint32_t antialias;
  /*
   new over old of rows and columns; 0 and 0: the quotient of the sizes
   */
  double factors[2];
} PosencResampleSpec;

/*
 One call.
 */
typedef struct PosencResampleCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencResampleCall)`
   */
  uint32_t size;
  /*
   `[prefix + from rows * columns, dim]`: read, and written by the gradient
   */
  struct PosencBuffer table;
  /*
   `[prefix + to rows * columns, dim]`: written, and read by the gradient
   */
  struct PosencBuffer resampled;
  /*
   channels
   */
  uint64_t dim;
  /*
   1: the gradient is added to what is there
   */
  uint32_t accumulate;
  /*
   0
   */
  uint32_t reserved;
} PosencResampleCall;

/*
 One call.
 */
typedef struct PosencSinusoidCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencSinusoidCall)`
   */
  uint32_t size;
  /*
   written, or added to
   */
  struct PosencBuffer x;
  /*
   the shape of `x`
   */
  struct PosencTokens tokens;
  /*
   where the tokens stand
   */
  struct PosencPositions positions;
  /*
   multiplies `x` before the sinusoid is added; `posenc_sinusoid_write` does not look at it
   */
  double scale;
} PosencSinusoidCall;

/*
 One call.
 */
typedef struct PosencTimestepCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencTimestepCall)`
   */
  uint32_t size;
  /*
   `[times, dim]`, written
   */
  struct PosencBuffer out;
  /*
   `[times]`
   */
  struct PosencBuffer t;
  /*
   rows
   */
  uint64_t times;
  /*
   the type of `t`: `POSENC_F32` or `POSENC_F64`
   */
  uint32_t t_element;
  /*
   0
   */
  uint32_t reserved;
} PosencTimestepCall;

/*
 What to compute.
 */
typedef struct PosencRopeSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencRopeSpec)`
   */
  uint32_t size;
  /*
   rotated channels of a head, even
   */
  uint64_t rotary;
  /*
   first rotated channel
   */
  uint64_t offset;
  /*
   theta
   */
  double base;
  /*
   multiplies cosine and sine; 1 unless a scaling says otherwise
   */
  double attention_factor;
  /*
   `POSENC_HALF` or `POSENC_INTERLEAVED`
   */
  uint32_t pairing;
  /*
   where a pair is written, `POSENC_SAME` or `POSENC_OTHER`
   */
  uint32_t pairing_out;
  /*
   `POSENC_EXACT`, `POSENC_HF_COMPAT` or `POSENC_GIVEN`
   */
  uint32_t angles;
  /*
   `POSENC_SCALING_...`
   */
  uint32_t scaling;
  /*
   see the scaling
   */
  double factor;
  /*
   see the scaling
   */
  double low;
  /*
   see the scaling
   */
  double high;
  /*
   see the scaling; tokens
   */
  double original_context;
  /*
   divisors of the frequencies, in host memory; null without
   */
  const double *divisors;
  /*
   how many
   */
  uint64_t divisor_count;
  /*
   of `POSENC_GIVEN`: one f32 for each pair, in host memory; null without
   */
  const float *frequencies;
  /*
   `POSENC_AXES_...`
   */
  uint32_t axes;
  /*
   sizes of axes, at most 4
   */
  uint32_t axis_count;
  /*
   pairs of each axis
   */
  uint32_t axis_sizes[4];
} PosencRopeSpec;

/*
 The shape of `[batch, tokens, heads, dim]`; the channels of a head are contiguous.
 */
typedef struct PosencHeads {
  /*
   sequences
   */
  uint64_t batch;
  /*
   tokens of each
   */
  uint64_t tokens;
  /*
   heads of each token
   */
  uint64_t heads;
  /*
   channels of each head
   */
  uint64_t dim;
  /*
   first element
   */
  uint64_t offset;
  /*
   elements from one sequence, token and head to the next
   */
  uint64_t strides[3];
} PosencHeads;

/*
 Queries or keys, and where their rotation goes.
 */
typedef struct PosencOperand {
  /*
   read; no `data`: there are none
   */
  struct PosencBuffer x;
  /*
   the shape of `x`
   */
  struct PosencHeads heads;
  /*
   written; no `data`: `x` is rotated in place
   */
  struct PosencBuffer out;
  /*
   the shape of `out`
   */
  struct PosencHeads out_heads;
} PosencOperand;

/*
 Cosines and sines of the caller, by position: row `p` holds one cosine, and one sine, for each pair.
 */
typedef struct PosencTable {
  /*
   the cosines; no `data`: there is no table, angles come from the spec
   */
  struct PosencBuffer cos;
  /*
   the sines; no `data`: they follow the cosines in each row
   */
  struct PosencBuffer sin;
  /*
   positions that have a row
   */
  uint64_t rows;
  /*
   elements from one row to the next
   */
  uint64_t stride;
  /*
   `POSENC_F32`, or the tensors' type
   */
  uint32_t element;
  /*
   a position without a row gives: 0 the nearest row, 1 NaN
   */
  uint32_t beyond;
  /*
   a 32-bit word that then becomes 1; or no `data`
   */
  struct PosencBuffer beyond_flag;
} PosencTable;

/*
 One call.
 */
typedef struct PosencRopeCall {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencRopeCall)`
   */
  uint32_t size;
  /*
   1: `q.x` and `k.x` are one buffer, which is rotated in place
   */
  uint32_t packed;
  /*
   0 forward, 1 back: the inverse, and the gradient
   */
  uint32_t inverse;
  /*
   queries
   */
  struct PosencOperand q;
  /*
   keys
   */
  struct PosencOperand k;
  /*
   where the tokens stand
   */
  struct PosencPositions positions;
  /*
   cosines and sines in place of the spec's angles
   */
  struct PosencTable table;
} PosencRopeCall;

/*
 What to compute.
 */
typedef struct PosencXPosSpec {
  /*
   `POSENC_ABI`
   */
  uint32_t version;
  /*
   `sizeof(PosencXPosSpec)`
   */
  uint32_t size;
  /*
   the rotation
   */
  struct PosencRopeSpec rope;
  /*
   the offset of zeta: 0.4 in the paper
   */
  double gamma;
  /*
   positions over which a pair shrinks by its zeta: 512 in the paper
   */
  double scale_base;
  /*
   the position where nothing shrinks
   */
  int64_t center;
} PosencXPosSpec;

/*
 Done.
 */
#define POSENC_OK 0

/*
 A pointer is null, a struct has an unknown version or another size, a constant is unknown.
 */
#define POSENC_ARGUMENT 1

/*
 A value, a length or a shape breaks a rule.
 */
#define POSENC_VALUE 2

/*
 There is no driver, no device, or no kernel for it.
 */
#define POSENC_DEVICE 3

/*
 The driver refused a call.
 */
#define POSENC_DRIVER 4

/*
 A fault of this library.
 */
#define POSENC_INTERNAL 5

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Opens device `ordinal` through its primary context (PyTorch's and the runtime's), for launches into `stream`.

 `stream` belongs to that context and outlives the handle and every plan made with it. With `overlap` not 0, kernels may
 start before their predecessor in the stream has ended (programmatic dependent launch, compute capability 9.0 on); they
 wait for its memory themselves.

 # Safety
 `stream` is null or a stream of that context, and `out` is null or points to a pointer.
 */
PosencStatus posenc_gpu_new(uint32_t ordinal,
                            PosencStream stream,
                            uint32_t overlap,
                            struct PosencGpu **out);

/*
 Frees a handle; null is allowed. Plans made with it stay valid.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_gpu_free(struct PosencGpu *gpu);

/*
 Makes a plan for T5's table; `room` is the shape of the largest call.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_t5_new(const struct PosencGpu *gpu,
                                         const struct PosencT5Spec *spec,
                                         const struct PosencLogits *room,
                                         uint32_t element,
                                         struct PosencDistanceGrad **out);

/*
 Makes a plan for slopes; `room` is the shape of the largest call.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_slopes_new(const struct PosencGpu *gpu,
                                             const struct PosencSlopesGradSpec *spec,
                                             const struct PosencLogits *room,
                                             uint32_t element,
                                             struct PosencDistanceGrad **out);

/*
 Makes a plan for a row; `room` is the shape of the largest call. The row's numbers are not looked at.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_row_new(const struct PosencGpu *gpu,
                                          const struct PosencRowSpec *spec,
                                          const struct PosencLogits *room,
                                          uint32_t element,
                                          struct PosencDistanceGrad **out);

/*
 Makes a plan for KERPLE's `p` and `a`, at their present values; `room` is the shape of the largest call.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_kerple_new(const struct PosencGpu *gpu,
                                             const struct PosencKerpleSpec *spec,
                                             const struct PosencLogits *room,
                                             uint32_t element,
                                             struct PosencDistanceGrad **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_free(struct PosencDistanceGrad *grad);

/*
 Gives the numbers of the gradient.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_len(const struct PosencDistanceGrad *grad,
                                      uint64_t *out);

/*
 Writes the gradient of the parameters, in one kernel; two calls of one plan must not run at the same time.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_distance_grad_apply(const struct PosencDistanceGrad *grad,
                                        const struct PosencDistanceGradCall *call);

/*
 Makes a plan for FIRE's parameters, at their present values; `room` is the shape of the largest call.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fire_grad_new(const struct PosencGpu *gpu,
                                  const struct PosencFireSpec *spec,
                                  const struct PosencLogits *room,
                                  uint32_t element,
                                  struct PosencFireGrad **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fire_grad_free(struct PosencFireGrad *grad);

/*
 Gives the numbers of the gradient.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fire_grad_len(const struct PosencFireGrad *grad,
                                  uint64_t *out);

/*
 Writes the gradient of the parameters, in one kernel; two calls of one plan must not run at the same time.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fire_grad_apply(const struct PosencFireGrad *grad,
                                    const struct PosencDistanceGradCall *call);

/*
 Makes a plan: loads the kernels for `element` and takes the memory that calls need.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_softmax_new(const struct PosencGpu *gpu,
                                const struct PosencSoftmaxSpec *spec,
                                uint32_t element,
                                struct PosencSoftmax **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_softmax_free(struct PosencSoftmax *softmax);

/*
 The softmax of every row, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_softmax_apply(const struct PosencSoftmax *softmax,
                                  const struct PosencSoftmaxCall *call);

/*
 The gradients of the logits, and of the bias if it is wanted, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_softmax_grad(const struct PosencSoftmax *softmax,
                                 const struct PosencSoftmaxGradCall *call);

/*
 The gradient of the sinks, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_softmax_sink_grad(const struct PosencSoftmax *softmax,
                                      const struct PosencSinkGradCall *call);

/*
 Makes a plan of ALiBi: uploads the slopes and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_alibi_new(const struct PosencGpu *gpu,
                                   const struct PosencAlibiSpec *spec,
                                   uint32_t element,
                                   struct PosencBias **out);

/*
 Makes a plan of slopes of the caller.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_slopes_new(const struct PosencGpu *gpu,
                                    const struct PosencSlopesSpec *spec,
                                    uint32_t element,
                                    struct PosencBias **out);

/*
 Makes a plan of T5's bias.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_t5_new(const struct PosencGpu *gpu,
                                const struct PosencT5Spec *spec,
                                uint32_t element,
                                struct PosencBias **out);

/*
 Makes a plan of any law of distance.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_row_new(const struct PosencGpu *gpu,
                                 const struct PosencRowSpec *spec,
                                 uint32_t element,
                                 struct PosencBias **out);

/*
 Makes a plan of KERPLE's bias.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_kerple_new(const struct PosencGpu *gpu,
                                    const struct PosencKerpleSpec *spec,
                                    uint32_t element,
                                    struct PosencBias **out);

/*
 Makes a plan of Sandwich's bias.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_sandwich_new(const struct PosencGpu *gpu,
                                      const struct PosencSandwichSpec *spec,
                                      uint32_t element,
                                      struct PosencBias **out);

/*
 Makes a plan of FIRE's bias.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_fire_new(const struct PosencGpu *gpu,
                                  const struct PosencFireSpec *spec,
                                  uint32_t element,
                                  struct PosencBias **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_free(struct PosencBias *bias);

/*
 Writes the bias of every query and key, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_write(const struct PosencBias *bias,
                               const struct PosencBiasCall *call);

/*
 Adds the bias to logits in place, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_bias_add(const struct PosencBias *bias,
                             const struct PosencBiasCall *call);

/*
 Takes a new T5 table from the device, in one kernel; the plan was made without one.

 # Safety
 The rules at the top; no other call uses `bias` at the same time.
 */
PosencStatus posenc_bias_set_table(struct PosencBias *bias,
                                   const struct PosencSetTableCall *call);

/*
 Gives the numbers of a plan on the device, f32, to be read or trained in place: 0 the row `[heads, distances]` or the
 slopes of the past, 1 those of the future. They live as long as the plan.

 # Safety
 The rules at the top; no other call uses `bias` at the same time.
 */
PosencStatus posenc_bias_numbers(struct PosencBias *bias,
                                 uint32_t which,
                                 struct PosencBuffer *out);

/*
 Makes a plan: uploads the channels and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_grid_new(const struct PosencGpu *gpu,
                             const struct PosencGridSpec *spec,
                             uint32_t element,
                             struct PosencGrid **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_grid_free(struct PosencGrid *grid);

/*
 Writes the grid's table, once for every sequence, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_grid_write(const struct PosencGrid *grid,
                               const struct PosencGridCall *call);

/*
 `x = x * scale + grid` in place, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_grid_add(const struct PosencGrid *grid,
                             const struct PosencGridCall *call);

/*
 Writes a table for each image whose coordinates are counted over a padding mask, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_grid_write_masked(const struct PosencGrid *grid,
                                      const struct PosencGridMaskedCall *call);

/*
 Makes a plan: loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_new(const struct PosencGpu *gpu,
                                const struct PosencLearnedSpec *spec,
                                uint32_t element,
                                struct PosencLearned **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_free(struct PosencLearned *learned);

/*
 Gathers, adds and normalises, in one kernel. A row whose id lies outside its table becomes NaN.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_gather(const struct PosencLearned *learned,
                                   const struct PosencLearnedCall *call);

/*
 Writes the row of the position table that each token reads, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_rows(const struct PosencLearned *learned,
                                 const struct PosencRowsCall *call);

/*
 Makes a flag that is down.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fault_new(const struct PosencGpu *gpu,
                              struct PosencFault **out);

/*
 Frees a flag; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_fault_free(struct PosencFault *fault);

/*
 Waits for the stream and takes the flag down; `POSENC_VALUE`, with the first token and its table, if it was up.

 # Safety
 The rules at the top; no other call uses `fault` at the same time.
 */
PosencStatus posenc_fault_check(struct PosencFault *fault);

/*
 Makes a plan: loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_new(const struct PosencGpu *gpu,
                                     const struct PosencLearnedSpec *spec,
                                     uint32_t element,
                                     struct PosencLearnedGrad **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_free(struct PosencLearnedGrad *grad);

/*
 Gives the f32 numbers of the partial sums of `posenc_learned_grad_norm` for a shape.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_partials(const struct PosencLearnedGrad *grad,
                                          const struct PosencTokens *tokens,
                                          uint64_t *out);

/*
 Gives the f32 numbers of the partial sums of `posenc_learned_grad_table` for a shape.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_table_partials(const struct PosencLearnedGrad *grad,
                                                const struct PosencTokens *tokens,
                                                uint64_t *out);

/*
 The gradient of the sum from that of the normalised result, in one kernel; with gain or bias in two.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_norm(const struct PosencLearnedGrad *grad,
                                      const struct PosencNormGradCall *call);

/*
 The gradient of a position table whose positions are counted, a sum over the batch, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_counted(const struct PosencLearnedGrad *grad,
                                         const struct PosencTableGradCall *call);

/*
 Writes the tokens in the order of their ids, in one kernel up to 1024 of them.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_order(const struct PosencLearnedGrad *grad,
                                       const struct PosencOrderCall *call);

/*
 The gradient of a table by ids, in two kernels.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_learned_grad_table(const struct PosencLearnedGrad *grad,
                                       const struct PosencTableGradCall *call);

/*
 Makes a plan: uploads the weights and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_resample_new(const struct PosencGpu *gpu,
                                 const struct PosencResampleSpec *spec,
                                 uint32_t element,
                                 struct PosencResample **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_resample_free(struct PosencResample *resample);

/*
 Resamples a table, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_resample_write(const struct PosencResample *resample,
                                   const struct PosencResampleCall *call);

/*
 The gradient of the table from that of the resampled one, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_resample_grad(const struct PosencResample *resample,
                                  const struct PosencResampleCall *call);

/*
 Makes a plan: uploads the frequencies and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_sinusoid_new(const struct PosencGpu *gpu,
                                 const struct PosencSinusoidSpec *spec,
                                 uint32_t element,
                                 struct PosencSinusoid **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_sinusoid_free(struct PosencSinusoid *sinusoid);

/*
 Writes sinusoids, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_sinusoid_write(const struct PosencSinusoid *sinusoid,
                                   const struct PosencSinusoidCall *call);

/*
 `x = x * scale + sinusoid` in place, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_sinusoid_add(const struct PosencSinusoid *sinusoid,
                                 const struct PosencSinusoidCall *call);

/*
 Makes a plan: uploads the frequencies and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_timestep_new(const struct PosencGpu *gpu,
                                 const struct PosencSinusoidSpec *spec,
                                 uint32_t element,
                                 struct PosencTimestep **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_timestep_free(struct PosencTimestep *timestep);

/*
 Writes one row for each time, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_timestep_write(const struct PosencTimestep *timestep,
                                   const struct PosencTimestepCall *call);

/*
 Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).

 # Safety
 The rules at the top.
 */
PosencStatus posenc_rope_new(const struct PosencGpu *gpu,
                             const struct PosencRopeSpec *spec,
                             uint32_t element,
                             struct PosencRope **out);

/*
 Makes the plan of layer `layer` of a model from its `config.json` (Hugging Face), a text that ends in a zero byte.

 `length` is the tokens of the longest sequence, for scalings that depend on it.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_rope_from_hf(const struct PosencGpu *gpu,
                                 const char *config,
                                 uint64_t layer,
                                 uint64_t length,
                                 uint32_t element,
                                 struct PosencRope **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_rope_free(struct PosencRope *rope);

/*
 Rotates queries, and keys if there are any, in one kernel.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_rope_rotate(const struct PosencRope *rope,
                                const struct PosencRopeCall *call);

/*
 Makes a plan: uploads the frequencies and factors and loads the kernels for `element`.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_xpos_new(const struct PosencGpu *gpu,
                             const struct PosencXPosSpec *spec,
                             uint32_t element,
                             struct PosencXPos **out);

/*
 Frees a plan; null is allowed.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_xpos_free(struct PosencXPos *xpos);

/*
 Rotates and scales queries, or keys, or both, in one kernel. A call has no table.

 # Safety
 The rules at the top.
 */
PosencStatus posenc_xpos_rotate(const struct PosencXPos *xpos,
                                const struct PosencRopeCall *call);

/*
 The sentence to the last status of this thread that was not 0; empty if there was none. It stays until the thread's next
 call that fails.
 */
const char *posenc_last_error(void);

/*
 Major version times 10000, minor times 100, patch.
 */
uint32_t posenc_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* POSENC_H */
