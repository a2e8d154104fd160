// The official client for JavaScript; run by tests/clients.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.SERVICE_BASE, apiKey: process.env.SERVICE_KEY, maxRetries: 0 });
const model = process.env.SERVICE_MODEL;
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Say hello." }];
const question = [{ role: "user", content: "What will the weather be in Lund over the next 2 days?" }];
const forecast = {
  type: "object",
  properties: { city: { type: "string", maxLength: 40 }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const inRange = (days) => Number.isInteger(days) && 1 <= days && days <= 9;

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
  async tools() {
    const tools = [{ type: "function", function: { name: "get_weather", description: "A forecast.", parameters: forecast } }];
    const asked = { model, messages: question, tools, max_tokens: 200, temperature: 0 };
    const first = await client.chat.completions.create({ ...asked, tool_choice: "required" });
    assert.equal(first.choices[0].finish_reason, "tool_calls");
    const calls = first.choices[0].message.tool_calls;
    assert(inRange(JSON.parse(calls[0].function.arguments).days));
    const runner = client.chat.completions.stream({ ...asked, tool_choice: "required" });
    const streamed = (await runner.finalMessage()).tool_calls;
    assert.deepEqual(streamed.map((one) => one.function.arguments), calls.map((one) => one.function.arguments));
    const results = calls.map((one) => ({ role: "tool", tool_call_id: one.id, content: "sunny" }));
    const messages = [...question, first.choices[0].message, ...results];
    const last = await client.chat.completions.create({ ...asked, messages, tool_choice: "none" });
    assert(last.choices[0].message.content);
    return last.choices[0].message.content;
  },
  async responses() {
    const first = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 20, temperature: 0 });
    assert(first.output_text);
    const how = { model, input: "Once more.", previous_response_id: first.id, max_output_tokens: 20, temperature: 0 };
    const kinds = [];
    for await (const event of await client.responses.create({ ...how, stream: true })) kinds.push(event.type);
    assert.equal(kinds[0], "response.created");
    assert(["response.completed", "response.incomplete"].includes(kinds.at(-1)));
    const tools = [{ type: "function", name: "get_weather", description: "A forecast.", parameters: forecast, strict: true }];
    const asked = { model, input: question, tools, tool_choice: "required", max_output_tokens: 200, temperature: 0 };
    const called = (await client.responses.create(asked)).output.find((item) => item.type === "function_call");
    assert(inRange(JSON.parse(called.arguments).days));
    await client.responses.delete(first.id);
    return called.arguments;
  },
};

console.log("\nRESULT " + JSON.stringify(await parts[process.argv[2]]()));
