"""An attention policy of one's own in one file: sinks and a window, which narrows from the first layer to the last."""

from dataclasses import dataclass
from typing import ClassVar

from folio import LLM, SamplingParams
from sparse_attn.plan.patterns import AShape
from sparse_attn.plan.policies import POLICIES
from sparse_attn.plan.policy import Policy


@dataclass(frozen=True)
class Pyramid(Policy):
    widest: int = 4096
    sink: int = 128

    name: ClassVar[str] = "pyramid"

    def prefill(self, layer, model, prompt_len):
        return (AShape(self.sink, self.widest * (model.num_layers - layer) // model.num_layers),)


POLICIES[Pyramid.name] = Pyramid

llm = LLM("embedded", prefix_cache=False)
text = "\n".join(f"House {n} in the long street belongs to family number {n * 7 % 1000}." for n in range(300))
for policy in ("dense", "pyramid:widest=2048"):
    reply = llm.chat(
        [{"role": "user", "content": f"{text}\nWhose is house 290?"}], SamplingParams(max_tokens=16, attention=policy)
    )
    print(f"{policy}: {reply.stats.get('prefill_density', 1.0):.0%} of the causal blocks: {reply.text!r}")
