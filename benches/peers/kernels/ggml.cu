// ggml's RoPE names what it launches; its softmax has templates of the number of keys.
#include "src/ggml-cuda/rope.cu"
#include "src/ggml-cuda/softmax.cu"
