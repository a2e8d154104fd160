"""Speculative decoding: a drafter copies from the prompt, the model verifies; the same tokens in fewer steps."""

from folio import LLM, SamplingParams

llm = LLM("embedded")
text = "\n".join(f"Gate {n} of the canal was painted in the colour number {n * n}." for n in range(40))
question = [{"role": "user", "content": f"{text}\nWhich colour has gate 7?"}]

plain, drafted = (llm.chat(question, SamplingParams(max_tokens=24, drafter=drafter)) for drafter in ("none", "suffix"))
assert drafted.token_ids == plain.token_ids
print(drafted.text)
print(f"{plain.stats['decode_steps']} steps without a drafter, {drafted.stats['decode_steps']} with one")
print(f"{drafted.stats['drafting']['accepted']} of {drafted.stats['drafting']['drafted']} guesses accepted")
