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
 Position kinds: an id for each token, `[axes, batch, tokens]`.
 */
#define POSENC_IDS 0

/*
 One start for each sequence, `[axes, batch]`.
 */
#define POSENC_STARTS 1

/*
 Sequences packed into a batch of one; `indptr` holds `sequences + 1` first tokens, `ids` (or null) their first positions.
 */
#define POSENC_PACKED 2

/*
 A device and a stream on it.
 */
typedef struct PosencGpu PosencGpu;

/*
 RoPE on a device, for one element type.
 */
typedef struct PosencRope PosencRope;

/*
 0 for success, else one of the constants below.
 */
typedef int32_t PosencStatus;

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
   `POSENC_IDS`, `POSENC_STARTS` or `POSENC_PACKED`
   */
  uint32_t position_kind;
  /*
   `POSENC_I32`, `POSENC_I64` or `POSENC_U32`
   */
  uint32_t position_type;
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
   not 0: the table below is used in place of the spec's angles
   */
  uint32_t by_table;
  /*
   device address of `sequences + 1` 32-bit integers
   */
  uint64_t indptr;
  /*
   sequences of a packed batch
   */
  uint64_t sequences;
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
