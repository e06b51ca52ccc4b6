"""Read a compressed catalogue without gaiadask: a second implementation of the format that docs/codec.md describes.

python docs/read_compressed.py FOLDER [COLUMN ...] --output FILE.parquet

FOLDER: `compressed` of a run. COLUMN: by default all but `_healpix_29`, which needs a HEALPix library.
"""

import argparse
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pcodec import standalone

VERSION, LEAST_PILE, FIRST_KNOT = 1, 3000, (1022 << 52) + (1697 << 40)
G, BP, RP = "phot_g_mean_flux", "phot_bp_mean_flux", "phot_rp_mean_flux"
ZERO_POINTS = {G: 25.6883657251, BP: 25.3513881707, RP: 24.7619199882}
COLOURS = {"bp_rp": (BP, RP), "bp_g": (BP, G), "g_rp": (G, RP)}
HOT, COOL = np.array([[0.06, 6.731e-5, -6.647e-8, 2.859e-11, -7.197e-15], [1.749, 1.977e-3, 3.737e-7, -8.966e-11, -4.183e-14]])
GALACTIC = ((-0.0548755604162154, -0.8734370902348850, -0.4838350155487132), (0.4941094278755837, -0.4448296299600112, 0.7469822444972189),
            (-0.8676661490190047, -0.1980763734312015, 0.4559837761750669))  # fmt: skip
ECLIPTIC = ((1.0, 0.0, 0.0), (0.0, 0.9174821334228558, 0.39777699135300065), (0.0, -0.39777699135300065, 0.9174821334228558))


class Functions:
    """Elementary functions, pixel centres and formulas: single operations in the order that the page gives."""

    def __init__(self, tables: dict) -> None:
        self.tables = {name: np.array([float.fromhex(number) for number in numbers]) for name, numbers in tables.items()}
        self.series = lambda name, r: np.polyval(self.tables[name][::-1], r)  # by Horner's rule
        self.magnitude = lambda flux, v: (ZERO_POINTS[flux] - 2.5 * self.log(v(flux), 10)).astype(np.float32)

    def log(self, x: np.ndarray, base: int = 2) -> np.ndarray:
        usual = np.where((x > 0) & (x < np.inf), x, 1.0)
        tiny = usual < 2.0**-1022
        d = np.where(tiny, usual * 2.0**52, usual).view(np.int64) - FIRST_KNOT + (1 << 39)
        whole, fraction = (d >> 52) - np.where(tiny, 52.0, 0.0), d & ((1 << 52) - 1)
        knot, near = (FIRST_KNOT + (fraction >> 40 << 40)).view(np.float64), (FIRST_KNOT - (1 << 39) + fraction).view(np.float64)
        r = (near - knot) / knot
        rest, (a, a1, a2) = self.series("log2_series", r) * r + self.tables["log2"][fraction >> 40], self.tables["log10_of_2"]
        value = whole + rest if base == 2 else (rest * a + whole * a2) + whole * a1
        return np.where(x > 0, np.where(x == np.inf, np.inf, value), np.nan)

    def power(self, y: np.ndarray, base: int = 2) -> np.ndarray:
        e, lg = ((4096.0, 1 / 4096, 0.0), 1.0) if base == 2 else (self.tables["exp10_steps"], self.tables["log10_of_2"][0])
        inside = np.clip(np.where(np.isnan(y), 0.0, y), -1100 * lg, 1100 * lg)
        n = np.rint(inside * e[0])
        r, knot, k = (inside - n * e[1]) - n * e[2], self.tables["exp2"][n.astype(np.int64) & 4095], n.astype(np.int64) >> 12
        value = (self.series(f"exp{base}_series", r) * r) * knot + knot
        return np.where(np.isnan(y), np.nan, np.ldexp(np.ldexp(value, k >> 1), k - (k >> 1)))

    def sin_cos(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.where(np.abs(x) < 2.0**40, x, np.fmod(x, 360.0))
        q = np.rint(x * (1 / 90))
        t, turn = x - q * 90.0, np.nan_to_num(q).astype(np.int64) & 3
        s = (self.series("sin_series", t * t) * (t * t) + self.tables["sin_first"][1]) * t + t * self.tables["sin_first"][0]
        c = self.series("cos_series", t * t) * (t * t) + 1.0
        return np.choose(turn, [s, c, -s, -c]) + 0.0, np.choose(turn, [c, -s, -c, s]) + 0.0

    def angle(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        smaller, larger = np.minimum(np.abs(y), np.abs(x)), np.maximum(np.abs(y), np.abs(x))
        t = np.where(larger == 0, 0.0, np.where(np.isinf(smaller), 1.0, smaller / larger))
        place = np.rint(np.nan_to_num(t) * 256)
        r = (t - place * (1 / 256)) / (place * (1 / 256) * t + 1.0)
        angle = self.series("arctan_series", r * r) * r + self.tables["arctan"][place.astype(np.int64)]
        angle = np.where(np.abs(y) > np.abs(x), 90.0 - angle, angle)
        return np.copysign(np.where(np.signbit(x), 180.0 - angle, angle), y)

    def centre(self, order: int, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, base = 1 << order, pixel >> (2 * order)
        x, y = (sum(((pixel >> (2 * b + odd)) & 1) << b for b in range(order)) + 0 * pixel for odd in (0, 1))
        j = np.repeat([2, 3, 4], 4)[base] * n - x - y - 1
        q = np.minimum(np.minimum(j, 4 * n - j), n)
        s = np.where(q < n, 0, (j - n) & 1)
        i = (((np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])[base] * q + x - y + 1 + s) >> 1) - 1) % (4 * q) + 1
        ra, cap = (i - (s + 1) * 0.5) * 90.0 / q, 1.0 - (q * q) / (3.0 * n * n)
        z = np.where(q < n, np.where(j >= n, -cap, cap), (2 * n - j) * 2.0 / (3.0 * n))
        return np.where(ra < 0, ra + 360.0, ra), self.angle(z, np.sqrt((1 - z) * (1 + z)))

    def derived(self, name: str, v: Callable) -> np.ndarray:  # v: the values of a column by its name
        if name in COLOURS:
            return self.magnitude(COLOURS[name][0], v) - self.magnitude(COLOURS[name][1], v)
        if name.endswith("_mean_mag"):
            return self.magnitude(name.replace("mag", "flux"), v)
        if name in ("l", "b", "ecl_lon", "ecl_lat"):
            matrix, offset = (GALACTIC, 0.0) if name in ("l", "b") else (ECLIPTIC, 0.05542 / 3600)
            (sin_ra, cos_ra), (sin_dec, cos_dec) = self.sin_cos(v("ra") + offset), self.sin_cos(v("dec"))
            x, y, z = ((a * (cos_dec * cos_ra) + b * (cos_dec * sin_ra)) + c * sin_dec for a, b, c in matrix)
            longitude = self.angle(y, x) + np.where(self.angle(y, x) < 0, 360.0, 0.0)
            longitude = np.where(longitude >= 360.0, 0.0, longitude)
            return longitude if name in ("l", "ecl_lon") else self.angle(z, np.sqrt(x * x + y * y))
        if name in ("lum_val", "radius_val"):
            t, c = v("teff_val") - 5772.0, np.where(v("teff_val") < 4000, COOL[:, None], HOT[:, None])
            correction = (((c[4] * t + c[3]) * t + c[2]) * t + c[1]) * t + c[0]
            absolute = self.magnitude(G, v).astype(np.float64) + 5.0 * self.log(v("parallax") * 0.01, 10)
            luminosity = self.power(-0.4 * ((absolute + correction) - 4.74), 10)
            return luminosity if name == "lum_val" else np.sqrt(luminosity) * np.square(5772.0 / v("teff_val"))
        if name == "astrometric_n_bad_obs_al":
            return v("astrometric_n_obs_al") - v("astrometric_n_good_obs_al")
        if name == "astrometric_gof_al":
            free = np.where(v("astrometric_n_good_obs_al") > 5, v("astrometric_n_good_obs_al") - 5, np.nan)
            x = v("astrometric_chi2_al") / free
            usual = np.isfinite(x) & (x != 0)
            m, e = np.frexp(np.where(usual, np.abs(x), 1.0))
            m = np.ldexp(m, e - 3 * (e // 3))
            w = self.power(self.log(m) / 3)
            root = np.where(usual, np.copysign(np.ldexp(w - (w * w * w - m) / (w * w * 3.0), e // 3), x), x)
            return (root + 2 / (9 * free) - 1) / np.sqrt(2 / (9 * free))
        both, names = name == "phot_bp_rp_excess_factor", (name.removesuffix("_over_error"), name.replace("_over", ""))
        above, below = (v(BP) + v(RP), v(G)) if both else map(v, names)
        return above / np.where(below > 0, below, np.nan)


class Chunk(dict):
    """The columns of a chunk, each decoded when it is first asked for: values, floats and mean of all stars, and who has a value."""

    def __init__(self, card: dict, types: dict, functions: Functions, tile: dict, file: pq.ParquetFile, group: int) -> None:
        self.parts = lambda name: file.read_row_group(group, [name])[name][0].as_py()
        self.unpacked = lambda part: standalone.simple_decompress(part) if part else np.zeros(0, np.int64)
        self.card, self.types, self.functions, self.tile, self.rows = card, types, functions, tile, self.parts("rows")
        self.pixels = np.clip(self["source_id"][0] >> 35, 0, 12 * 4**12 - 1)

    def __missing__(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | float, np.ndarray]:
        code = next(code for code in self.card["columns"] if code["name"] == name)
        kind, dtype, (crc, own, at, exceptions, *parts) = (
            code["kind"],
            np.dtype(self.types[name].to_pandas_dtype()),
            self.parts(name),
        )
        led = code["leader"] and not name.startswith("null:")
        here = self.unpacked(own) == 0 if own else ~self[f"null:{code['leader']}"][0] if led else np.ones(self.rows, bool)
        mean, scale = self.predicted(code["prediction"] or {"mean": 0, "unit": 1.0, "parents": (), "sky_mean": ()})
        level = np.floor(16 * np.clip(mean, 0.0, len(code["labels"]))).astype(np.int64) if kind == "category" else scale >> 7
        numbers = self.piled(parts[1:2] if kind in ("text", "source_id") else parts, level, here)
        if kind == "source_id":
            values = (np.cumsum(numbers) << 35) | (self.unpacked(parts[2]).astype(np.int64) << parts[0][0])
        elif kind == "text":
            texts, ids = json.loads(zlib.decompress(parts[0])), self["source_id"][0]
            values = np.array([texts[n] for n in numbers] if parts[1:] else [f"{texts[0]}{i}" for i in ids], object)
        elif kind == "grid":
            values, mean = self.on_grid(code, mean, numbers)
        elif kind in ("formula", "ulps"):
            values = self.derived(code, 0.0 if kind == "ulps" or dtype.kind == "i" else np.nan)
            if dtype.kind == "i":
                values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
            if kind == "ulps":
                whole, rest = f"i{dtype.itemsize}", 2 ** (8 * dtype.itemsize - 1) - 1 if dtype.kind == "f" else 0
                bits = values.astype(dtype).view(whole).astype(np.int64)
                bits = np.where(bits < 0, bits ^ rest, bits) + numbers
                values = np.where(bits < 0, bits ^ rest, bits).astype(whole).view(dtype)
        else:
            values = np.array(code["labels"], dtype)[numbers] if kind == "category" else numbers
        values = values.astype(dtype)
        if exceptions:
            rows = np.flatnonzero(here)[np.cumsum(self.unpacked(at))]
            values[rows] = json.loads(zlib.decompress(exceptions)) if dtype.kind == "O" else self.unpacked(exceptions)
        content = "\0".join(values[here]).encode() if dtype.kind == "O" else values[here].tobytes()
        if zlib.crc32(content, 0 if here.all() else zlib.crc32(np.packbits(~here))).to_bytes(4, "little") != crc:
            raise SystemExit(f"column {name} of {self.tile} does not come back as it was compressed")
        floats = np.where(here, (numbers if kind in ("category", "text") else values).astype(np.float64), np.nan)
        return self.setdefault(name, (values, floats, mean, here))

    def on_grid(self, code: dict, mean: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name, tolerance, f, of_log, step = code["name"], code["tolerance"], self.functions, code["space"] == "log", code["step"]
        if code["offset"] == "centre":
            in_tile = (self.tile["order"], self.pixels * 0 + self.tile["pixel"])
            mean = mean + f.centre(*(in_tile if self.card["anchor"] == "tile" else (12, self.pixels)))[name == "dec"]
        if code["offset"] == "formula":
            mean = mean + (f.log(self.derived(code)) if of_log else self.derived(code))
        if tolerance["kind"] == "relative":
            return f.power(n * step + mean) * np.sqrt(1 - tolerance["amount"] * tolerance["amount"]), mean
        step = step * self[tolerance["error"]][1] if tolerance["error"] else step
        step = np.minimum(step / f.sin_cos(self["dec"][1])[1], 1.0) if name == "ra" else step
        value = np.rint(mean) + n if tolerance["kind"] == "exact" else n * step + (f.power(mean) if of_log else mean)
        value = np.where((name == "ra") & (value < 0), value + 360.0, value)
        value = np.where((name == "ra") & (value >= 360.0), value - 360.0, value)
        return np.clip(value, -90.0, 90.0) if name == "dec" else value, mean

    def derived(self, code: dict, undefined: float = np.nan) -> np.ndarray:
        value = self.functions.derived(code["name"], lambda name: self[name][1]).astype("f4" if code["dtype"] == "float" else "f8")
        return np.where(np.isnan(value), undefined, value).astype(np.float64)

    def predicted(self, prediction: dict) -> tuple[np.ndarray, np.ndarray]:
        sums, lines = np.array([[prediction["mean"]], [0]]) + np.zeros(self.rows, np.int64), []
        for parent in prediction["parents"]:
            feature, tables = self.card["features"][parent["feature"]], np.array([parent["mean"], parent["scale"]])
            (_, x, mean, _), width, low, high = self[feature["column"]], feature["width"], feature["low"], feature["high"]
            x = (x if width else self.functions.log(x)) - (mean if feature["kind"] == "residual" else 0.0)
            x = x - self.functions.log(self[feature["other"]][1]) if feature["kind"] == "ratio" else x
            if width:
                d = x - feature["centre"]
                x = np.where(np.isnan(d), d, np.copysign(((np.abs(d) / width + 1.0).view(np.int64) >> 20) * 2.0**-32 - 1023.0, d))
            h, knots = np.where(np.isnan(x), 0.0, np.clip(x, low, high) - low), np.array(feature["knots"])
            level = (h * (4096 / (high - low))).astype(np.int64)
            k = np.minimum(np.searchsorted(knots, level, side="right") - 1, 15)
            within = 64 * (level - knots[k]) // (knots[k + 1] - knots[k])
            between = (tables[:, k] * (64 - within) + tables[:, k + 1] * within + 32) // 64
            sums, lines = sums + np.where(np.isnan(x), tables[:, 17:], between), [*lines, parent["slope"] * h]
        if prediction["sky_mean"]:
            sums += np.array([prediction["sky_mean"], prediction["sky_scale"]])[:, self.pixels >> 18]
        return sum(lines, sums[0] * prediction["unit"]), sums[1]

    def piled(self, parts: list[bytes], level: np.ndarray, here: np.ndarray) -> np.ndarray:
        """The numbers of all stars, from the piles of those that have one; 0 of the others, and where there are no parts."""
        order, found = np.flatnonzero(here), np.concatenate([self.unpacked(part) for part in parts or [b""]])
        if len(order):
            level, pile_of, pile, stars = level[here] - level[here].min(), [], 0, 0
            for count in np.bincount(level):
                pile_of, stars = [*pile_of, pile], stars + count
                pile, stars = (pile + 1, 0) if stars >= LEAST_PILE else (pile, stars)
            order = order[np.argsort(np.minimum(pile_of, max(pile - 1, 0))[level], kind="stable")]
        numbers = np.zeros(len(here), found.dtype)
        numbers[order] = found if parts else 0
        return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("columns", nargs="*")
    parser.add_argument("--output", required=True)
    folder, names, output = vars(parser.parse_args()).values()
    np.seterr(all="ignore")
    record = json.loads((folder / "compressed.json").read_text())
    files = [(folder / name).read_bytes() for name in ("codec.json.gz", "elementary.json.gz")]
    if record["version"] != VERSION or [hashlib.sha256(f).hexdigest() for f in files] != [record["card"], record["tables"]]:
        raise SystemExit(f"{folder} is not a whole compressed catalogue of version {VERSION} of the format")
    card, tables = (json.loads(gzip.decompress(file)) for file in files)
    if unknown := set(names) - set(card["schema_columns"]):
        raise SystemExit(f"{folder} has no column {', '.join(unknown)}; it has {', '.join(card['schema_columns'])}")
    functions, types = Functions(tables), {code["name"]: pa.type_for_alias(code["dtype"]) for code in card["columns"]}
    schema = pa.schema([(name, types[name]) for name in names or card["schema_columns"]])
    with pq.ParquetWriter(output, schema) as writer:
        for partition in record["partitions"]:
            origin = {"card": record["card"], "compress": record["key"], "input": partition["checksum"]}
            key = hashlib.sha256(json.dumps(origin, separators=(",", ":")).encode()).hexdigest()[:16]
            order, pixel = partition["tile"]["order"], partition["tile"]["pixel"]
            file = pq.ParquetFile(folder / f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet")
            if {b"gaiadask.codec": b"%d" % VERSION, b"gaiadask.key": key.encode()}.items() - file.metadata.metadata.items():
                raise SystemExit(f"the file of pixel {pixel}, order {order}, is not of this catalogue, or of another version")
            for group in range(file.num_row_groups):
                chunk = Chunk(card, types, functions, partition["tile"], file, group)
                columns = [pa.array(chunk[name][0], types[name], mask=~chunk[name][3]) for name in schema.names]
                writer.write_table(pa.table(columns, schema=schema))
