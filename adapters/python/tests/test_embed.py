"""Sinusoids, timesteps, grids, learned tables and resampling against their formulas."""

import numpy as np
import posenc
import pytest

F32 = np.float32


def values(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def waves(positions, dim, interleaved=True, base=10_000.0):
    angle = np.asarray(positions, np.float64)[..., None] * base ** (-2.0 * np.arange(dim // 2) / dim)
    out = np.empty((*angle.shape[:-1], dim))
    if interleaved:
        out[..., 0::2], out[..., 1::2] = np.sin(angle), np.cos(angle)
    else:
        out[..., : dim // 2], out[..., dim // 2 :] = np.sin(angle), np.cos(angle)
    return out


def close(got, want, bound=1e-6):
    assert np.abs(np.asarray(got, np.float64) - want).max(initial=0.0) < bound


def test_sinusoids():
    spec = posenc.Sinusoid(16)
    positions = np.array([0, 1, 5000, -3])
    close(spec.table(positions), waves(positions, 16))
    x = values(2, 4, 16)
    want = 3.0 * x.astype(np.float64) + waves(np.stack([positions, positions + 1]), 16)
    got = spec.add_(x, 3.0, positions=np.stack([positions, positions + 1]))
    assert got is x
    close(x, want, 3e-6)
    out = np.empty((4, 16), F32)
    assert spec.write(out, starts=[7]) is out
    close(out, waves(np.arange(7, 11), 16))
    half = posenc.Sinusoid(16, pairing="half", padding=1)
    got = half.table([0, 1, 2])
    close(got[[0, 2]], waves([0, 2], 16, interleaved=False))
    assert (got[1] == 0).all()
    with pytest.raises(posenc.Error, match="odd"):
        posenc.Sinusoid(7).table([0])
    assert posenc.Sinusoid(7, odd="zero").table([1])[0, 6] == 0


def test_timesteps():
    spec = posenc.Sinusoid(8, pairing="half", cosine_first=True)
    for dtype in (np.float32, np.float64):
        t = np.array([0.5, 999.25, 3.0], dtype)
        got = spec.timesteps(t, np.empty((3, 8), F32))
        want = waves(t, 8, interleaved=False)
        close(got, np.concatenate([want[:, 4:], want[:, :4]], 1))
    with pytest.raises(posenc.Error, match=r"t holds 3 times, out has the shape \[2, 8\]"):
        spec.timesteps(t, np.empty((2, 8), F32))


def test_grids():
    grid = posenc.Grid((("columns", posenc.Sinusoid(8)), ("rows", posenc.Sinusoid(8))))
    out = grid.write(np.empty((6, 16), F32), rows=2, columns=3)
    rows, columns = np.divmod(np.arange(6), 3)
    want = np.concatenate([waves(columns, 8), waves(rows, 8)], 1)
    close(out, want)
    x = values(2, 6, 16)
    before = x.astype(np.float64)
    close(grid.add_(x, 2, 3, scale=2.0), 2 * before + want, 2e-6)
    mask = np.ones((1, 2, 3), bool)
    mask[0, :, 2] = False
    masked = grid.write_masked(np.empty((1, 6, 16), F32), mask, normalize=False)
    assert np.isfinite(masked).all() and (masked[0, 0] != masked[0, 1]).any()
    with pytest.raises(posenc.Error, match=r"mask has the shape \[2, 3\]"):
        grid.write_masked(np.empty((1, 6, 16), F32), mask[0])


def test_learned_tables():
    spec = posenc.Learned(8, norm="layer", eps=1e-5, first=2)
    token, position, types = values(10, 8), values(9, 8, seed=2), values(2, 8, seed=3)
    gain, bias = values(8, seed=4), values(8, seed=5)
    ids, kinds = np.array([[3, 9, 0], [1, 1, 2]]), np.array([[0, 1, 1], [0, 0, 1]])
    tables = posenc.Tables(token, position, types, gain, bias)
    out = spec.gather(np.empty((2, 3, 8), F32), tables, posenc.Lookup(ids, kinds))
    total = token[ids].astype(np.float64) + position[2:5] + types[kinds]
    centred = total - total.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias
    close(out, want, 4e-6)
    rows = posenc.Learned(8, kept="mask", first=2, padded=1)
    mask = np.array([[1, 0, 1]], np.uint8)
    assert rows.rows(np.empty((1, 3), np.int64), posenc.Lookup(mask=mask)).tolist() == [[2, 1, 3]]
    with pytest.raises(posenc.Error, match="10"):
        spec.gather(np.empty((1, 3, 8), F32), tables, posenc.Lookup(np.array([[3, 10, 0]]), kinds[:1]))
    with pytest.raises(posenc.Error, match="ids holds 3 integers, 2 sequences of 3 tokens need as many"):
        spec.gather(np.empty((2, 3, 8), F32), tables, posenc.Lookup(ids[:1]))


def test_gradients_of_learned_tables():
    spec = posenc.Learned(8, norm="layer")
    token, position = values(10, 8), values(4, 8, seed=2)
    gain, bias = values(8, seed=4), values(8, seed=5)
    ids = np.array([[3, 9, 3], [1, 1, 2]])
    tables, lookup = posenc.Tables(token, position, None, gain, bias), posenc.Lookup(ids)
    grad = values(2, 3, 8, seed=6)
    plan = posenc.LearnedGrad(spec, 2, 3)
    total, gains, biases = np.empty((2, 3, 8), F32), np.empty(8, F32), np.empty(8, F32)
    plan.norm(grad, total, tables, lookup, gain_grad=gains, bias_grad=biases)
    close(biases, grad.astype(np.float64).sum((0, 1)), 1e-5)
    centred = token[ids].astype(np.float64) + position[:3]
    centred -= centred.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    close(gains, (normal * grad).sum((0, 1)), 1e-4)
    order = plan.order(ids.reshape(-1), np.empty(6, np.uint32))
    assert (np.sort(ids.reshape(-1)) == ids.reshape(-1)[order]).all()
    table = plan.table(total, np.zeros((10, 8), F32), ids, order)
    want = np.zeros((10, 8))
    np.add.at(want, ids.reshape(-1), total.reshape(-1, 8))
    close(table, want, 1e-5)
    counted = plan.counted(total, np.zeros((4, 8), F32))
    close(counted[:3], total.astype(np.float64).sum(0), 1e-5)


def test_resampling():
    spec = posenc.Resample((2, 2), (4, 4), prefix=1, filter="bilinear")
    table = values(5, 8)
    out = spec.write(table, np.empty((17, 8), F32))
    assert (out[0] == table[0]).all() and (out[1] == table[1]).all() and (out[16] == table[4]).all()
    close(out[2], 0.75 * table[1].astype(np.float64) + 0.25 * table[2])
    grad = spec.grad(np.ones((17, 8), F32), np.zeros((5, 8), F32))
    close(grad.sum(0), np.full(8, 17.0), 1e-4)
    corners = posenc.Resample((2, 2), (4, 4), filter="bilinear", align_corners=True)
    grid = corners.write(table[1:], np.empty((16, 8), F32))
    close(grid[[0, 3, 12, 15]], table[1:])
    close(grid[1], (2 * table[1].astype(np.float64) + table[2]) / 3)
    with pytest.raises(posenc.Error, match="filter is 'nearest', it may be 'bilinear', 'bicubic'"):
        posenc.Resample((2, 2), (4, 4), filter="nearest").write(table, out)


def test_flags_of_the_cpu_stay_down():
    flag = posenc.ErrorFlag()
    flag.check()
