"""Documents in, passages out: a library in a folder, searched by words (BM25), by meaning, and by both."""

from pathlib import Path
from tempfile import TemporaryDirectory

from folio import Library

NOTES = {
    "canal.txt": "The canal was dug in 1790. Its locks are opened by hand twice a day.",
    "mill.md": "# The mill\n\nA flood took the mill in 1871. It was never rebuilt.",
    "bridge.txt": "The bridge was built by Ada Miller. It has seven arches of grey stone.",
}

with TemporaryDirectory() as folder, Library.open(Path(folder, "home")) as library:
    for name, text in NOTES.items():
        Path(folder, name).write_text(text)
    for result in library.ingest([Path(folder, name) for name in NOTES]):
        print(result.status, result.name)
    for mode in ("sparse", "dense", "hybrid"):
        best = library.search("What did the flood take?", k=1, mode=mode).hits[0]
        print(f"{mode}: {best.name} [{best.start}:{best.end}] {best.text.split(chr(10))[-1]}")
