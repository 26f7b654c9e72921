// LlamaIndex for TypeScript: chat, calls and structured output by @llamaindex/openai, and an agent.

import assert from "node:assert/strict";
import { openai } from "@llamaindex/openai";
import { tool } from "llamaindex";
import { z } from "zod";

const llm = openai({
  model: "vllm-primary",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  temperature: 0,
  maxTokens: 120,
  maxRetries: 0,
});
const messages = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: "What is the capital of France?" },
];
const forecast = [{ role: "user", content: "How will the weather in Rome be on the next three days?" }];
const Weather = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });

const whole = await llm.chat({ messages });
assert.match(whole.message.content, /Paris/);
let pieces = "";
for await (const chunk of await llm.chat({ messages, stream: true })) pieces += chunk.delta;
assert.equal(pieces, whole.message.content);
assert.ok((await llm.complete({ prompt: "The capital of France is" })).text);

const weather = tool({
  name: "weather",
  description: "Tells the weather in a city.",
  parameters: Weather,
  execute: ({ city, days }) => `Sunny in ${city} on ${days} days.`,
});
const required = { tools: [weather], additionalChatOptions: { tool_choice: "required", parallel_tool_calls: false } };
const called = await llm.chat({ messages: forecast, ...required });
const [call] = called.message.options.toolCall;
assert.equal(call.name, "weather");
Weather.parse(typeof call.input === "string" ? JSON.parse(call.input) : call.input);
const result = { role: "user", content: "Sunny.", options: { toolResult: { id: call.id, result: "Sunny.", isError: false } } };
const final = await llm.chat({ messages: [...forecast, called.message, result], tools: [weather], additionalChatOptions: { tool_choice: "none" } });
assert.ok(final.message.content);
let streamed;
for await (const chunk of await llm.chat({ messages: forecast, stream: true, ...required })) streamed = chunk.options?.toolCall ?? streamed;
assert.equal(streamed[0].name, "weather");

const structured = await llm.chat({ messages: forecast, responseFormat: Weather });
Weather.parse(JSON.parse(structured.message.content));
