"""Biases and the softmax that consumes them, in bf16: alone, its gradient, and inside attention, forward and back.

ALiBi is causal and its slopes are fixed; T5's bias has a table that is learned. Peers that cannot make a bias are given
it, dense, beforehand.
"""

import ctypes
import math

from candle import Kernels
from case import Case
from machine import Missing, need

# batch, heads, queries, keys: rows of 1k to 32k keys, and a step of a decode.
SHAPES = [(1, 32, 1024, 1024), (1, 32, 512, 4096), (1, 32, 128, 32768), (16, 32, 1, 8192)]
DIM = 64
BUCKETS, REACH = 32, 128


def buckets(torch, distance):
    """T5's bidirectional buckets, as Hugging Face's models compute them."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    n = distance.abs()
    far = exact + (torch.log(n.float() / exact) / math.log(REACH / exact) * (half - exact)).long()
    far = torch.minimum(far, torch.full_like(far, half - 1))
    return (distance > 0).long() * half + torch.where(n < exact, n, far)


class Softmax(Case):
    """`softmax(scale * x + bias)` of logits that are there, out of place."""

    room = "attend"

    def __init__(self, machine, kind, shape):
        super().__init__(machine)
        torch = self.torch
        self.kind, (self.batch, self.heads, self.queries, self.keys) = kind, shape
        self.shape, self.causal = shape, kind == "alibi"
        self.scale = 0.125 if self.causal else 1.0
        self.name = f"{self.title} {kind} {'x'.join(map(str, shape))}"
        device = machine.device
        # The last query at the last key.
        first = self.keys - self.queries
        self.distance = (
            torch.arange(self.keys, device=device) - first - torch.arange(self.queries, device=device)[:, None]
        )
        generator = machine.generator(7)
        if self.causal:
            self.slopes = 2.0 ** (
                -8.0 * torch.arange(1, self.heads + 1, device=device, dtype=torch.float64) / self.heads
            )
            bias = -self.slopes[:, None, None] * self.distance.abs()
            self.dense = bias.masked_fill(self.distance > 0, -torch.inf)
        else:
            self.table = torch.randn(BUCKETS, self.heads, device=device, generator=generator)
            self.bucket = buckets(torch, self.distance)
            self.dense = self.table.double()[self.bucket].permute(2, 0, 1)
        self.bias = self.dense.to(torch.bfloat16)[None]
        self.dense = self.dense[None]
        self.bytes = self.moved * math.prod(shape)

    title, moved = "softmax", 4

    def make(self, generator):
        return (self.machine.random(generator, *self.shape),)

    def logits(self, x):
        return x.double() * self.scale + self.dense

    def wanted(self, x):
        """Errors are shares of a row's largest probability."""
        p = self.torch.softmax(self.logits(x), dim=-1)
        return [(p, p.amax(dim=-1, keepdim=True).expand_as(p))]

    # Ours.

    def our_bias(self):
        c = self.c

        def make(gpu):
            if self.causal:
                spec = c.AlibiSpec(total_heads=self.heads, heads=self.heads, max_bias=8.0, scale=1.0)
                return c.bias_alibi_new(gpu, spec, c.BF16)
            values = (ctypes.c_float * self.table.numel())(*self.table.flatten().tolist())
            spec = c.T5Spec(buckets=BUCKETS, max_distance=REACH, heads=self.heads, bidirectional=1)
            spec.table = ctypes.addressof(values)
            return c.bias_t5_new(gpu, spec, c.BF16)

        return self.machine.plan(("bias", self.name), make)

    def our_softmax(self):
        c = self.c
        spec = c.SoftmaxSpec(scale=self.scale, has_right=int(self.causal))
        return self.machine.plan(("softmax", self.name), lambda gpu: c.softmax_new(gpu, spec, c.BF16))

    def places(self):
        c = self.c
        return c.Places(queries=c.Place(kind=c.PLACE_BOTTOM_RIGHT), keys=c.Place(kind=c.PLACE_COUNTED))

    def apply(self, x, out):
        c, shape = self.c, self.c.logits(*self.shape)
        inputs = c.Inputs(bias=self.our_bias(), places=self.places())
        with self.machine.lend() as lend:
            call = c.SoftmaxCall(x=lend(x), shape=shape, inputs=inputs)
            if out is not x:
                call.out, call.out_shape = lend(out), shape
            c.softmax_apply(self.our_softmax(), call)
        return out

    def ours(self):
        out = self.torch.empty(self.shape, device=self.machine.device, dtype=self.torch.bfloat16)
        return self.release(), lambda x: (self.apply(x, out),)

    # Theirs.

    def unfused(self, x):
        return (self.torch.softmax(x * self.scale + self.bias, dim=-1),)

    def eager(self):
        return self.torch_release(), self.unfused

    def compiled(self):
        return self.torch_release(), self.machine.compile(self.unfused)

    def compiled_law(self):
        """Its bias is made in the kernel: from distances, or from the table."""
        torch = self.torch
        if self.causal:
            slopes = self.slopes.float()[:, None, None]

            def call(x):
                z = x.float() * self.scale - slopes * self.distance.abs()
                return (torch.softmax(z.masked_fill(self.distance > 0, -torch.inf), dim=-1).to(x.dtype),)
        else:

            def call(x):
                bias = self.table[self.bucket].permute(2, 0, 1)
                return (torch.softmax(x.float() * self.scale + bias, dim=-1).to(x.dtype),)

        return self.torch_release(), self.machine.compile(call)

    def candle(self):
        """Its softmax kernel behind PyTorch's scale and bias: candle adds with kernels of its own, as slow at best."""
        kernels = Kernels(self.machine)
        out = self.torch.empty(self.shape, device=self.machine.device, dtype=self.torch.bfloat16)
        return kernels.release, lambda x: (kernels.softmax(x * self.scale + self.bias, out),)

    def peers(self):
        return {
            "posenc": self.ours,
            "torch eager, dense bias": self.eager,
            "torch.compile, dense bias": self.compiled,
            "torch.compile, its law": self.compiled_law,
            "candle softmax, dense bias": self.candle,
        }


class SoftmaxGrad(Softmax):
    """The gradient of the logits, and of T5's table, from the probabilities and their gradient."""

    title, moved = "softmax gradient", 6
    # The table's gradient is summed from gradients of logits that were rounded.
    tolerance = {"posenc": 2.0**-7, "peer": 2.0**-5}

    def make(self, generator):
        x = self.machine.random(generator, *self.shape)
        p = self.torch.softmax(self.logits(x), dim=-1).to(self.torch.bfloat16)
        return p, self.machine.random(generator, *self.shape)

    def wanted(self, p, dp):
        p, dp = p.double(), dp.double()
        dz = p * (dp - (p * dp).sum(dim=-1, keepdim=True))
        size = (p * dp).abs().amax(dim=-1, keepdim=True).expand_as(dz)
        if self.causal:
            return [(dz * self.scale, size)]
        return [(dz * self.scale, size), (self.by_bucket(dz), self.by_bucket((p * dp).abs()) + 1e-9)]

    def by_bucket(self, dz):
        sums = dz.new_zeros(BUCKETS, self.heads)
        by_place = dz.sum(dim=0).permute(1, 2, 0).reshape(-1, self.heads)
        return sums.index_add(0, self.bucket.flatten(), by_place)

    def grad(self, p, dp, out, table):
        c, shape = self.c, self.c.logits(*self.shape)
        inputs = c.Inputs(bias=self.our_bias(), places=self.places())
        with self.machine.lend() as lend:
            call = c.SoftmaxGradCall(probabilities=lend(p), probabilities_shape=shape, grad=lend(dp), grad_shape=shape)
            call.inputs = inputs
            if out is not dp:
                call.out, call.out_shape = lend(out), shape
            c.softmax_grad(self.our_softmax(), call)
            if table is not None:
                # T5 has no scale: the gradient of the logits is that of the bias.
                spec = c.T5Spec(buckets=BUCKETS, max_distance=REACH, heads=self.heads, bidirectional=1)
                make = lambda gpu: c.distance_grad_t5_new(gpu, spec, shape, c.BF16)
                plan = self.machine.plan(("table", self.name), make)
                sums = c.DistanceGradCall(grad=lend(out), shape=shape, places=self.places(), factor=1.0)
                sums.out = lend(table)
                c.distance_grad_apply(plan, sums)

    def ours(self):
        torch, device = self.torch, self.machine.device
        out = torch.empty(self.shape, device=device, dtype=torch.bfloat16)
        table = None if self.causal else torch.zeros(BUCKETS, self.heads, device=device)

        def call(p, dp):
            self.grad(p, dp, out, table)
            return (out,) if self.causal else (out, table)

        return self.release(), call

    def unfused(self, p, dp):
        dz = self.torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
        if self.causal:
            return (dz * self.scale,)
        return dz, self.by_bucket(dz.float())

    def peers(self):
        return {"posenc": self.ours, "torch eager": self.eager, "torch.compile": self.compiled}


class Attention(Softmax):
    """`softmax(scale * q k + bias) v`; with gradients, those of q, k, v and T5's table too."""

    title, with_grad = "attention", False
    # Probabilities are rounded before PyTorch multiplies them.
    tolerance = {"posenc": 2.0**-6, "peer": 2.0**-5}

    def __init__(self, machine, kind, shape):
        super().__init__(machine, kind, shape)
        # q and the result, k and v: nobody who fuses has to write logits.
        self.bytes = 4 * DIM * self.batch * self.heads * (self.queries + self.keys) * (3 if self.with_grad else 1)
        self.backward = SoftmaxGrad(machine, kind, shape)

    def make(self, generator):
        random = lambda n: self.machine.random(generator, self.batch, self.heads, n, DIM)
        q, k, v = random(self.queries), random(self.keys), random(self.keys)
        return (q * (1.0 if self.causal else DIM**-0.5), k, v) + ((random(self.queries),) if self.with_grad else ())

    def parameters(self, dtype=None):
        """T5's table, to be learned."""
        return () if self.causal else (self.table.to(dtype or self.table.dtype).clone(),)

    def wanted(self, q, k, v, *grad):
        torch = self.torch
        leaves = [x.double() for x in (q, k, v)]
        table = self.parameters(torch.float64)
        bias = self.dense if self.causal else table[0].requires_grad_(self.with_grad)[self.bucket].permute(2, 0, 1)
        leaves = [x.requires_grad_(self.with_grad) for x in leaves]
        p = torch.softmax(leaves[0] @ leaves[1].transpose(-1, -2) * self.scale + bias, dim=-1)
        out = p @ leaves[2]
        # Errors are shares of the largest number of their kind: a gradient is a sum with cancellation.
        whole = lambda x: x.detach().abs().max().clamp(min=1e-9).expand_as(x)
        results = [(out.detach(), (p @ leaves[2].abs()).detach() + whole(out) / 8)]
        if self.with_grad:
            gradients = torch.autograd.grad(out, [*leaves, *table], grad[0].double())
            results += [(gradient, whole(gradient)) for gradient in gradients]
        return results

    def finish(self, attend, table=()):
        """A call of `attend(q, k, v, *table)`; with gradients, through autograd."""
        if not self.with_grad:
            return lambda q, k, v: (attend(q, k, v, *table),)

        def call(q, k, v, grad):
            leaves = [x.detach().requires_grad_() for x in (q, k, v, *table)]
            out = attend(*leaves)
            return (out, *self.torch.autograd.grad(out, leaves, grad))

        return call

    def ours(self):
        torch, backward = self.torch, self.backward

        class Fused(torch.autograd.Function):
            @staticmethod
            def forward(context, q, k, v, *table):
                p = torch.matmul(q, k.transpose(-1, -2))
                self.apply(p, p)
                context.save_for_backward(q, k, v, p)
                return torch.matmul(p, v)

            @staticmethod
            def backward(context, grad):
                q, k, v, p = context.saved_tensors
                dz = torch.matmul(grad, v.transpose(-1, -2))
                table = [] if self.causal else [torch.empty(BUCKETS, self.heads, device=q.device)]
                backward.grad(p, dz, dz, table[0] if table else None)
                transposed = dz.transpose(-1, -2)
                return torch.matmul(dz, k), torch.matmul(transposed, q), torch.matmul(p.transpose(-1, -2), grad), *table

        return self.release(), self.finish(lambda *x: Fused.apply(*x), self.parameters())

    def dense_of(self, table):
        return self.bias if self.causal else table[0][self.bucket].permute(2, 0, 1)[None].to(self.torch.bfloat16)

    def attend_unfused(self, q, k, v, *table):
        z = q @ k.transpose(-1, -2) * self.scale + self.dense_of(table)
        return self.torch.softmax(z, dim=-1) @ v

    def eager(self):
        return self.torch_release(), self.finish(self.attend_unfused, self.parameters())

    def compiled(self):
        return self.torch_release(), self.finish(self.machine.compile(self.attend_unfused), self.parameters())

    def sdpa(self):
        attention = self.torch.nn.functional.scaled_dot_product_attention

        def attend(q, k, v, *table):
            return attention(q, k, v, attn_mask=self.dense_of(table).expand(self.shape), scale=self.scale)

        return self.torch_release(), self.finish(attend, self.parameters())

    def flex(self):
        if self.machine.checks and self.with_grad:
            raise Missing("missing: FlexAttention has no gradient on the CPU")
        flex = need("torch.nn.attention.flex_attention")
        first = self.keys - self.queries
        mask = None
        if self.causal:
            slopes = self.slopes.float()
            score = lambda score, b, h, q, k: score - slopes[h] * (q + first - k)
            seen = lambda b, h, q, k: k <= q + first
            mask = flex.create_block_mask(seen, None, None, self.queries, self.keys, device=self.machine.device)
        else:
            # A row of biases by distance, made from the table: an index in the kernel in place of a logarithm.
            reach = self.torch.arange(1 - self.queries - first, self.keys, device=self.machine.device)
            row = buckets(self.torch, reach)
            score = None
        compiled = self.machine.compile(flex.flex_attention)

        def attend(q, k, v, *table):
            own = score
            if not self.causal:
                values = table[0][row]
                own = lambda score, b, h, q, k: score + values[k - q + self.queries - 1, h]
            return compiled(q, k, v, score_mod=own, block_mask=mask, scale=self.scale)

        return self.torch_release(), self.finish(attend, self.parameters())

    def peers(self):
        return {
            "posenc and torch.matmul": self.ours,
            "torch eager": self.eager,
            "torch.compile": self.compiled,
            "SDPA, dense bias": self.sdpa,
            "FlexAttention": self.flex,
        }


class AttentionGrad(Attention):
    title, with_grad = "attention with gradients", True


def cases(machine, tokens):
    shapes = [(2, 4, 5, 9)] if machine.checks else [s for s in SHAPES if not tokens or s[3] in tokens]
    return [
        lambda kind=kind, shape=shape, comparison=comparison: comparison(machine, kind, shape)
        for shape in shapes
        for kind in ("alibi", "t5")
        for comparison in (Softmax, SoftmaxGrad, Attention, AttentionGrad)
        # A step of a decode has no gradient.
        if shape[2] > 1 or comparison in (Softmax, Attention)
    ]
