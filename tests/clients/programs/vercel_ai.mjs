// Vercel's AI SDK with its provider for services like OpenAI's; run by tests/clients.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const folio = createOpenAICompatible({
  name: "folio",
  baseURL: process.env.SERVICE_BASE,
  apiKey: process.env.SERVICE_KEY,
  includeUsage: true,
});
const model = folio(process.env.SERVICE_MODEL);
const asked = { model, prompt: "Say hello.", maxOutputTokens: 20, temperature: 0 };

const parts = {
  async generate() {
    const { text, usage } = await generateText(asked);
    assert(text);
    assert(usage.outputTokens > 0);
    return text;
  },
  async stream() {
    const { textStream, usage } = streamText(asked);
    let text = "";
    for await (const piece of textStream) text += piece;
    assert.equal(text, (await generateText(asked)).text);
    assert((await usage).outputTokens > 0);
    return text;
  },
};

console.log("\nRESULT " + JSON.stringify(await parts[process.argv[2]]()));
