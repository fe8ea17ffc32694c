/* posenc: positional encodings of transformers as CUDA kernels. Written by cbindgen from adapters/c/src; do not edit. */

#ifndef POSENC_H
#define POSENC_H

#include <stdint.h>

/* The driver's stream: CUstream of cuda.h, cudaStream_t of the runtime. NULL is the default stream. */
typedef struct CUstream_st *PosencStream;


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
 Integer types of positions: 32 bits.
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
 The version of `PosencSoftmaxSpec` in this header.
 */
#define POSENC_SOFTMAX_SPEC_VERSION 1

/*
 The version of `PosencSoftmaxCall` in this header.
 */
#define POSENC_SOFTMAX_CALL_VERSION 1

/*
 Bias: nothing is added.
 */
#define POSENC_BIAS_NONE 0

/*
 ALiBi with the paper's slopes for `heads`.
 */
#define POSENC_BIAS_ALIBI 1

/*
 T5: `values` is the table `[buckets, heads]` of relative attention biases.
 */
#define POSENC_BIAS_T5 2

/*
 Any law of distance: `values` is `[heads, distances]` from the distance `first` on.
 */
#define POSENC_BIAS_ROW 3

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
 The version of `PosencSinusoidSpec` in this header.
 */
#define POSENC_SINUSOID_SPEC_VERSION 1

/*
 The version of `PosencSinusoidCall` in this header.
 */
#define POSENC_SINUSOID_CALL_VERSION 1

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
 Position kinds: an id for each token, `[axes, batch, tokens]`.
 */
#define POSENC_IDS 0

/*
 One start for each sequence, `[axes, batch]`.
 */
#define POSENC_STARTS 1

/*
 Sequences packed into a batch of one; `indptr` holds `sequences + 1` first tokens, `ids` (or 0) their first positions.
 */
#define POSENC_PACKED 2

/*
 Every sequence counts from 0; no ids are read.
 */
#define POSENC_COUNTED 3

/*
 The version of `PosencRopeSpec` in this header.
 */
#define POSENC_ROPE_SPEC_VERSION 1

/*
 The version of `PosencRopeCall` in this header.
 */
#define POSENC_ROPE_CALL_VERSION 1

/*
 Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral.
 */
#define POSENC_HALF 0

/*
 Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek.
 */
#define POSENC_INTERLEAVED 1

/*
 `pairing_out`: where it was read.
 */
#define POSENC_SAME 2

/*
 Angles: exact at every position.
 */
#define POSENC_EXACT 0

/*
 The product of an f32 frequency and an f32 position, as Hugging Face's models compute it.
 */
#define POSENC_HF_COMPAT 1

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
 A device and a stream on it.
 */
typedef struct PosencGpu PosencGpu;

/*
 RoPE on a device, for one element type.
 */
typedef struct PosencRope PosencRope;

/*
 Sinusoids on a device, for one element type.
 */
typedef struct PosencSinusoid PosencSinusoid;

/*
 Softmax and bias on a device, for one element type.
 */
typedef struct PosencSoftmax PosencSoftmax;

/*
 0 for success, else one of the constants below.
 */
typedef int32_t PosencStatus;

/*
 What to compute: `softmax(softcap(scale * logit) + bias)`.
 */
typedef struct PosencSoftmaxSpec {
  /*
   `POSENC_SOFTMAX_SPEC_VERSION`
   */
  uint32_t version;
  /*
   `sizeof(PosencSoftmaxSpec)`
   */
  uint32_t size;
  /*
   `POSENC_BIAS_...`
   */
  uint32_t bias;
  /*
   not 0: keys of the future are masked
   */
  uint32_t causal;
  /*
   multiplies the logit
   */
  float scale;
  /*
   the logit's limit; 0: none
   */
  float softcap;
  /*
   heads of the bias
   */
  uint64_t heads;
  /*
   see the bias, in host memory
   */
  const float *values;
  /*
   how many
   */
  uint64_t value_count;
  /*
   the first distance of a row
   */
  int64_t first;
  /*
   not 0: distances outside a row take the value at its end
   */
  uint32_t saturates;
  /*
   T5: whether the future has buckets of its own
   */
  uint32_t bidirectional;
  /*
   T5: buckets, and the distance from which all share the last one
   */
  uint64_t buckets;
  /*
   see `buckets`
   */
  uint64_t max_distance;
} PosencSoftmaxSpec;

/*
 Logits `[batch, heads, queries, keys]` on the device; keys are contiguous.
 */
typedef struct PosencLogits {
  /*
   device address; 0: there is none
   */
  uint64_t data;
  /*
   elements there
   */
  uint64_t len;
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
 Where queries or keys sit.
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
   device address of the positions
   */
  uint64_t each;
  /*
   elements there
   */
  uint64_t each_len;
  /*
   device address of the lengths of the sequences, `[batch]`, 32 bits; 0: all
   */
  uint64_t lengths;
} PosencPlace;

/*
 One call.
 */
typedef struct PosencSoftmaxCall {
  /*
   `POSENC_SOFTMAX_CALL_VERSION`
   */
  uint32_t version;
  /*
   `sizeof(PosencSoftmaxCall)`
   */
  uint32_t size;
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
   logits
   */
  struct PosencLogits logits;
  /*
   probabilities; `data` 0: in place
   */
  struct PosencLogits out;
  /*
   where queries sit
   */
  struct PosencPlace query_places;
  /*
   where keys sit
   */
  struct PosencPlace key_places;
  /*
   device address of `[batch, heads, queries]` f32 for the log-sum-exp; 0: not wanted
   */
  uint64_t lse;
  /*
   device address of `[heads]` f32, logits without keys; 0: none
   */
  uint64_t sinks;
} PosencSoftmaxCall;

/*
 Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 - shift))`.
 */
typedef struct PosencSinusoidSpec {
  /*
   `POSENC_SINUSOID_SPEC_VERSION`
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
   not 0: the cosine comes first
   */
  uint32_t cosine_first;
  /*
   `POSENC_ODD_...`
   */
  uint32_t odd;
  /*
   not 0: the position `padding` gives zeros
   */
  uint32_t has_padding;
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
   see `has_padding`
   */
  int64_t padding;
} PosencSinusoidSpec;

/*
 Where the tokens of a call stand.
 */
typedef struct PosencPositions {
  /*
   `POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED`
   */
  uint32_t kind;
  /*
   `POSENC_I32`, `POSENC_I64` or `POSENC_U32`
   */
  uint32_t element;
  /*
   device address of the ids, or of the starts
   */
  uint64_t ids;
  /*
   elements there
   */
  uint64_t ids_len;
  /*
   elements from one axis to the next; 0: they follow one another
   */
  uint64_t axis_stride;
  /*
   not 0: one row of ids for every sequence
   */
  uint32_t shared;
  /*
   0
   */
  uint32_t reserved;
  /*
   device address of `sequences + 1` 32-bit integers
   */
  uint64_t indptr;
  /*
   sequences of a packed batch
   */
  uint64_t sequences;
} PosencPositions;

/*
 One call on a tensor `[batch, tokens, dim]`.
 */
typedef struct PosencSinusoidCall {
  /*
   `POSENC_SINUSOID_CALL_VERSION`
   */
  uint32_t version;
  /*
   `sizeof(PosencSinusoidCall)`
   */
  uint32_t size;
  /*
   sequences
   */
  uint64_t batch;
  /*
   tokens of each
   */
  uint64_t tokens;
  /*
   device address of the tensor
   */
  uint64_t data;
  /*
   elements there
   */
  uint64_t len;
  /*
   first element
   */
  uint64_t offset;
  /*
   elements from one sequence and one token to the next
   */
  uint64_t strides[2];
  /*
   where the tokens stand
   */
  struct PosencPositions positions;
  /*
   0: the sinusoids are written; else `x = x * scale + sinusoid`
   */
  uint32_t add;
  /*
   0
   */
  uint32_t reserved;
  /*
   see `add`
   */
  double scale;
} PosencSinusoidCall;

/*
 What to compute.
 */
typedef struct PosencRopeSpec {
  /*
   `POSENC_ROPE_SPEC_VERSION`
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
   where a pair is written, `POSENC_SAME` or the other pairing; out of place alone
   */
  uint32_t pairing_out;
  /*
   `POSENC_EXACT` or `POSENC_HF_COMPAT`
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
 Queries or keys: an address on the device, and the sizes and strides of `[batch, tokens, heads, dim]`.
 */
typedef struct PosencHeads {
  /*
   device address of the buffer; 0: there is none
   */
  uint64_t data;
  /*
   elements that the buffer holds
   */
  uint64_t len;
  /*
   heads of each token
   */
  uint64_t heads;
  /*
   first element
   */
  uint64_t offset;
  /*
   elements from one sequence, token and head to the next; channels are contiguous
   */
  uint64_t strides[3];
} PosencHeads;

/*
 One call.
 */
typedef struct PosencRopeCall {
  /*
   `POSENC_ROPE_CALL_VERSION`
   */
  uint32_t version;
  /*
   `sizeof(PosencRopeCall)`
   */
  uint32_t size;
  /*
   sequences
   */
  uint64_t batch;
  /*
   tokens of each
   */
  uint64_t tokens;
  /*
   channels of a head
   */
  uint64_t dim;
  /*
   queries
   */
  struct PosencHeads q;
  /*
   rotated queries; `data` 0: in place
   */
  struct PosencHeads q_out;
  /*
   keys; `data` 0: there are none
   */
  struct PosencHeads k;
  /*
   rotated keys; `data` 0: in place
   */
  struct PosencHeads k_out;
  /*
   not 0: `q` and `k` are parts of one buffer, `q.data`, which is rotated in place; `k.data` is the same
   */
  uint32_t packed;
  /*
   0 forward, 1 back: the inverse, and the gradient
   */
  uint32_t inverse;
  /*
   where the tokens stand
   */
  struct PosencPositions positions;
  /*
   not 0: the table below is used in place of the spec's angles
   */
  uint32_t by_table;
  /*
   0
   */
  uint32_t reserved;
  /*
   device address of the cosines, by row
   */
  uint64_t cos;
  /*
   elements there
   */
  uint64_t cos_len;
  /*
   device address of the sines; 0: they follow the cosines in each row
   */
  uint64_t sin;
  /*
   elements there
   */
  uint64_t sin_len;
  /*
   positions that have a row
   */
  uint64_t table_rows;
  /*
   elements from one row to the next
   */
  uint64_t table_stride;
  /*
   `POSENC_F32`, or the tensors' type
   */
  uint32_t table_type;
  /*
   a position without a row gives: 0 the nearest row, 1 NaN
   */
  uint32_t beyond;
  /*
   device address of a 32-bit word that then becomes 1; or 0
   */
  uint64_t beyond_flag;
} PosencRopeCall;

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
 `gpu` is null or comes from `posenc_gpu_new` and was not freed.
 */
PosencStatus posenc_gpu_free(struct PosencGpu *gpu);

/*
 Makes a plan: uploads slopes or a row of biases, loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`,
 `POSENC_BF16`), and takes the memory that calls need.

 # Safety
 Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
 */
PosencStatus posenc_softmax_new(const struct PosencGpu *gpu,
                                const struct PosencSoftmaxSpec *spec,
                                uint32_t element,
                                struct PosencSoftmax **out);

/*
 Frees a plan; null is allowed. Synchronise the stream first.

 # Safety
 `softmax` is null or comes from its constructor and was not freed.
 */
PosencStatus posenc_softmax_free(struct PosencSoftmax *softmax);

/*
 The softmax of every row.

 # Safety
 `softmax` comes from its constructor, `call` is null or points to what its type says, and each device address holds as
 many elements as the call says until the kernel has run.
 */
PosencStatus posenc_softmax_apply(const struct PosencSoftmax *softmax,
                                  const struct PosencSoftmaxCall *call);

/*
 Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).

 # Safety
 Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
 */
PosencStatus posenc_sinusoid_new(const struct PosencGpu *gpu,
                                 const struct PosencSinusoidSpec *spec,
                                 uint32_t element,
                                 struct PosencSinusoid **out);

/*
 Frees a plan; null is allowed. Synchronise the stream first.

 # Safety
 `sinusoid` is null or comes from its constructor and was not freed.
 */
PosencStatus posenc_sinusoid_free(struct PosencSinusoid *sinusoid);

/*
 Writes sinusoids, or adds them, in one kernel.

 # Safety
 `sinusoid` comes from its constructor, `call` is null or points to what its type says, and each device address holds as
 many elements as the call says until the kernel has run.
 */
PosencStatus posenc_sinusoid_run(const struct PosencSinusoid *sinusoid,
                                 const struct PosencSinusoidCall *call);

/*
 Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).

 # Safety
 Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
 */
PosencStatus posenc_rope_new(const struct PosencGpu *gpu,
                             const struct PosencRopeSpec *spec,
                             uint32_t element,
                             struct PosencRope **out);

/*
 Makes the plan of layer `layer` of a model from its `config.json` (Hugging Face), a text that ends in a zero byte.

 `length` is the tokens of the longest sequence, for scalings that depend on it.

 # Safety
 Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
 */
PosencStatus posenc_rope_from_hf(const struct PosencGpu *gpu,
                                 const char *config,
                                 uint64_t layer,
                                 uint64_t length,
                                 uint32_t element,
                                 struct PosencRope **out);

/*
 Frees a plan; null is allowed. Launched calls are not waited for: their kernels need nothing of it but its tables, so
 synchronise the stream first.

 # Safety
 `rope` is null or comes from a constructor and was not freed.
 */
PosencStatus posenc_rope_free(struct PosencRope *rope);

/*
 Rotates queries, and keys if there are any, in one kernel.

 # Safety
 `rope` comes from a constructor, `call` is null or points to what its type says, and each device address holds as many
 elements as the call says until the kernel has run.
 */
PosencStatus posenc_rope_rotate(const struct PosencRope *rope,
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
