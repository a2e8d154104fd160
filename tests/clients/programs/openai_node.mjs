// The official client for JavaScript; run by tests/clients.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.SERVICE_BASE, apiKey: process.env.SERVICE_KEY, maxRetries: 0 });
const model = process.env.SERVICE_MODEL;
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Say hello." }];

const parts = {
  async chat() {
    const first = await client.chat.completions.create({ model, messages, max_completion_tokens: 20, temperature: 0 });
    assert(first.choices[0].message.content);
    assert(first._request_id);
    const again = [...messages, first.choices[0].message, { role: "user", content: "Once more." }];
    const second = await client.chat.completions.create({ model, messages: again, max_tokens: 20 });
    assert(second.usage.prompt_tokens > first.usage.prompt_tokens);
    await assert.rejects(client.models.retrieve("nosuch"), OpenAI.NotFoundError);
    return first.choices[0].message.content;
  },
  async stream() {
    const asked = { model, messages, max_tokens: 20, temperature: 0 };
    const whole = await client.chat.completions.create(asked);
    const runner = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    assert.equal(await runner.finalContent(), whole.choices[0].message.content);
    assert((await runner.totalUsage()).completion_tokens > 0);
    return true;
  },
  async structured() {
    const schema = {
      type: "object",
      properties: { name: { type: "string" }, age: { type: "integer" } },
      required: ["name", "age"],
      additionalProperties: false,
    };
    const reply = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: "Ada Miller is 36 years old. Who is she?" }],
      max_tokens: 80,
      temperature: 0,
      response_format: { type: "json_schema", json_schema: { name: "person", schema, strict: true } },
    });
    assert.equal(typeof reply.choices[0].message.parsed.age, "number");
    return reply.choices[0].message.parsed;
  },
};

console.log("\nRESULT " + JSON.stringify(await parts[process.argv[2]]()));
