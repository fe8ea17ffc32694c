"""Embeddings, in bf16: sinusoids, grids, timesteps, learned tables and norms with their gradients, resampled tables."""

import ctypes
import math

from case import Case
from machine import need, version

TOKENS = [512, 8192, 65536]
DIM, VOCABULARY, BASE = 1024, 50257, 10_000.0


class Embedding(Case):
    room = "embed"

    def ids(self, count, below):
        generator = self.machine.generator(3)
        return self.torch.randint(below, (count,), device=self.machine.device, generator=generator)

    def sizes(self, machine, tokens):
        self.tokens, self.dim = tokens, 24 if machine.checks else DIM
        self.vocabulary = 37 if machine.checks else VOCABULARY

    def frequencies(self, dim):
        exponent = -self.torch.arange(0, dim, 2, device=self.machine.device, dtype=self.torch.float64) / dim
        return BASE**exponent

    def waves(self, positions, dim):
        """Sines and cosines side by side."""
        angles = positions.double()[:, None] * self.frequencies(dim)
        return self.torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)

    def peers(self):
        torch = self.torch_release()
        return {
            "posenc": self.ours,
            "torch eager": lambda: (torch, self.function),
            "torch.compile": lambda: (torch, self.machine.compile(self.function)),
        }


class Added(Embedding):
    """Waves that are added: from a table made beforehand, or made in the call."""

    def peers(self):
        torch = self.torch_release()
        return {
            "posenc": self.ours,
            "torch eager, its table": lambda: (torch, self.from_table),
            "torch.compile, its table": lambda: (torch, self.machine.compile(self.from_table)),
            "torch.compile, sines made": lambda: (torch, self.machine.compile(self.made)),
        }


class SinusoidAdd(Added):
    """The paper's sinusoid is added to [batch, tokens, dim] in place."""

    def __init__(self, machine, tokens):
        super().__init__(machine)
        self.sizes(machine, tokens)
        self.batch, self.rows = (2, tokens // 2) if tokens < 1024 else (8, tokens // 8)
        self.name = f"sinusoid add {self.batch}x{self.rows}x{self.dim}"
        self.bytes = 4 * self.batch * self.rows * self.dim
        self.positions = self.torch.arange(self.rows, device=machine.device)
        self.table = self.waves(self.positions, self.dim)
        self.rounded = self.table.to(self.torch.bfloat16)

    def make(self, generator):
        return (self.machine.random(generator, self.batch, self.rows, self.dim),)

    def wanted(self, x):
        return [(x.double() + self.table, x.double().abs() + 1.0)]

    def ours(self):
        c = self.c
        spec = c.SinusoidSpec(dim=self.dim, pairing=c.INTERLEAVED, max_period=BASE, scale=1.0)

        def call(x):
            plan = self.machine.plan("sinusoid", lambda gpu: c.sinusoid_new(gpu, spec, c.BF16))
            shape = c.tokens(self.batch, self.rows, self.dim)
            with self.machine.lend() as lend:
                counted = c.Positions(kind=c.COUNTED)
                c.sinusoid_add(plan, c.SinusoidCall(x=lend(x), tokens=shape, positions=counted, scale=1.0))
            return (x,)

        return self.release(), call

    def from_table(self, x):
        return (x + self.rounded[self.positions],)

    def made(self, x):
        angles = self.positions.float()[:, None] * self.frequencies(self.dim).float()
        return ((x.float() + self.torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)).to(x.dtype),)


class GridAdd(Added):
    """MAE's and DiT's grid, [sin x, cos x, sin y, cos y], is added to [batch, side * side, dim] in place."""

    def __init__(self, machine, tokens):
        super().__init__(machine)
        self.sizes(machine, tokens)
        torch = self.torch
        self.side = 3 if machine.checks else 16
        self.batch = max(tokens // self.side**2, 2)
        self.name = f"grid add {self.batch}x{self.side}x{self.side}x{self.dim}"
        self.bytes = 4 * self.batch * self.side**2 * self.dim
        index = torch.arange(self.side**2, device=machine.device)
        self.places = index % self.side, index // self.side
        self.table = self.grid(torch.float64)
        self.rounded = self.table.to(torch.bfloat16)

    def grid(self, dtype):
        frequencies = self.frequencies(self.dim // 2).to(dtype)
        angles = [place.to(dtype)[:, None] * frequencies for place in self.places]
        return self.torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)

    def make(self, generator):
        return (self.machine.random(generator, self.batch, self.side**2, self.dim),)

    def wanted(self, x):
        return [(x.double() + self.table, x.double().abs() + 1.0)]

    def plan(self, gpu):
        c = self.c
        sinusoid = c.SinusoidSpec(dim=self.dim // 2, pairing=c.HALF, odd=c.ODD_REFUSE, max_period=BASE, scale=1.0)
        axes = (c.Axis * 2)(*(c.Axis(along=along, sinusoid=sinusoid) for along in (c.ALONG_COLUMNS, c.ALONG_ROWS)))
        spec = c.GridSpec(blocks=c.BY_AXIS, axis_count=len(axes), axes=ctypes.addressof(axes))
        return c.grid_new(gpu, spec, c.BF16)

    def ours(self):
        c = self.c

        def call(x):
            plan = self.machine.plan("grid", self.plan)
            with self.machine.lend() as lend:
                arguments = c.GridCall(x=lend(x), tokens=c.tokens(self.batch, self.side**2, self.dim), scale=1.0)
                arguments.frames, arguments.rows, arguments.columns = 1, self.side, self.side
                c.grid_add(plan, arguments)
            return (x,)

        return self.release(), call

    def from_table(self, x):
        return (x + self.rounded,)

    def made(self, x):
        return ((x.float() + self.grid(self.torch.float32)).to(x.dtype),)


class Timestep(Embedding):
    """Timesteps as diffusion models embed them, [times, dim], from f32."""

    def __init__(self, machine, times):
        super().__init__(machine)
        self.times, self.dim = times, 24 if machine.checks else 320
        self.name = f"timestep {times}x{self.dim}"
        self.bytes = times * (2 * self.dim + 4)

    def make(self, generator):
        return (self.torch.rand(self.times, device=self.machine.device, generator=generator) * 1000.0,)

    def wanted(self, t):
        angles = t.double()[:, None] * self.frequencies(self.dim)
        want = self.torch.cat((angles.cos(), angles.sin()), dim=-1)
        return [(want, self.torch.ones_like(want))]

    def ours(self):
        c, torch = self.c, self.torch
        spec = c.SinusoidSpec(dim=self.dim, pairing=c.HALF, cosine_first=1, odd=c.ODD_ZERO, max_period=BASE, scale=1.0)
        out = torch.empty(self.times, self.dim, device=self.machine.device, dtype=torch.bfloat16)

        def call(t):
            plan = self.machine.plan("timestep", lambda gpu: c.timestep_new(gpu, spec, c.BF16))
            with self.machine.lend() as lend:
                arguments = c.TimestepCall(out=lend(out), t=lend(t), t_element=c.F32)
                arguments.tokens = c.tokens(1, self.times, self.dim)
                c.timestep_write(plan, arguments)
            return (out,)

        return self.release(), call

    def function(self, t):
        half = self.dim // 2
        exponent = -math.log(BASE) / half * self.torch.arange(half, device=t.device, dtype=self.torch.float32)
        angles = t[:, None] * exponent.exp()
        return (self.torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.torch.bfloat16),)

    def diffusers(self):
        embeddings = need("diffusers.models.embeddings")

        def call(t):
            made = embeddings.get_timestep_embedding(t, self.dim, flip_sin_to_cos=True, downscale_freq_shift=0)
            return (made.to(self.torch.bfloat16),)

        return version("diffusers"), call

    def peers(self):
        return {**super().peers(), "diffusers": self.diffusers}


class Learned(Embedding):
    """Token and position rows, as in GPT-2; with a norm, types and layer norm too, as in BERT."""

    def __init__(self, machine, tokens, norm):
        super().__init__(machine)
        self.sizes(machine, tokens)
        torch, dim, self.norm = self.torch, self.dim, norm
        self.name = f"token + position{' + type + layer norm' if norm else ''} {tokens}x{dim}"
        # Rows of the token table are read once each; those of the others stay in the cache.
        self.bytes = 4 * tokens * dim + 8 * tokens
        generator = machine.generator(5)
        self.id, self.type = self.ids(tokens, self.vocabulary), self.ids(tokens, 2)
        self.token = machine.random(generator, self.vocabulary, dim)
        self.position = machine.random(generator, tokens, dim)
        self.kinds, self.gain, self.shift = (machine.random(generator, *shape) for shape in ((2, dim), (dim,), (dim,)))
        self.out = torch.empty(tokens, dim, device=machine.device, dtype=torch.bfloat16)

    def make(self, _):
        return (self.out.clone(),)

    def wanted(self, _):
        v = self.token.double()[self.id] + self.position.double()
        if not self.norm:
            return [(v, v.abs() + 1.0)]
        v = v + self.kinds.double()[self.type]
        v = (
            self.torch.nn.functional.layer_norm(v, (self.dim,), None, None, 1e-5) * self.gain.double()
            + self.shift.double()
        )
        return [(v, v.abs() + 1.0)]

    def tables(self, lend):
        c = self.c
        tables = c.Tables(token=lend(self.token), position=lend(self.position))
        if self.norm:
            tables.types, tables.gain, tables.bias = lend(self.kinds), lend(self.gain), lend(self.shift)
        return tables

    def lookup(self, lend):
        c = self.c
        ids = lambda x: c.Ids(data=lend(x).data, len=x.numel(), element=c.I64)
        lookup = c.Lookup(ids=ids(self.id), positions=c.Positions(kind=c.COUNTED))
        if self.norm:
            lookup.types = ids(self.type)
        return lookup

    def ours(self):
        c = self.c
        norm = c.NORM_LAYER if self.norm else c.NORM_NONE
        spec = c.LearnedSpec(dim=self.dim, scale=1.0, rows=c.ROWS_OFFSET, norm=norm, eps=1e-5)

        def call(x):
            plan = self.machine.plan("learned", lambda gpu: c.learned_new(gpu, spec, c.BF16))
            with self.machine.lend() as lend:
                arguments = c.LearnedCall(x=lend(x), tokens=c.tokens(1, self.tokens, self.dim))
                arguments.tables, arguments.lookup = self.tables(lend), self.lookup(lend)
                c.learned_gather(plan, arguments)
            return (x,)

        return self.release(), call

    def function(self, _):
        functional = self.torch.nn.functional
        v = functional.embedding(self.id, self.token) + self.position
        if not self.norm:
            return (v,)
        v = v + functional.embedding(self.type, self.kinds)
        return (functional.layer_norm(v, (self.dim,), self.gain, self.shift, 1e-5),)


class NormGrad(Learned):
    """The gradients of BERT's layer norm: of the sum before it, of gain and of bias, from that of its result.

    PyTorch has the sum, its mean and its deviation from the forward call; posenc gathers the sum again.
    """

    def __init__(self, machine, tokens):
        super().__init__(machine, tokens, True)
        torch, dim = self.torch, self.dim
        self.name = f"layer norm gradient {tokens}x{dim}"
        # The gradient is read and written, and what was normalised is read.
        self.bytes = 6 * tokens * dim + 8 * tokens
        self.exact = self.token.double()[self.id] + self.position.double() + self.kinds.double()[self.type]
        self.sum = self.exact.to(torch.bfloat16)
        _, self.mean, self.deviation = torch.native_layer_norm(self.sum, (dim,), self.gain, self.shift, 1e-5)
        self.gains = [torch.zeros(dim, device=machine.device, dtype=torch.bfloat16) for _ in range(2)]

    def make(self, generator):
        return (self.machine.random(generator, self.tokens, self.dim),)

    def wanted(self, grad):
        """Errors are shares of the terms' sizes: the sums cancel."""
        mean = lambda x: x.mean(dim=-1, keepdim=True)
        v, grad = self.exact - mean(self.exact), grad.double()
        sigma = (mean(v * v) + 1e-5).sqrt()
        y, own = v / sigma, grad * self.gain.double()
        sums = (own - mean(own) - y * mean(own * y)) / sigma
        size = (own.abs() + mean(own.abs()) + y.abs() * mean((own * y).abs())) / sigma
        return [(sums, size), ((grad * y).sum(0), (grad * y).abs().sum(0)), (grad.sum(0), grad.abs().sum(0))]

    def ours(self):
        c = self.c
        spec = c.LearnedSpec(dim=self.dim, scale=1.0, rows=c.ROWS_OFFSET, norm=c.NORM_LAYER, eps=1e-5)

        def call(grad):
            shape = c.tokens(1, self.tokens, self.dim)
            plan = self.machine.plan(("norm", self.tokens), lambda gpu: c.learned_grad_new(gpu, spec, shape, c.BF16))
            with self.machine.lend() as lend:
                gain, bias = map(lend, self.gains)
                arguments = c.NormGradCall(sum=lend(self.out), sum_tokens=shape, gain=gain, bias=bias)
                arguments.grad, arguments.grad_tokens = lend(grad), shape
                arguments.tables, arguments.lookup = self.tables(lend), self.lookup(lend)
                c.learned_grad_norm(plan, arguments)
            return (self.out, *self.gains)

        return self.release(), call

    def function(self, grad):
        saved = self.sum, (self.dim,), self.mean, self.deviation, self.gain, self.shift
        return self.torch.ops.aten.native_layer_norm_backward(grad, *saved, [True, True, True])


class TableGrad(Embedding):
    """The gradient of a token table from that of the embeddings, [tokens, dim]."""

    def __init__(self, machine, tokens):
        super().__init__(machine)
        self.sizes(machine, tokens)
        self.name = f"token table gradient {tokens}x{self.dim}"
        self.id = self.ids(tokens, self.vocabulary)
        self.bytes = 2 * self.dim * (tokens + self.id.unique().numel()) + 8 * tokens
        torch = self.torch
        self.table = torch.zeros(self.vocabulary, self.dim, device=machine.device, dtype=torch.bfloat16)
        self.order = torch.zeros(tokens, device=machine.device, dtype=torch.int32)

    def make(self, generator):
        return (self.machine.random(generator, self.tokens, self.dim),)

    def wanted(self, grad):
        sums = lambda x: x.new_zeros(self.vocabulary, self.dim).index_add(0, self.id, x)
        return [(sums(grad.double()), sums(grad.double().abs()) + 1e-9)]

    def ours(self):
        c = self.c
        spec = c.LearnedSpec(dim=self.dim, scale=1.0, rows=c.ROWS_OFFSET, norm=c.NORM_NONE)

        def call(grad):
            shape = c.tokens(1, self.tokens, self.dim)
            plan = self.machine.plan(("table", self.tokens), lambda gpu: c.learned_grad_new(gpu, spec, shape, c.BF16))
            with self.machine.lend() as lend:
                ids = c.Ids(data=lend(self.id).data, len=self.tokens, element=c.I64)
                order = lend(self.order)
                c.learned_grad_order(plan, c.OrderCall(order=order, ids=ids, count=self.tokens))
                arguments = c.TableGradCall(table=lend(self.table), rows=self.vocabulary, grad=lend(grad), order=order)
                arguments.tokens, arguments.ids, arguments.scale = shape, ids, 1.0
                c.learned_grad_table(plan, arguments)
            return (self.table,)

        return self.release(), call

    def function(self, grad):
        return (self.torch.ops.aten.embedding_dense_backward(grad, self.id, self.vocabulary, -1, False),)

    def peers(self):
        torch = self.torch_release()
        return {
            "posenc, order and sums": self.ours,
            "torch eager, embedding_dense_backward": lambda: (torch, self.function),
            "torch.compile": lambda: (torch, self.machine.compile(self.function)),
        }


class Resample(Embedding):
    """ViT-B/16's position table from 224 pixels to another size, bicubic, class token kept; or the gradient back."""

    def __init__(self, machine, to, grad):
        super().__init__(machine)
        self.side, self.to, self.dim = (4, 7, 8) if machine.checks else (14, to, 768)
        self.grad = grad
        self.name = f"resample{' gradient' if grad else ''} {self.side}x{self.side} to {self.to}x{self.to}x{self.dim}"
        self.bytes = 2 * self.dim * (2 + self.side**2 + self.to**2)

    def make(self, generator):
        return (self.machine.random(generator, 1 + (self.to if self.grad else self.side) ** 2, self.dim),)

    def forward(self, table):
        """As timm and transformers do it."""
        grid = table[1:].view(1, self.side, self.side, self.dim).permute(0, 3, 1, 2)
        size = (self.to, self.to)
        grid = self.torch.nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
        return self.torch.cat((table[:1], grid.permute(0, 2, 3, 1).reshape(-1, self.dim)))

    def function(self, x):
        if not self.grad:
            return (self.forward(x),)
        table = x.new_zeros(1 + self.side**2, self.dim).requires_grad_()
        return self.torch.autograd.grad(self.forward(table), table, x)

    def wanted(self, x):
        (want,) = self.function(x.double())
        return [(want, want.abs().max().expand_as(want))]

    def ours(self):
        c, torch = self.c, self.torch
        spec = c.ResampleSpec(**{"from": [self.side] * 2}, to=[self.to] * 2, prefix=1, filter=c.BICUBIC)
        rows = 1 + (self.side if self.grad else self.to) ** 2
        out = torch.empty(rows, self.dim, device=self.machine.device, dtype=torch.bfloat16)

        def call(x):
            plan = self.machine.plan("resample", lambda gpu: c.resample_new(gpu, spec, c.BF16))
            with self.machine.lend() as lend:
                table, resampled = (lend(out), lend(x)) if self.grad else (lend(x), lend(out))
                arguments = c.ResampleCall(table=table, resampled=resampled)
                arguments.table_tokens = c.tokens(1, 1 + self.side**2, self.dim)
                arguments.resampled_tokens = c.tokens(1, 1 + self.to**2, self.dim)
                (c.resample_grad if self.grad else c.resample_write)(plan, arguments)
            return (out,)

        return self.release(), call

    def peers(self):
        torch = self.torch_release()
        return {
            "posenc": self.ours,
            "torch eager, interpolate": lambda: (torch, self.function),
            "torch.compile, interpolate": lambda: (torch, self.machine.compile(self.function)),
        }


def cases(machine, tokens):
    tokens = [6] if machine.checks else tokens or TOKENS
    out = []
    for n in tokens:
        out += [
            lambda n=n: SinusoidAdd(machine, n),
            lambda n=n: GridAdd(machine, n),
            lambda n=n: Timestep(machine, n),
            lambda n=n: Learned(machine, n, False),
            lambda n=n: Learned(machine, n, True),
            lambda n=n: NormGrad(machine, n),
            lambda n=n: TableGrad(machine, n),
        ]
    for to in (7,) if machine.checks else (24, 37):
        out += [lambda to=to: Resample(machine, to, False), lambda to=to: Resample(machine, to, True)]
    return out
