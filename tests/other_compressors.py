"""Compressors of arrays with one bound for all stars, and autoencoders, made to keep each star's own bound.

What they are held against, and how, is in tests/benchmarks/compression_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from baselines_of_compression import Blobs, Floats, Frame, Packer, PerStar, State, unpack

from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.pixels import centre_of
from gaiadask.elementary import cos_degrees
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release
from gaiadask.sky import SOURCE_ID_ORDER, SOURCE_ID_SHIFT

LATENTS = "latents"
_QUANTA = (0.5, 0.25, 0.125, 0.0625, 0.03125)
_TRIED_STARS = 30_000
_SCALES = (0.01, 0.1, 0.3, 0.5, 0.9)


# One bound for all ----------------------------------------------------------------------------------------------------
class Arrays(NamedTuple):
    """A compressor of arrays with an absolute error, and its inverse, which is told how many numbers there are."""

    pack: Callable[[Floats, float], bytes]
    unpack: Callable[[bytes, int], Floats]


class OneBound(PerStar):
    """A compressor of arrays with one absolute error for all stars of a table: the largest that satisfies each of them.

    Each column goes through the transformation, of several, that makes its bytes fewest in the first table: none, a logarithm,
    hyperbolic arcsines. Everything else is as kind as in the strictest `PerStar`.
    """

    def __init__(self, release: Release, bounds: Mapping[str, Tolerance], arrays: Arrays) -> None:
        super().__init__(release, bounds, recompute=True, pixel=True, split=True)
        self._arrays = arrays
        self._scale_of: dict[str, float] = {}

    def _coded(self, name: str, frame: Frame, values: Floats, most: Floats) -> tuple[list[bytes], Floats]:
        if name in self._derived or not len(values) or not (most > 0).all():
            return super()._coded(name, frame, values, most)
        off, side = frame.offsets(values), most
        if frame.tolerance.kind == "relative":
            side = np.full(len(off), float(np.log2(1 + frame.tolerance.amount)))
        if name == RA:
            off = off * self._narrowing
        if name not in self._scale_of:
            scales = (0.0,) if frame.tolerance.kind == "relative" else (0.0, *np.quantile(np.abs(off), _SCALES))
            positive = (-1.0,) if off.min() > 0 and frame.tolerance.kind != "relative" else ()
            sizes = {scale: len(self._with(off, side, scale)) for scale in {*scales, *positive}}
            self._scale_of[name] = min(sizes, key=lambda scale: sizes[scale])
        scale = self._scale_of[name]
        if scale < 0 and off.min() <= 0:
            scale = 0.0
        blobs = [np.array([scale, len(off)]).tobytes(), self._with(off, side, scale)]
        return blobs, self._decoded(frame, blobs)

    def _with(self, off: Floats, side: Floats, scale: float) -> bytes:
        with np.errstate(invalid="ignore", divide="ignore"):
            there = _transformed(off, scale)
            room = np.minimum(
                _transformed(off + side, scale) - there, np.nan_to_num(there - _transformed(off - side, scale), nan=np.inf)
            )
        return self._arrays.pack(there, float(room.min()) * (1 - 1e-6))

    def _decoded(self, frame: Frame, blobs: Sequence[bytes]) -> Floats:
        if len(blobs) == 1:
            return super()._decoded(frame, blobs)
        scale, count = np.frombuffer(blobs[0])
        off = _restored(self._arrays.unpack(blobs[1], int(count)), float(scale))
        return frame.values(off / self._narrowing if frame.name == RA else off)

    def _frame(self, name: str, state: State) -> Frame:
        if name == RA:
            self._narrowing = cos_degrees(state.known[DEC])
        return super()._frame(name, state)


def _transformed(values: Floats, scale: float) -> Floats:
    """0: as they are; below: logarithm; above: hyperbolic arcsine of values / scale."""
    return values if scale == 0 else np.log(values) if scale < 0 else np.arcsinh(values / scale)


def _restored(values: Floats, scale: float) -> Floats:
    return values if scale == 0 else np.exp(values) if scale < 0 else np.sinh(values) * scale


# A network ------------------------------------------------------------------------------------------------------------
class Network(PerStar):
    """A trained autoencoder's latents in whole numbers, and of each column the difference from what the network makes of them.

    Differences are numbers of steps of the star's own grid (DeepSqueeze has one bound for all). The latents' step is the one, of
    several, that makes the whole smallest.
    """

    def __init__(self, release: Release, bounds: Mapping[str, Tolerance], model: StarModel) -> None:
        super().__init__(release, bounds, recompute=True, pixel=True, split=True)
        self._model, self._quantum = model, 0.0

    def compress(self, table: pa.Table) -> Blobs:
        if not self._quantum:
            sizes = {}
            for self._quantum in _QUANTA:
                blobs = super().compress(table.slice(0, _TRIED_STARS))
                sizes[self._quantum] = sum(len(blob) for parts in blobs.values() for blob in parts)
                self.packer = Packer()
            self._quantum = min(sizes, key=lambda quantum: sizes[quantum])
        return super().compress(table)

    def _predict(self, table: pa.Table, state: State) -> Blobs:
        z = np.rint(self._model.encode_table(table).latents / self._quantum).astype(np.int64)
        state.predicted = self._predictions(z * self._quantum, state)
        return {LATENTS: [np.array([self._quantum]).tobytes(), *(self.packer.pack(f"z{i}", part) for i, part in enumerate(z.T))]}

    def _predict_again(self, blobs: Blobs, state: State) -> None:
        (quantum,), z = np.frombuffer(blobs[LATENTS][0]), np.stack([unpack(part) for part in blobs[LATENTS][1:]], axis=1)
        state.predicted = self._predictions(z * quantum, state)

    def _predictions(self, z: Floats, state: State) -> dict[str, Floats]:
        """What the network makes of latents, the pixel's centre and what is null."""
        ra, dec = centre_of(SOURCE_ID_ORDER, state.ids >> SOURCE_ID_SHIFT)
        transform = self._model.transform
        known = {name: pa.array(np.zeros(state.rows), mask=state.nulls[name]) for name in transform.columns}
        condition = transform.condition(pa.table({**known, RA: ra, DEC: dec}))
        values = self._model.inverse(self._model.decode(z, condition), ra, dec)
        return {name: np.nan_to_num(values[name]) for name in self.bounds if name in values and name not in self._derived}


# Packages -------------------------------------------------------------------------------------------------------------
def sz3(values: Floats, error: float) -> bytes:
    import pysz

    config = pysz.szConfig()
    config.errorBoundMode, config.cmprAlgo, config.absErrorBound = pysz.szErrorBoundMode.ABS, pysz.szAlgorithm.LORENZO_REG, error
    return pysz.sz.compress(np.ascontiguousarray(values), config)[0].tobytes()


def of_sz3(blob: bytes, count: int) -> Floats:
    import pysz

    return pysz.sz.decompress(np.frombuffer(blob, np.uint8), np.float64, (count,))[0]


def zfp(values: Floats, error: float) -> bytes:
    """zfp keeps well within the error that it is given: the loosest one, and the type, that keep within this one."""
    import zfpy

    blobs = []
    for factor, dtype in ((4, np.float32), (2, np.float32), (1, np.float32), (4, np.float64), (2, np.float64), (1, np.float64)):
        blob = zfpy.compress_numpy(np.ascontiguousarray(values, dtype), tolerance=error * factor)
        if np.abs(of_zfp(blob, len(values)) - values).max() <= error:
            blobs.append(blob)
    return min(blobs, key=len)


def of_zfp(blob: bytes, count: int) -> Floats:
    import zfpy

    return zfpy.decompress_numpy(blob).astype(np.float64)
