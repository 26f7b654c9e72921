// Uses the AI SDK of Vercel, by its providers for OpenAI and for servers that are compatible with it.
// Any surprise is an exception.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL;
const apiKey = process.env.OPENAI_API_KEY;
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "emberline",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const models = {
  chat: openai.chat("vllm-primary"),
  responses: openai.responses("vllm-primary"),
  compatible: compatible("vllm-primary"),
};
const providerOptions = { openai: { store: false, parallelToolCalls: false }, emberline: { parallel_tool_calls: false } };
const common = { temperature: 0, maxRetries: 0, providerOptions };
const asked = {
  ...common,
  system: "You are a helpful assistant.",
  prompt: "What is the capital of France?",
  maxOutputTokens: 24,
};
const Weather = z.strictObject({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });
const weather = { ...common, prompt: "How will the weather in Rome be?", maxOutputTokens: 120 };

const texts = {};
for (const [name, model] of Object.entries(models)) {
  const whole = await generateText({ ...asked, model });
  texts[name] = whole.text;
  assert.ok(["stop", "length"].includes(whole.finishReason), name);
  assert.equal(whole.usage.totalTokens, whole.usage.inputTokens + whole.usage.outputTokens, name);

  const stream = streamText({ ...asked, model, onError: ({ error }) => { throw error; } });
  let pieces = "";
  for await (const piece of stream.textStream) pieces += piece;
  assert.equal(pieces, whole.text, name);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens, name);

  const { object } = await generateObject({ ...weather, model, schema: Weather });
  Weather.parse(object);
  const objects = streamObject({ ...weather, model, schema: Weather });
  for await (const _ of objects.partialObjectStream);
  assert.deepEqual(await objects.object, object, name);
  const { output } = await generateText({ ...weather, model, output: Output.object({ schema: Weather }) });
  assert.deepEqual(output, object, name);

  // A call, its result, and another step with both in the conversation.
  const told = [];
  const tools = {
    weather: tool({
      description: "Tells the weather in a city.",
      inputSchema: Weather,
      execute: async (call) => (told.push(call), { forecast: "sunny" }),
    }),
  };
  const steps = await generateText({ ...weather, model, tools, toolChoice: "required", stopWhen: stepCountIs(2) });
  assert.equal(steps.steps.length, 2, name);
  assert.equal(steps.steps[0].finishReason, "tool-calls", name);
  told.forEach((call) => Weather.parse(call));
  const calls = streamText({ ...weather, model, tools, toolChoice: "required", onError: ({ error }) => { throw error; } });
  for await (const _ of calls.fullStream);
  assert.deepEqual((await calls.toolCalls)[0].input, steps.steps[0].toolCalls[0].input, name);
}
assert.equal(texts.compatible, texts.chat);
assert.equal(texts.responses, texts.chat);

const errors = {};
async function refused(name, call) {
  await assert.rejects(call, (error) => {
    assert.ok(APICallError.isInstance(error), `${name}: ${error}`);
    errors[name] = [error.statusCode, error.isRetryable, JSON.parse(error.responseBody).error.code];
    return true;
  });
}
await refused("temperature", generateText({ ...asked, model: models.compatible, temperature: 3 }));
await refused("model", generateText({ ...asked, model: compatible("no-such-model") }));
await refused("absent", generateText({ ...asked, model: compatible("absent") }));
await refused("key", generateText({ ...asked, model: createOpenAI({ baseURL, apiKey: "wrong" }).chat("vllm-primary") }));

assert.deepEqual(errors, {
  temperature: [400, false, "invalid_value"],
  model: [404, false, "model_not_found"],
  absent: [503, true, "no_worker"],
  key: [401, false, "invalid_api_key"],
});
assert.match(texts.chat, /Paris/);
