"""What to cite for what a run used: the data, the software and the methods."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from gaiadask.config.sections import Config

ACKNOWLEDGEMENT = (
    "This work has made use of data from the European Space Agency (ESA) mission Gaia (https://www.cosmos.esa.int/gaia), processed by the "
    "Gaia Data Processing and Analysis Consortium (DPAC, https://www.cosmos.esa.int/web/gaia/dpac/consortium). Funding for the DPAC has been "
    "provided by national institutions, in particular the institutions participating in the Gaia Multilateral Agreement."
)
"""As ESA asks for it."""


class Reference(NamedTuple):
    """A publication, and what of a run it is cited for.

    Attributes:
        key: of its BibTeX entry.
        used_for: what of the run it stands for.
        author, title, where, year: of it; where: journal, volume and page, or proceedings.
        link: "doi:…" or "arXiv:…".
        is_used: whether a run used it, by its configuration and the names of its finished stages.
    """

    key: str
    used_for: str
    author: str
    title: str
    where: str
    year: int
    link: str
    is_used: Callable[[Config, Collection[str]], bool]

    def text(self) -> str:
        """One line for people."""
        return f"{self.used_for}: {self.author} {self.year}, {self.where}, {self.link}"

    def bibtex(self) -> str:
        """The BibTeX entry."""
        kind, _, number = self.link.partition(":")
        link = f"  doi = {{{number}}}" if kind == "doi" else f"  archivePrefix = {{arXiv}},\n  eprint = {{{number}}}"
        return (
            f"@misc{{{self.key},\n  author = {{{self.author}}},\n  title = {{{{{self.title}}}}},\n"
            f"  howpublished = {{{self.where}}},\n  year = {{{self.year}}},\n{link}\n}}"
        )


def citations(config: Config, stages: Collection[str]) -> list[Reference]:
    """What a run used.

    Args:
        config: of the run.
        stages: names of its finished stages.
    """
    return [reference for reference in REFERENCES if reference.is_used(config, stages)]


def uses_gaia(config: Config) -> bool:
    """Whether the run's stars are measured ones: mock stars are nobody's data."""
    return config.archive.kind != "mock"


def _of_gaia(config: Config, _: Collection[str]) -> bool:
    return uses_gaia(config)


def _over_tap(config: Config, _: Collection[str]) -> bool:
    return config.archive.kind == "tap"


def _always(_: Config, __: Collection[str]) -> bool:
    return True


def _is_variational(config: Config, stages: Collection[str]) -> bool:
    return "train" in stages and config.model.preset in ("vae", "flow")


def _has(stage: str) -> Callable[[Config, Collection[str]], bool]:
    return lambda _, stages: stage in stages


def _has_flows(config: Config, stages: Collection[str]) -> bool:
    return "prior" in stages and config.prior.kind in ("latent", "free")


REFERENCES = (
    Reference(
        "GaiaMission", "the Gaia mission", "Gaia Collaboration and Prusti, T. and others", "The Gaia mission",
        "A&A 595, A1", 2016, "doi:10.1051/0004-6361/201629272", _of_gaia,
    ),
    Reference(
        "GaiaDR2", "Gaia DR2", "Gaia Collaboration and Brown, A. G. A. and others",
        "Gaia Data Release 2: Summary of the contents and survey properties",
        "A&A 616, A1", 2018, "doi:10.1051/0004-6361/201833051", _of_gaia,
    ),
    Reference(
        "Astroquery", "access to the archive", "Ginsburg, A. and others",
        "astroquery: An Astronomical Web-querying Package in Python",
        "AJ 157, 98", 2019, "doi:10.3847/1538-3881/aafc33", _over_tap,
    ),
    Reference(
        "Astropy", "positions, units and tables", "Astropy Collaboration and Price-Whelan, A. M. and others",
        "The Astropy Project: Sustaining and Growing a Community-oriented Open-source Project and the Latest Major Release (v5.0)",
        "ApJ 935, 167", 2022, "doi:10.3847/1538-4357/ac7c74", _always,
    ),
    Reference(
        "HEALPix", "the partitions of the sky", "Gorski, K. M. and others",
        "HEALPix: A Framework for High-Resolution Discretization and Fast Analysis of Data Distributed on the Sphere",
        "ApJ 622, 759", 2005, "doi:10.1086/427976", _always,
    ),
    Reference(
        "Dask", "parallel work", "Rocklin, M.", "Dask: Parallel Computation with Blocked algorithms and Task Scheduling",
        "Proceedings of the 14th Python in Science Conference", 2015, "doi:10.25080/Majora-7b98e3ed-013", _always,
    ),
    Reference(
        "PyTorch", "the network", "Paszke, A. and others", "PyTorch: An Imperative Style, High-Performance Deep Learning Library",
        "Advances in Neural Information Processing Systems 32", 2019, "arXiv:1912.01703", _has("train"),
    ),
    Reference(
        "VAE", "the variational autoencoder", "Kingma, D. P. and Welling, M.", "Auto-Encoding Variational Bayes",
        "ICLR", 2014, "arXiv:1312.6114", _is_variational,
    ),
    Reference(
        "NeuralSplineFlows", "the prior of new stars", "Durkan, C. and Bekasov, A. and Murray, I. and Papamakarios, G.",
        "Neural Spline Flows", "Advances in Neural Information Processing Systems 32", 2019, "arXiv:1906.04032", _has_flows,
    ),
    Reference(
        "Pcodec", "coding the compressed catalogue", "Loncaric, M. and Jeppesen, N. and Zinberg, B.",
        "Pcodec: Better Compression for Numerical Sequences", "arXiv", 2025, "arXiv:2502.06112", _has("compress"),
    ),
)  # fmt: skip
