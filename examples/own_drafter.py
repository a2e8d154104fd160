"""A drafter of one's own in one file: it copies what followed the last token where that stood before."""

from dataclasses import dataclass

from drafters.base import SourceDrafter
from drafters.options import Options, option
from drafters.registry import register
from drafters.tree import DraftTree
from folio import LLM, SamplingParams


@dataclass(frozen=True)
class CopyOptions(Options):
    name = "copy"
    length: int = option(8, "tokens copied", 1, 64)


class Copy(SourceDrafter):
    name = "copy"

    def __init__(self, length: int) -> None:
        self.length = length

    def grow(self, state, extra, budget):
        text = [*state.tokens, *extra]
        after = next((i for i in range(len(text) - 1, 0, -1) if text[i - 1] == text[-1]), len(text))
        return DraftTree.chain(text[after : after + self.length], source=self.name)


register(CopyOptions, lambda options, resources: Copy(options.length))

llm = LLM("embedded")
prompt = "The mill stands on the hill. The miller lives in the mill. Where is the mill?"
for drafter in ("none", "copy:length=4"):
    result = llm.generate([prompt], SamplingParams(max_tokens=32, drafter=drafter))[0]
    print(f"{drafter}: {result.text!r} in {result.stats['decode_steps']} steps")
