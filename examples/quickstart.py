"""A model in three lines; a question about a file, answered with checked citations, in three more."""

from pathlib import Path
from tempfile import TemporaryDirectory

from folio import LLM, Library, SamplingParams, ask

llm = LLM("embedded")
print(llm.generate(["Ada built the bridge in 1862. The bridge has seven"], SamplingParams(max_tokens=8))[0].text)

with TemporaryDirectory() as home, Library.open(home) as library:
    book = Path(home, "bridge.txt")
    book.write_text("The bridge was built by Ada Miller in 1862. It has seven arches of grey stone.\n")
    answer = ask("Who built the bridge?", [book], llm=llm, library=library)
    print(answer.answer)
    for citation in answer.citations:
        print(citation["name"], citation["start"], citation["end"], "verified" if citation["verified"] else "not found")
