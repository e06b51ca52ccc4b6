"""Where stars come from: one package a kind of archive, behind the interface of `archive.base`."""
