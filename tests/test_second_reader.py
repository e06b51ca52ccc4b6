"""docs/codec.md and docs/read_compressed.py: a reader written from the page, without gaiadask, gives the same bits."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from small_run import make_run, small_config
from test_repository import module_of_docs

from gaiadask import elementary
from gaiadask.catalogue import Partition
from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.card import CodecCard, ColumnCode, Feature, Parent, Prediction
from gaiadask.codec.chunk import CHUNK_ROWS
from gaiadask.codec.columns import HEAD
from gaiadask.codec.compressed import Compressed, CompressedColumn, CompressedRecord, SizeAtBound
from gaiadask.codec.piles import LEAST_ROWS, Piles, unpack_any
from gaiadask.codec.pixels import centre_of
from gaiadask.errors import StoreError
from gaiadask.release.dr2 import BP_ZERO_POINT, DR2, G_ZERO_POINT, RP_ZERO_POINT
from gaiadask.store.files import Store

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"
READER, PAGE = DOCS / "read_compressed.py", DOCS / "codec.md"
BOUNDS = (0.1, 0.0)
# gaiadask cannot be imported there; each line of standard input is the reader's arguments.
WITHOUT_GAIADASK = """
import json, runpy, sys
sys.modules["gaiadask"] = None
for line in sys.stdin:
    sys.argv = json.loads(line)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def products_in(store: Path, **sections: Any) -> dict[float, Compressed]:
    """A catalogue compressed with each bound."""
    products = {}
    for bound in BOUNDS:
        config = small_config(store, name=f"bound-{bound:g}", codec={"bound_sigma": bound, "stars": 1_000}, **sections)
        make_run(config, "ingest", "compress")
        products[bound] = Compressed(Store(f"{store}/runs/{config.name}/compressed"))
    return products


def read_without_gaiadask(*arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """The reader as a stranger runs it, once for each list of arguments."""
    lines = "\n".join(json.dumps([str(READER), *map(str, each)]) for each in arguments)
    return subprocess.run([sys.executable, "-c", WITHOUT_GAIADASK], input=lines, capture_output=True, text=True, check=False)


def own(product: Compressed, names: Sequence[str]) -> pa.Table:
    """What gaiadask reads."""
    return pa.concat_tables(
        [table for partition in product.record.partitions for table in product.reader.iterate(partition, names)]
    )


def bits(column: pa.ChunkedArray) -> NDArray[np.int64] | list[object]:
    """Values that can be compared to the bit, those that are not null."""
    values = column.drop_null()
    if not pa.types.is_floating(column.type):
        return values.to_pylist()
    return values.to_numpy().view(np.int64 if column.type == pa.float64() else np.int32)


def assert_same_bits(file: Path, product: Compressed, names: Sequence[str]) -> None:
    """Compare what a file has with what gaiadask reads."""
    expected, found = own(product, names), pq.read_table(file)
    assert found.column_names == list(names)
    for name in names:
        assert found[name].type == expected[name].type, name
        assert np.array_equal(found[name].is_null(), expected[name].is_null()), name
        assert np.array_equal(bits(found[name]), bits(expected[name])), name


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The reader as a module."""
    return module_of_docs("read_compressed")


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Compressed]:
    """Mock stars, nulls and all, by the bound that they are compressed with."""
    archive, columns = {"mock_stars": 12_000, "chunk_rows": 12_000}, {"columns": "seed25"}
    folder = tmp_path_factory.mktemp("compressed")
    return products_in(folder, archive=archive, selection={**columns, "not_null": ()}, model=columns)


def test_second_reader_gives_the_same_bits(products: dict[float, Compressed], tmp_path: Path) -> None:
    some = ["pmdec", "radius_val"]
    jobs = [(product, list(product.reader.columns[1:])) for product in products.values()] + [(products[0.1], some)]
    files = [tmp_path / f"{number}.parquet" for number in range(len(jobs))]
    done = read_without_gaiadask(
        *([product.store.uri, *names, "--output", file] for (product, names), file in zip(jobs, files, strict=True))
    )
    assert done.returncode == 0, done.stderr
    for (product, names), file in zip(jobs, files, strict=True):
        assert_same_bits(file, product, names)


def test_what_is_read_has_what_the_page_describes(products: dict[float, Compressed]) -> None:
    """Else the comparison would say little."""
    kinds = {code.kind for product in products.values() for code in product.card.columns}
    assert kinds == {"source_id", "grid", "formula", "category", "exact", "ulps"}  # texts: the real rows
    assert {feature.kind for feature in products[0.1].card.features} == {"value", "residual", "ratio"}
    assert any(summary.exceptions for summary in products[0.1].record.columns.values())


@pytest.mark.parametrize(
    ("stars_of_level", "piles"),
    [
        ((0,), 1),
        ((1,), 1),
        ((2_999, 1), 1),
        ((3_000, 2_999), 1),
        ((3_000, 3_000), 2),
        ((2_999, 1, 0, 2_999, 5_000, 0, 3_000, 10), 3),
    ],
)
def test_second_reader_finds_the_same_piles(reader: ModuleType, stars_of_level: tuple[int, ...], piles: int) -> None:
    """So many stars that a small catalogue has such piles in no column."""
    random = np.random.default_rng(3)
    level = random.permutation(np.repeat(np.arange(len(stars_of_level)), stars_of_level))
    stars = np.sort(random.permutation(len(level) + 100)[: len(level)])
    here, levels, numbers = np.zeros(len(level) + 100, bool), np.full(len(level) + 100, -7), np.zeros(len(level) + 100, np.int64)
    here[stars], levels[stars], numbers[stars] = True, level, random.integers(-(2**40), 2**40, len(level))
    ours = Piles(level.astype(np.int32), None, len(level))
    assert len(ours.sizes) == piles
    chunk = reader.Chunk.__new__(reader.Chunk)
    chunk.unpacked = unpack_any
    assert np.array_equal(chunk.piled(ours.pack(numbers[here]), levels, here), numbers)


def test_second_reader_names_what_is_wrong(products: dict[float, Compressed], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(products[0.1].store.uri.removeprefix("file://"), folder)
    arguments = [str(folder), "--output", str(tmp_path / "out.parquet")]
    done = read_without_gaiadask([*arguments[:1], "no_such", *arguments[1:]])
    assert done.returncode == 1
    assert "no column no_such" in done.stderr

    partition = folder / products[0.1].record.partitions[0].tile.file
    content = partition.read_bytes()
    blob = pq.read_table(partition, columns=["dec"])["dec"][0][HEAD].as_py()
    place = content.index(blob) + len(blob) // 2
    partition.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    done = read_without_gaiadask([*arguments[:1], "dec", *arguments[1:]])
    assert done.returncode == 1
    assert "column dec" in done.stderr
    assert "does not come back" in done.stderr

    shutil.copyfile(folder / products[0.1].record.partitions[1].tile.file, partition)
    done = read_without_gaiadask(arguments)
    assert done.returncode == 1
    assert "is not of this catalogue" in done.stderr

    (folder / "elementary.json.gz").write_bytes(b"other tables")
    done = read_without_gaiadask(arguments)
    assert done.returncode == 1
    assert "is not a whole compressed catalogue" in done.stderr


def test_the_tables_are_part_of_the_product(products: dict[float, Compressed], tmp_path: Path) -> None:
    folder = tmp_path / "without"
    shutil.copytree(products[0.1].store.uri.removeprefix("file://"), folder)
    Compressed(Store(str(folder))).check_tables()
    (folder / "elementary.json.gz").write_bytes(b"other tables")
    with pytest.raises(StoreError, match=r"elementary\.json\.gz is not the file"):
        Compressed(Store(str(folder))).check_tables()
    (folder / "elementary.json.gz").unlink()
    with pytest.raises(StoreError, match=r"elementary\.json\.gz"):
        Compressed(Store(str(folder))).check_tables()


def test_second_reader_is_short_and_needs_three_packages() -> None:
    text = READER.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    packages = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    assert packages == {"numpy", "pyarrow", "pcodec"}


# What mock stars do not have: values at the edges ---------------------------------------------------------------------
EDGES = np.array([
    0.0, -0.0, 5e-324, 2.2e-308, 1e-300, 0.1, 0.5, 1.0, 2.0, 45.0, 90.0, 179.9, 270.0, 359.999, 360.0, 1e5, 1e300, np.inf, np.nan, -1.0, -90.0, -1e5, -np.inf,
])  # fmt: skip


@pytest.fixture(scope="module")
def functions(reader: ModuleType) -> Any:
    """The reader's elementary functions."""
    return reader.Functions(json.loads(elementary.tables_text()))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_second_readers_functions_have_the_same_bits(functions: Any) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate([EDGES, random.normal(0, 100, 2_000), np.exp2(random.uniform(-1074, 1023, 2_000))])
    y = random.permutation(x)
    pairs = {
        "log2": (functions.log(x), elementary.log2(x)),
        "log10": (functions.log(x, 10), elementary.log10(x)),
        "exp2": (functions.power(x), elementary.exp2(x)),
        "exp10": (functions.power(x, 10), elementary.exp10(x)),
        "sine": (functions.sin_cos(x)[0], elementary.sin_degrees(x)),
        "cosine": (functions.sin_cos(x)[1], elementary.cos_degrees(x)),
        "arctangent": (functions.angle(y, x), elementary.arctan2_degrees(y, x)),
    }
    for order in (0, 3, 12):
        pixels = random.integers(0, 12 * 4**order, 1_000)
        for name, found, expected in zip(("ra", "dec"), functions.centre(order, pixels), centre_of(order, pixels), strict=True):
            pairs[f"{name} of order {order}"] = found, expected
    for name, (found, expected) in pairs.items():
        assert same_bits(found, expected), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [name for name, column in DR2.columns.items() if column.derived_from])
def test_second_readers_formulas_have_the_same_bits(functions: Any, name: str) -> None:
    random = np.random.default_rng(2)
    values = {}
    for source in DR2.columns[name].derived_from:
        scale = {"teff_val": 5_000, "ra": 100, "dec": 40, "parallax": 2}.get(source, 300)
        values[source] = np.concatenate([random.permutation(EDGES), np.abs(random.normal(scale, scale / 3, 2_000))])
    expected = DR2.derive(values, [name])[name]
    assert same_bits(functions.derived(name, values.__getitem__).astype(expected.dtype), expected)


def same_bits(first: NDArray, second: NDArray) -> bool:
    """Whether values are the same, signs of zeros too; one NaN is as good as another."""
    there = ~np.isnan(second)
    whole = np.int64 if second.dtype == np.float64 else np.int32
    return bool(np.array_equal(np.isnan(first), ~there) and np.array_equal(first[there].view(whole), second[there].view(whole)))


# The page ------------------------------------------------------------------------------------------------------------
def test_page_has_every_field_and_every_derived_column() -> None:
    page = PAGE.read_text(encoding="utf-8")
    words = set(re.findall(r"`([^`\s]+)`", page))
    records = (
        CodecCard,
        ColumnCode,
        Feature,
        Parent,
        Prediction,
        Tolerance,
        CompressedRecord,
        CompressedColumn,
        SizeAtBound,
        Partition,
    )
    fields = {field for record in records for field in record.model_fields}
    assert not fields - words
    ratios = {name for name in DR2.formulas if name.endswith("_over_error")}
    assert not set(DR2.formulas) - ratios - words
    for number in (G_ZERO_POINT, BP_ZERO_POINT, RP_ZERO_POINT, LEAST_ROWS, CHUNK_ROWS):
        assert f"{number:,}" in page or str(number) in page, number


# Real stars ----------------------------------------------------------------------------------------------------------
def test_second_reader_gives_the_same_bits_of_real_stars(real_rows_path: Path, tmp_path: Path) -> None:
    archive, columns = {"kind": "files", "uris": [str(real_rows_path)]}, {"columns": "all"}
    products = products_in(tmp_path / "store", archive=archive, selection={**columns, "not_null": ()}, model=columns)
    files = [tmp_path / f"{bound:g}.parquet" for bound in products]
    arguments = zip(products.values(), files, strict=True)
    done = read_without_gaiadask(*([product.store.uri, "--output", file] for product, file in arguments))
    assert done.returncode == 0, done.stderr
    for product, file in zip(products.values(), files, strict=True):
        assert_same_bits(file, product, product.reader.columns[1:])
        assert {"text", "category"} <= {code.kind for code in product.card.columns}
