"""The flow: a variational autoencoder whose decoder undoes its encoder exactly, one value after the other.

A value's latent says where it lies among the values that stars have which are like this one in all values before it: its score in a
conditional distribution, which a network gives. What follows from the values before it costs no bits, and nothing is lost but what
rounding takes. The network is autoregressive (Germain et al. 2015, arXiv:1502.03509): hidden units are sorted by the values that they
may see, so that the distributions of all values take one pass where the values are known, and no more in all where each is rebuilt
from the latents in turn. The distributions are monotone splines (Durkan et al. 2019, arXiv:1906.04032).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaiadask.config.presets import MOST_BITS
from gaiadask.inputs.scaling import NORMAL_IQR
from gaiadask.model.cells import Cells
from gaiadask.model.networks import ROWS_ON_CPU, ROWS_ON_GPU, shared_evenly, steps_of, to_middles, unsquashed
from gaiadask.model.splines import LOG_ROOT_2_PI, Spline, knot_sums

_FIRST_WEIGHTS = 0.05
"""Factor of the last layer's first weights: the untrained flow is a chain of linear regressions, nearly."""
_NEARLY_ALL = 0.999
"""Share of the stars that have a value in a cell where all values are shared ones."""
SQUASH = 1.5
"""Rounded latents are tanh(score / SQUASH). Steps are then as wide as density to the power of some -2/3, like those that are best for the mean
square of errors: wider in the tails, but not as wide as steps of equal rank would be."""


@dataclass(frozen=True)
class FlowShape:
    """What a flow is built from.

    n_values: of a star, each with a latent. n_conditions: given to both sides, the bits of null groups last.
    null_groups: of each null group the numbers of its values. hidden: widths of the hidden layers.
    bits: of a star, over all latents, where latents are rounded; 0: they are not. bins: of each spline. nulls_first: whether every value
    may depend on which values are null, and not only those after them.
    """

    n_values: int
    n_conditions: int
    hidden: tuple[int, ...]
    null_groups: tuple[tuple[int, ...], ...] = ()
    bits: int = 0
    bins: int = 8
    nulls_first: bool = False

    @property
    def latents(self) -> int:
        """One for each value."""
        return self.n_values

    @property
    def first_null_bit(self) -> int:
        """Where in the condition the bits of null groups begin."""
        return self.n_conditions - len(self.null_groups)


class Flow(nn.Module):
    """Scores of a star's values, each given the condition and the values before it, and back.

    Latents are named by their values' numbers; `order` is the order in which values follow each other. A value that is null is 0 where it
    is given to those after it, with the bit of its null group; its own latent, which says nothing, is 0.

    Inside, numbers of a star lie along the first axis and stars along the last, and values in their order: then what is computed for one
    value, of all stars, lies together in memory.

    It is a VAE: prior N(0, 1) for each latent, likelihood N(value | rebuilt, noise_scale^2), and the posterior of the latents is what that
    noise, added to the values, makes of them. Its evidence bound is the density of noisy values (`log_densities`) up to a constant
    (Gritsenko et al. 2019, "On the relationship between normalising flows and variational- and denoising autoencoders").

    >>> flow = Flow(FlowShape(n_values=9, n_conditions=3, hidden=(32, 32), bits=64))
    >>> latents = flow.mean(torch.zeros(4, 9), torch.zeros(4, 3))
    >>> tuple(latents.shape), tuple(flow.decode(latents, torch.zeros(4, 3)).shape)
    ((4, 9), (4, 9))
    """

    bits: Tensor
    order: Tensor
    first_mask: Tensor
    linear_mask: Tensor
    last_mask: Tensor
    knot_sums: Tensor
    squash = SQUASH
    depends_on_batch = False

    def __init__(self, shape: FlowShape, cells: Cells | None = None) -> None:
        """cells: of values in which many stars share one; they come back as the centre of their cell, and are so given to later values."""
        super().__init__()
        self.shape = shape
        cells = Cells.of({}) if cells is None else cells
        self._row_of = {number: row for row, number in enumerate(cells.numbers.tolist())}
        for name, part in cells._asdict().items():
            self.register_buffer(f"cells_{name}", part, persistent=False)
        values, inputs = shape.n_values, shape.n_conditions + shape.n_values
        degrees = [_degrees(width, values) for width in shape.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((inputs, *shape.hidden)))
        # Of each value: widths, heights and slopes of the spline, a shift, and a width beside the column's own.
        self.numbers = 3 * shape.bins - 1 + 2
        self.register_buffer("knot_sums", knot_sums(shape.bins), persistent=False)
        self.last = nn.Linear(shape.hidden[-1], values * self.numbers)
        self.linear = nn.Linear(inputs, values)
        self.log_width = nn.Parameter(torch.zeros(values))
        with torch.no_grad():
            self.last.weight.mul_(_FIRST_WEIGHTS)
            for zero in (self.last.bias, self.linear.weight, self.linear.bias):
                zero.zero_()
        # Hidden units of each layer that the distribution of each value may use: those before this number.
        self._ends = [[int((each <= value).sum()) for value in range(values)] for each in degrees]
        masks = [(before[None] <= after[:, None]) for before, after in itertools.pairwise(degrees)]
        for number, mask in enumerate(masks, start=1):
            self.register_buffer(f"mask_{number}", mask.float(), persistent=False)
        of_numbers = torch.arange(values).repeat(self.numbers)
        self.register_buffer("last_mask", (degrees[-1][None] <= of_numbers[:, None]).float(), persistent=False)
        self.register_buffer("order", torch.arange(values))
        self.register_buffer("first_mask", torch.zeros(shape.hidden[0], inputs))
        self.register_buffer("linear_mask", torch.zeros(values, inputs))
        self._set_order(torch.arange(values))
        if shape.bits:
            self.register_buffer("bits", shared_evenly(shape.bits, values))

    # What there is to know of it ------------------------------------------------------------------------------------
    @property
    def latent_bits(self) -> list[int]:
        """Bits of each latent; 0 where latents are not rounded."""
        return self.bits.tolist() if self.shape.bits else [0] * self.shape.latents

    @property
    def rows_at_once(self) -> int:
        """Stars that it is given at once in use."""
        return ROWS_ON_GPU if self.log_width.is_cuda else ROWS_ON_CPU

    @property
    def cells(self) -> Cells:
        """Of values in which many stars share one."""
        return Cells(*(getattr(self, f"cells_{name}") for name in Cells._fields))

    @property
    def _hidden_layers(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    # Latents and values ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def mean(self, values: Tensor, condition: Tensor, bits: Tensor | None = None) -> Tensor:
        """The latents of stars, shape (n, latents), rounded where latents are.

        A latent is rounded before the next one is looked for, given what the decoder will know of the values before it: so an error of
        rounding is not passed on to later values.

        values, condition: as `Autoencoder.encode` takes them. bits: of each latent, where not the network's own.
        """
        if not self.shape.bits:
            return self._scores(values, condition)
        steps = steps_of(self.bits if bits is None else bits)[self.order]
        x, absent, rows = self._in_order(values), self._absent(condition), self._rows()
        latents = torch.empty_like(x)

        def rebuild(place: int, spline: Spline) -> Tensor:
            exact = torch.tanh(spline.score(x[place]) / SQUASH)
            if (row := rows[place]) is not None:
                low, high, inside = self._cell_ends(row, x[place], spline)
                exact = torch.where(inside, (low + high) / 2, exact)  # where a step is in the cell, there is one about its middle
            latents[place] = to_middles(exact.masked_fill_(absent[place], 0.0), steps[place])
            return spline.value(unsquashed(latents[place], SQUASH))

        self._walk(condition, rebuild)
        return self._by_number(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Rebuilt values, shape (n, n_values), of latents (n, latents) and condition (n, n_conditions).

        A value without a latent's help (0, or a value that was null and is not said to be) is the median of what it may be.
        """
        scores = self._in_order(unsquashed(latents, SQUASH) if self.shape.bits else latents)
        return self._by_number(self._walk(condition, lambda place, spline: spline.value(scores[place])))

    def log_densities(self, values: Tensor, condition: Tensor, given: Tensor | None = None) -> Tensor:
        """log p(value | the values before it, condition) of each value, shape (n, n_values), nats.

        given: values as later ones are given them, where these are not the same.
        """
        x = self._in_order(values)
        score, log_slope = self._spline(x if given is None else self._in_order(given), condition).call(x)
        return self._by_number(log_slope - 0.5 * score.square() - LOG_ROOT_2_PI)

    @torch.no_grad()
    def moved(self, values: Tensor, condition: Tensor, by: float) -> tuple[Tensor, list[Tensor]]:
        """Values, and as they are rebuilt if each latent in turn is off by `by`, the others being found after it.

        Returns:
            values, and for each latent values of that shape.
        """
        x = self._in_order(values)
        spline = self._spline(x, condition)
        off = self._by_number(spline.value(unsquashed(torch.tanh(spline.score(x) / SQUASH) + by, SQUASH)))
        rebuilt = []
        for value in range(self.shape.n_values):
            one = values.clone()
            one[:, value] = off[:, value]
            rebuilt.append(one)
        return values, rebuilt

    @torch.no_grad()
    def errors_by_bits(self, values: Tensor, condition: Tensor) -> list[list[float]]:
        """Of each value that stars share, the mean |error| in its IQR with 0, 1, … bits of its latent, as far as it is not 0; for any other value
        nothing."""
        x, absent = self._in_order(values), self._absent(condition)
        splines, errors = self._spline(x, condition), [list[float]() for _ in range(self.shape.n_values)]
        for place, (number, row) in enumerate(zip(self.order.tolist(), self._rows(), strict=True)):
            if row is None:
                continue
            spline, cells = splines.of(place), self.cells.row(row)
            low, high, inside = self._cell_ends(row, x[place], spline)
            there = ~absent[place]
            if not there.any() or inside[there].float().mean() < _NEARLY_ALL:
                continue
            for bits in range(MOST_BITS + 1):
                middle = to_middles((low + high) / 2, steps_of(torch.tensor(bits, device=x.device)))
                rebuilt = cells.snapped(spline.value(unsquashed(middle, SQUASH))[None])[0]
                error = float((rebuilt - cells.snapped(x[place][None])[0]).abs()[there].mean()) / NORMAL_IQR
                errors[number].append(error)
                if not error:
                    break
        return errors

    # How it begins --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def knowing_nulls(self) -> Flow:
        """The same distributions in a flow of its own, in which every value may come to depend on what is null; its latents are not rounded."""
        flow = Flow(replace(self.shape, nulls_first=True, bits=0), self.cells.to("cpu")).to(self.log_width.device)
        flow.load_state_dict({name: part for name, part in self.state_dict().items() if name != "bits"})
        flow._set_order(self.order.clone())
        for layer, mask in ((flow._hidden_layers[0], self.first_mask), (flow.linear, self.linear_mask)):
            layer.weight.mul_(mask)  # of what no value saw before, weights begin at 0
        return flow

    @torch.no_grad()
    def start_linear(self, values: Tensor, noise_scale: float) -> None:
        """Choose the order of values, and set each one's distribution to a linear regression on those before it.

        First come values that are never null, so that others can be guessed from them; of either kind, next comes the value that is known
        least from those before it (a Cholesky factorisation with pivoting), so that what follows from others comes last.

        values: shape (n, n_values), n at least 2, 0 where null. noise_scale: least width of a distribution.
        """
        sample = self._anywhere(values.cpu()).double()
        covariance = torch.cov(sample.T).reshape(self.shape.n_values, self.shape.n_values)
        covariance += 1e-8 * torch.eye(len(covariance))
        order = self._pivots(covariance)
        self._set_order(order)
        first, centre = self.shape.n_conditions, sample.mean(0)[order]
        covariance = covariance[order][:, order]
        for place, value in enumerate(order.tolist()):
            before = covariance[:place, :place]
            weights = torch.linalg.solve(before, covariance[:place, place])
            self.linear.weight[place].zero_()
            self.linear.weight[place, first : first + place] = weights.to(self.linear.weight)
            self.linear.bias[place] = float(centre[place] - weights @ centre[:place])
            width = (covariance[place, place] - weights @ covariance[:place, place]).clamp(min=noise_scale**2).sqrt()
            self.log_width[value] = float(width.log())

    def _anywhere(self, values: Tensor) -> Tensor:
        """Values on the CPU, those in a cell drawn from it: as wide as what the distributions are of."""
        if not (cells := self.cells.to("cpu")):
            return values
        return cells.anywhere(values, torch.rand(values.shape, generator=torch.Generator().manual_seed(0)))

    def _pivots(self, covariance: Tensor) -> Tensor:
        left, order = covariance.clone(), list[int]()
        sometimes_null = {value for group in self.shape.null_groups for value in group}
        for _ in range(self.shape.n_values):
            candidates = [v for v in range(self.shape.n_values) if v not in order]
            candidates = [v for v in candidates if v not in sometimes_null] or candidates
            pivot = max(candidates, key=lambda value: float(left[value, value]))
            left = left - torch.outer(left[:, pivot], left[:, pivot]) / left[pivot, pivot].clamp(min=1e-12)
            order.append(pivot)
        return torch.tensor(order)

    def _set_order(self, order: Tensor) -> None:
        """Values in this order; a hidden unit of degree k sees the first k of them, and the bits of null groups that have no other value."""
        values, conditions = self.shape.n_values, self.shape.n_conditions
        seen_from = torch.zeros(conditions + values, dtype=torch.long)
        seen_from[conditions:] = torch.arange(1, values + 1)
        places = torch.argsort(order).tolist()
        # A value does not see whether it is itself null: so it can be guessed where it is.
        for bit, group in enumerate(() if self.shape.nulls_first else self.shape.null_groups, start=self.shape.first_null_bit):
            seen_from[bit] = max((places[value] + 1 for value in group), default=0)
        degrees = _degrees(self.shape.hidden[0], values)
        self.order.copy_(order)
        self.first_mask.copy_(seen_from[None] <= degrees[:, None])
        self.linear_mask.copy_(seen_from[None] <= torch.arange(values)[:, None])

    # Distributions --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _scores(self, values: Tensor, condition: Tensor) -> Tensor:
        x = self._in_order(values)
        return self._by_number(self._spline(x, condition).score(x).masked_fill_(self._absent(condition), 0.0))

    def _rows(self) -> list[int | None]:
        """Of each place, the row of its value among the `cells`."""
        return [self._row_of.get(number) for number in self.order.tolist()]

    def _cell_ends(self, row: int, x: Tensor, spline: Spline) -> tuple[Tensor, Tensor, Tensor]:
        """The ends of the cells that values lie in, as latents, and whether they lie in one, shape (n,) each."""
        cells = self.cells.row(row)
        number, inside = cells.find(x[None])
        low, high = (torch.tanh(spline.score(ends.gather(1, number)[0]) / SQUASH) for ends in (cells.low, cells.high))
        return low, high, inside[0]

    def _in_order(self, values: Tensor) -> Tensor:
        """Values or latents of stars, shape (n, n_values), in their order, shape (n_values, n)."""
        return values.T[self.order]

    def _by_number(self, x: Tensor) -> Tensor:
        """The inverse of `_in_order`."""
        return x[torch.argsort(self.order)].T

    def _spline(self, x: Tensor, condition: Tensor) -> Spline:
        """The distributions of all values, where those before each are known. x: `_in_order`."""
        inputs = hidden = torch.cat([condition.T, x])
        masks = [self.first_mask, *(getattr(self, f"mask_{number}") for number in range(1, len(self.layers)))]
        for layer, mask in zip(self._hidden_layers, masks, strict=True):
            hidden = functional.silu(torch.addmm(layer.bias[:, None], layer.weight * mask, hidden))
        numbers = torch.addmm(self.last.bias[:, None], self.last.weight * self.last_mask, hidden)
        middle = torch.addmm(self.linear.bias[:, None], self.linear.weight * self.linear_mask, inputs)
        width = self.log_width[self.order][:, None]
        return Spline(numbers.unflatten(0, (self.numbers, -1)), middle, width, self.shape.bins, self.knot_sums)

    def _walk(self, condition: Tensor, rebuild: Callable[[int, Spline], Tensor]) -> Tensor:
        """Values one after the other, `_in_order`: `rebuild` makes each of its place and its distribution, given those before it.

        Hidden units that may see the first k values are computed when these are known, and once.
        """
        first, *others = self._hidden_layers
        conditions, rows = self.shape.n_conditions, len(condition)
        into, linear = first.weight * self.first_mask, self.linear.weight * self.linear_mask
        sums = torch.addmm(first.bias[:, None], into[:, :conditions], condition.T)
        middles = torch.addmm(self.linear.bias[:, None], linear[:, :conditions], condition.T)
        hidden = [condition.new_empty(width, rows) for width in self.shape.hidden]
        out, bias = (part.unflatten(0, (self.numbers, -1)).transpose(0, 1) for part in (self.last.weight, self.last.bias))
        absent, x = self._absent(condition), condition.new_empty(self.shape.n_values, rows)
        cells, rows_of_cells = self.cells, self._rows()
        widths, begins = self.log_width[self.order], [0] * len(hidden)
        for place in range(self.shape.n_values):
            ends = [each[place] for each in self._ends]
            hidden[0][begins[0] : ends[0]] = functional.silu(sums[begins[0] : ends[0]])
            for number, layer in enumerate(others, start=1):
                new, known = slice(begins[number], ends[number]), slice(ends[number - 1])
                sums_here = torch.addmm(layer.bias[new, None], layer.weight[new, known], hidden[number - 1][known])
                hidden[number][new] = functional.silu(sums_here)
            numbers = torch.addmm(bias[place][:, None], out[place][:, : ends[-1]], hidden[-1][: ends[-1]])
            x[place] = rebuild(place, Spline(numbers, middles[place], widths[place], self.shape.bins, self.knot_sums))
            if (row := rows_of_cells[place]) is not None:
                x[place] = cells.row(row).snapped(x[place : place + 1])[0]
            given = x[place].masked_fill(absent[place], 0.0)
            sums[ends[0] :].addr_(into[ends[0] :, conditions + place], given)
            middles[place + 1 :].addr_(linear[place + 1 :, conditions + place], given)
            begins = ends
        return x

    def lacking(self, condition: Tensor) -> Tensor:
        """Which values the condition says to be null, shape (n, n_values)."""
        return self._by_number(self._absent(condition))

    def _absent(self, condition: Tensor) -> Tensor:
        """Which values the condition says to be null, `_in_order`."""
        absent = torch.zeros(len(condition), self.shape.n_values, dtype=torch.bool, device=condition.device)
        for bit, group in enumerate(self.shape.null_groups, start=self.shape.first_null_bit):
            absent[:, list(group)] |= condition[:, bit : bit + 1] > 0.5
        return self._in_order(absent)


def _degrees(width: int, values: int) -> Tensor:
    """How many of the values each hidden unit of a layer may see, from none to all but the last, shape (width,), ascending."""
    return torch.arange(width) * values // width
