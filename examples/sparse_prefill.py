"""A long prompt under several attention policies: the share of the keys that each reads, and its first token."""

from folio import LLM, SamplingParams

llm = LLM("embedded", prefix_cache=False)
text = "\n".join(f"House {n} in the long street belongs to family number {n * 7 % 1000}." for n in range(300))
question = [{"role": "user", "content": f"{text}\nWhose is house 150?"}]

for policy in ("dense", "streaming:sink=64,local=1024", "xattention:gate=1024", "trianglemix:gate=1024"):
    result = llm.chat(question, SamplingParams(max_tokens=16, attention=policy))
    density, seconds = result.stats.get("prefill_density", 1.0), result.stats["ttft_s"]
    print(f"{policy:32} {density:4.0%} of the causal blocks, first token after {seconds:.2f} s: {result.text!r}")
