"""One comparison: its tensors, what is true of them, and who computes it."""


class Case:
    """Subclasses say `room`, `name`, `bytes` (the least that must move), and

    * `make(generator)`: the tensors of one call,
    * `wanted(*tensors)`: pairs of an f64 result and the size that its error is a share of,
    * `peers()`: by name, a function that gives a version and `call(*tensors) -> results`, which may work in place.
    """

    # bf16's half ulp is 2^-9 of a value. Peers that compute in bf16 round several times, and what they are given
    # before.
    tolerance = {"posenc": 2.0**-8, "peer": 2.0**-5}

    def __init__(self, machine):
        self.machine, self.torch, self.c = machine, machine.torch, machine.c

    def sets(self, count):
        generator = self.machine.generator(1)
        return [self.make(generator) for _ in range(count)]

    def error(self, wanted, results):
        """The largest error as a share of its size."""
        worst = 0.0
        for (want, size), got in zip(wanted, results, strict=True):
            error = (got.detach().double().reshape(want.shape) - want).abs() / size
            # NaN is larger than any number here.
            worst = max(worst, error.nan_to_num(nan=float("inf")).max().item())
        return worst

    def release(self):
        return self.c.release()

    def torch_release(self):
        return self.torch.__version__
