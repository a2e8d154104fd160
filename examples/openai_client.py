"""The official `openai` client against a service: `folio serve` in another terminal, FOLIO_URL for its address."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("FOLIO_URL", "http://127.0.0.1:8000") + "/v1", api_key="none")
model = client.models.list().data[0].id

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Who built the bridge?"}],
    extra_body={"folio": {"mode": "retrieval"}},  # answer from the library; without it, a plain chat
)
print(reply.choices[0].message.content)
for citation in reply.choices[0].model_extra["folio"]["citations"]:
    print(citation["name"], citation["cited_text"], citation["verified"])

for chunk in client.completions.create(model=model, prompt="Once upon a time", max_tokens=16, stream=True):
    print(chunk.choices[0].text if chunk.choices else "", end="", flush=True)
print()
