"""RoPE of queries and keys, in bf16: ours and everybody's."""

from candle import Kernels
from case import Case
from machine import need, version

MODELS = [("llama-3-8b", 32, 8, 128), ("llama-3-70b-tp8", 8, 1, 128), ("llama-3-70b", 64, 8, 128)]
TOKENS = [1, 8, 64, 512, 2048, 8192, 32768]
BASE = 500_000.0
# Small enough that an f32 angle is right within bf16's rounding: peers are not to lose by their angles here.
MOST_POSITION = 4096


def rotate_half(torch, x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class Rope(Case):
    """Queries and keys [tokens, heads, dim], their positions, and what a peer may have ready beforehand."""

    room = "rotate"

    def __init__(self, machine, model, tokens):
        super().__init__(machine)
        torch = self.torch
        name, self.q_heads, self.k_heads, self.dim = model
        self.tokens = tokens
        self.name = f"rope {name} {tokens}"
        # The least that must move, in place.
        self.bytes = 4 * tokens * (self.q_heads + self.k_heads) * self.dim + 8 * tokens
        device = machine.device
        self.positions = torch.randint(MOST_POSITION, (tokens,), device=device, generator=machine.generator(tokens))
        frequency = BASE ** (-torch.arange(0, self.dim, 2, device=device, dtype=torch.float64) / self.dim)
        self.angles = self.positions[:, None].double() * frequency
        table = torch.arange(MOST_POSITION, device=device, dtype=torch.float64)[:, None] * frequency
        self.cache = torch.cat((table.cos(), table.sin()), dim=-1).float()
        self.cos = torch.cat((self.angles, self.angles), dim=-1).cos().to(torch.bfloat16)
        self.sin = torch.cat((self.angles, self.angles), dim=-1).sin().to(torch.bfloat16)

    def make(self, generator):
        return tuple(
            self.machine.random(generator, self.tokens, heads, self.dim) for heads in (self.q_heads, self.k_heads)
        )

    def wanted(self, *tensors):
        """Errors are shares of |a| + |b| of a pair."""
        torch, out = self.torch, []
        for x in tensors:
            a, b = x.double().chunk(2, dim=-1)
            cos, sin = self.angles.cos()[:, None], self.angles.sin()[:, None]
            size = a.abs() + b.abs()
            want = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
            out.append((want, torch.cat((size, size), dim=-1)))
        return out

    def ours(self):
        c = self.c

        def call(q, k):
            spec = c.RopeSpec(rotary=self.dim, base=BASE, attention_factor=1.0)
            rope = self.machine.plan("rope", lambda gpu: c.rope_new(gpu, spec, c.BF16))
            with self.machine.lend() as lend:
                operand = lambda x, heads: c.Operand(x=lend(x), heads=c.heads(self.tokens, heads, self.dim))
                ids = c.Ids(data=lend(self.positions).data, len=self.tokens, element=c.I64)
                queries, keys = operand(q, self.q_heads), operand(k, self.k_heads)
                c.rope_rotate(rope, c.RopeCall(q=queries, k=keys, positions=c.Positions(kind=c.IDS, ids=ids)))
            return q, k

        return self.release(), call

    def function(self):
        torch = self.torch

        def call(q, k):
            cos, sin = self.cos[:, None], self.sin[:, None]
            return q * cos + rotate_half(torch, q) * sin, k * cos + rotate_half(torch, k) * sin

        return call

    def eager(self):
        return self.torch_release(), self.function()

    def compiled(self):
        return self.torch_release(), self.machine.compile(self.function())

    def transformers(self):
        llama = need("transformers.models.llama.modeling_llama")
        cos, sin = self.cos[None], self.sin[None]

        def call(q, k):
            # Its layout is [batch, heads, tokens, dim]; views cost nothing.
            q, k = (x[None].transpose(1, 2) for x in (q, k))
            return tuple(x.transpose(1, 2)[0] for x in llama.apply_rotary_pos_emb(q, k, cos, sin))

        return version("transformers"), call

    def liger(self):
        rope = self.machine.kernels("liger_kernel.transformers.rope")
        cos, sin = self.cos[None].contiguous(), self.sin[None].contiguous()

        def call(q, k):
            q, k = (x[None].transpose(1, 2) for x in (q, k))
            return tuple(x.transpose(1, 2)[0] for x in rope.liger_rotary_pos_emb(q, k, cos, sin))

        return version("liger_kernel"), call

    def flashinfer_cache(self):
        flashinfer = self.machine.kernels("flashinfer")

        def call(q, k):
            q_flat, k_flat = q.view(self.tokens, -1), k.view(self.tokens, -1)
            flashinfer.apply_rope_with_cos_sin_cache_inplace(
                self.positions, q_flat, k_flat, self.dim, self.cache, is_neox=True
            )
            return q, k

        return version("flashinfer-python"), call

    def flashinfer_on_the_fly(self):
        flashinfer = self.machine.kernels("flashinfer")
        positions = self.positions.int()

        def call(q, k):
            flashinfer.apply_rope_pos_ids_inplace(q, k, positions, interleave=False, rope_theta=BASE)
            return q, k

        return version("flashinfer-python"), call

    def vllm(self):
        operations = self.machine.kernels("vllm._custom_ops")
        cache = self.cache.to(self.torch.bfloat16)

        def call(q, k):
            q_flat, k_flat = q.view(self.tokens, -1), k.view(self.tokens, -1)
            operations.rotary_embedding(self.positions, q_flat, k_flat, self.dim, cache, True)
            return q, k

        return version("vllm"), call

    def xformers(self):
        rope = self.machine.kernels("xformers.ops.rope_padded").rope_padded
        masks = need("xformers.ops.fmha.attn_bias")
        tokens, torch = self.tokens, self.torch
        bias = masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            q_seqlen=[tokens], kv_padding=tokens, kv_seqlen=[tokens]
        )
        value = torch.zeros(1, tokens, self.k_heads, self.dim, device=self.machine.device, dtype=torch.bfloat16)
        cache_k, cache_v = torch.empty_like(value), torch.empty_like(value)

        def call(q, k):
            # It writes keys and values to a cache, so it moves more.
            out = rope(
                q[None], k[None], value, cache_k, cache_v, bias, theta=BASE, seqpos=self.positions, adjacents=False
            )
            return out[0], cache_k[0]

        return version("xformers"), call

    def candle(self):
        kernels = Kernels(self.machine)
        cos, sin = (table[:, : self.dim // 2].contiguous() for table in (self.cos, self.sin))
        outputs = {}

        def call(q, k):
            # Out of place, one tensor a launch; the memory is there before.
            out = []
            for x in (q, k):
                if x.shape not in outputs:
                    outputs[x.shape] = self.torch.empty_like(x)
                out.append(kernels.rope_thd(x, cos, sin, outputs[x.shape]))
            return tuple(out)

        return kernels.release, call

    def peers(self):
        return {
            "posenc": self.ours,
            "torch eager": self.eager,
            "torch.compile": self.compiled,
            "transformers": self.transformers,
            "liger": self.liger,
            "flashinfer cos_sin_cache": self.flashinfer_cache,
            "flashinfer pos_ids": self.flashinfer_on_the_fly,
            "vllm": self.vllm,
            "xformers rope_padded": self.xformers,
            "candle": self.candle,
        }


def cases(machine, tokens):
    if machine.checks:
        return [lambda: Rope(machine, ("checked", 3, 2, 16), 5)]
    return [lambda model=model, n=n: Rope(machine, model, n) for model in MODELS for n in tokens or TOKENS]
