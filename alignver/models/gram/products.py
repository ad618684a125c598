"""Products of factors, added into a block of the Gram matrix: the formulas of :mod:`alignver.models.gram.planning`.

A block is a matrix with output-major rows, j n + i. Of a symmetric one only the lower triangle is filled (other
entries may hold anything); :func:`mirror` completes it. The block is filled panel by panel: a panel and the products
added to it stay in cache while every slot adds its share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

__all__ = ["Hadamard", "Panel", "add_dense", "contract", "mirror", "panels"]

_PANEL = 1 << 18  # entries of a panel, about
_LEAST = 32  # rows of a panel, at least
_ROWS = 128  # rows of a panel of a triangle: more leave less of the triangle out, fewer make slower products
_TILE = 1 << 19  # entries of a temporary of contract(), about


@dataclasses.dataclass(frozen=True)
class Panel:
    """Rows of outputs j0..j1 (samples i0..i1 each), columns of the first ``full`` outputs and ``part`` samples more."""

    j0: int
    j1: int
    i0: int
    i1: int
    full: int
    part: int


def panels(m: int, n: int, m2: int, n2: int, symmetric: bool) -> Iterator[Panel]:
    """Cut a block into panels that cover it, or its lower triangle."""
    rows = min(256, max(_LEAST, _PANEL // max(1, m2 * n2)))
    if symmetric:
        rows = min(rows, _ROWS)
    several = max(1, rows // n)
    step = -(-n // max(1, round(n / rows)))
    for j0 in range(0, m, several):
        j1 = min(m, j0 + several)
        for i0 in range(0, n, step):
            i1 = min(n, i0 + step)
            if not symmetric:
                yield Panel(j0, j1, i0, i1, m2, 0)
            elif i1 == n:
                yield Panel(j0, j1, i0, i1, j1, 0)
            else:
                yield Panel(j0, j1, i0, i1, j0, i1)


@dataclasses.dataclass(frozen=True, eq=False)
class Hadamard:
    """sum_ts (A_t A_s'^T) o (B_t B_s'^T), ready to be added panel by panel.

    A: (T, n, a), B: (T, m, n, b), contiguous; ``plus`` is added to A_t A_s'^T (1 adds the bias of the same layer).
    """

    K: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, A: torch.Tensor, B: torch.Tensor, A2: torch.Tensor, B2: torch.Tensor, plus: float) -> Hadamard:
        """Multiply the inputs: K[t, s] is (n, n2)."""
        K = torch.matmul(A.unsqueeze(1), A2.transpose(1, 2).unsqueeze(0))
        if plus:
            K += plus
        return cls(K, B, B2)

    def add(self, panel: Panel, target: torch.Tensor, scratch: torch.Tensor) -> None:
        """Add this slot's share to a panel (rows x columns of the block), its products made in ``scratch``."""
        n2, rows = self.right.shape[2], target.shape[0]
        columns = panel.full * n2 + panel.part
        buffer = scratch[: rows * columns].view(rows, columns)
        split = (panel.j1 - panel.j0, panel.i1 - panel.i0)
        for t in range(len(self.left)):
            X = self.left[t, panel.j0 : panel.j1, panel.i0 : panel.i1].flatten(0, 1)
            for s in range(len(self.right)):
                torch.mm(X, self.right[s].flatten(0, 1)[:columns].T, out=buffer)
                K = self.K[t, s, panel.i0 : panel.i1]
                width = panel.full * n2
                if width:
                    blocks = (*split, panel.full, n2)
                    target[:, :width].view(blocks).addcmul_(buffer[:, :width].view(blocks), K[None, :, None])
                if panel.part:
                    rest = (*split, panel.part)
                    target[:, width:].view(rest).addcmul_(buffer[:, width:].view(rest), K[None, :, : panel.part])


def add_dense(left: torch.Tensor, right: torch.Tensor) -> Callable[[Panel, torch.Tensor, torch.Tensor], None]:
    """Make the share of per-sample gradients, (m, n, columns) on either side: their product."""
    first, second = left.flatten(0, 1), right.flatten(0, 1)
    n, n2 = left.shape[1], right.shape[1]

    def add(panel: Panel, target: torch.Tensor, scratch: torch.Tensor) -> None:
        start = panel.j0 * n + panel.i0
        target.addmm_(first[start : start + len(target)], second[: panel.full * n2 + panel.part].T)

    return add


def contract(
    target: torch.Tensor,
    inputs: Callable[[slice, slice], torch.Tensor],
    B: torch.Tensor,
    B2: torch.Tensor,
    symmetric: bool,
) -> None:
    """Add sum_ts K_ts b_t^T b_s' to a block, pair of samples by pair: first K B', then its products with B.

    Parameters
    ----------
    target : torch.Tensor
        (m n, m2 n2).
    inputs : callable
        K for slices of samples on either side: (samples2, samples, T, T2).
    B, B2 : torch.Tensor
        (m, n, T, b) and (m2, n2, T2, b).
    symmetric : bool
        Both sides are one: fill the lower triangle.
    """
    (m, n, T, b), (m2, n2, T2, _) = B.shape, B2.shape
    M = target.view(m, n, m2, n2)
    side = max(1, int((_TILE / (T * max(T2, b))) ** 0.5))
    for i0 in range(0, n, side):
        I = slice(i0, min(i0 + side, n))  # noqa: E741 - a block of rows
        left = B[:, I].transpose(0, 1).flatten(2)  # (i, j, T b)
        for k0 in range(0, i0 + 1 if symmetric else n2, side):
            C = slice(k0, min(k0 + side, n2))
            K = inputs(I, C).flatten(1, 2)  # (k, i T, T2)
            for l in range(m2):  # noqa: E741 - the second output
                half = torch.bmm(K, B2[l, C]).view(K.shape[0], -1, T * b)  # (k, i, T b)
                first = l if symmetric and i0 == k0 else 0
                found = torch.bmm(left[:, first:], half.permute(1, 2, 0))  # (i, j, k)
                if not symmetric:
                    M[:, I, l, C] += found.transpose(0, 1)
                    continue
                M[l:, I, l, C] += found[:, l - first :].transpose(0, 1)
                if i0 != k0 and l:
                    M[l, C, :l, I] += found[:, :l].permute(2, 1, 0)


def mirror(M: torch.Tensor) -> None:
    """Copy the lower triangle onto the upper one: exactly symmetric."""
    step = 256
    below = torch.ones((step, step), dtype=torch.bool, device=M.device).tril()
    for start in range(0, len(M), step):
        stop = min(start + step, len(M))
        M[:start, start:stop] = M[start:stop, :start].T
        corner = M[start:stop, start:stop]
        corner.copy_(torch.where(below[: len(corner), : len(corner)], corner, corner.T))
