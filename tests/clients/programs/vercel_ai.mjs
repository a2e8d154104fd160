// Vercel's AI SDK with its provider for services like OpenAI's; run by tests/clients.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

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
  async tools() {
    const days = [];
    const get_weather = tool({
      description: "A forecast.",
      inputSchema: z.object({ city: z.string().max(40), days: z.number().int().min(1).max(9) }),
      execute: async (given) => {
        days.push(given.days);
        return "sunny";
      },
    });
    const { steps, text } = await generateText({
      model,
      prompt: "What will the weather be in Lund over the next 2 days?",
      tools: { get_weather },
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
      maxOutputTokens: 200,
      temperature: 0,
    });
    assert.equal(steps.length, 2);
    assert(days.length && days.every((one) => 1 <= one && one <= 9));
    assert(text);
    return text;
  },
};

console.log("\nRESULT " + JSON.stringify(await parts[process.argv[2]]()));
