// Agents of the OpenAI Agents SDK for JavaScript, by the Responses API (its default) and by chat completions.

import assert from "node:assert/strict";
import { Agent, OpenAIProvider, Runner, run, tool } from "@openai/agents";
import { z } from "zod";

const model = "vllm-primary";
const instructions = "You are a helpful assistant.";
const question = "What is the capital of France?";
const forecast = "How will the weather in Rome be on the next three days?";
const Weather = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });

// The name of a model alone: base URL and key are taken from the environment.
const simple = new Agent({ name: "Assistant", instructions, model, modelSettings: { temperature: 0 } });
assert.match((await run(simple, question)).finalOutput, /Paris/);

for (const useResponses of [true, false]) {
  const runner = new Runner({ modelProvider: new OpenAIProvider({ useResponses }), tracingDisabled: true });
  // No limit of tokens: an answer that is cut off counts as a failure here.
  const agent = (options, settings) =>
    new Agent({ name: "Assistant", instructions, model, modelSettings: { temperature: 0, ...settings }, ...options });

  const whole = await runner.run(agent(), question);
  assert.match(whole.finalOutput, /Paris/);
  const stream = await runner.run(agent(), question, { stream: true });
  let pieces = "";
  for await (const piece of stream.toTextStream()) pieces += piece;
  await stream.completed;
  assert.equal(pieces, whole.finalOutput);
  assert.equal(stream.finalOutput, whole.finalOutput);

  const asked = [];
  const weather = tool({
    name: "weather",
    description: "Tells the weather in a city.",
    parameters: Weather,
    execute: (call) => {
      asked.push(Weather.parse(call));
      return "Sunny.";
    },
  });
  const calling = agent({ tools: [weather] }, { toolChoice: "required", parallelToolCalls: false });
  const called = await runner.run(calling, forecast);
  assert.ok(asked.length >= 1 && called.finalOutput !== undefined);
  const streamed = await runner.run(calling, forecast, { stream: true });
  for await (const _ of streamed);
  await streamed.completed;
  assert.ok(asked.length >= 2);

  const structured = await runner.run(agent({ outputType: Weather }), forecast);
  Weather.parse(structured.finalOutput);
}
process.exit(0);
