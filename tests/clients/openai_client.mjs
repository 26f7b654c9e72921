// Uses the openai package, in its own idioms, against the server at OPENAI_BASE_URL.
// Any surprise is an exception.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const model = "vllm-primary";
const options = {
  model,
  messages: [
    { role: "system", content: "You are a helpful assistant." },
    { role: "user", content: "What is the capital of France?" },
  ],
  temperature: 0,
  max_tokens: 24,
};

const models = [];
for await (const listed of client.models.list()) models.push(listed.id);
assert.ok(models.includes(model), models.join());

// Whole and streamed.
const whole = await client.chat.completions.create(options);
assert.equal(whole.object, "chat.completion");
const text = whole.choices[0].message.content;

let pieces = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...options,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  assert.equal(chunk.object, "chat.completion.chunk");
  pieces += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(pieces, text);
// The repeated prompt comes from the cache, which only its details tell.
assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
assert.ok(usage.prompt_tokens_details.cached_tokens > 0);

const helper = client.chat.completions.stream(options);
assert.equal(await helper.finalContent(), text);

// A client that leaves.
const left = await client.chat.completions.create({ ...options, max_tokens: 4000, stream: true });
for await (const _ of left) break;
assert.ok(left.controller.signal.aborted);

const several = await client.chat.completions.create({ ...options, n: 2, logprobs: true, top_logprobs: 1 });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1]);
for (const choice of several.choices) {
  assert.equal(choice.message.content, text);
  const tokens = choice.logprobs.content;
  assert.equal(Buffer.concat(tokens.map((token) => Buffer.from(token.bytes ?? []))).toString(), text);
  for (const token of tokens) assert.equal(token.top_logprobs[0].logprob, token.logprob);
}

// Functions.
const Weather = z.strictObject({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });
const question = [{ role: "user", content: "How will the weather in Rome be?" }];
const weather = {
  name: "weather",
  description: "Tells the weather in a city.",
  parameters: z.toJSONSchema(Weather),
  strict: true,
};
const calling = {
  ...options,
  messages: question,
  max_tokens: 120,
  tools: [{ type: "function", function: weather }],
  tool_choice: "required",
  parallel_tool_calls: false,
};
const called = (await client.chat.completions.create(calling)).choices[0];
assert.equal(called.finish_reason, "tool_calls");
assert.equal(called.message.tool_calls.length, 1);
Weather.parse(JSON.parse(called.message.tool_calls[0].function.arguments));
const streamed = await client.chat.completions.stream(calling).finalMessage();
assert.equal(streamed.tool_calls[0].function.name, "weather");
assert.equal(streamed.tool_calls[0].function.arguments, called.message.tool_calls[0].function.arguments);

const told = [];
const runner = client.chat.completions.runTools({
  ...calling,
  parallel_tool_calls: undefined,
  tool_choice: { type: "function", function: { name: "weather" } },
  tools: [
    {
      type: "function",
      function: {
        ...weather,
        parse: (json) => Weather.parse(JSON.parse(json)),
        function: (asked) => (told.push(asked), `Sunny in ${asked.city}.`),
      },
    },
  ],
});
assert.equal(await runner.finalFunctionToolCallResult(), `Sunny in ${told[0].city}.`);
const answered = await client.chat.completions.create({
  ...calling,
  tool_choice: "none",
  max_tokens: 8,
  messages: [...question, called.message, { role: "tool", tool_call_id: called.message.tool_calls[0].id, content: "Sunny." }],
});
assert.ok(answered.choices[0].message.content);

// Structured output.
const format = zodResponseFormat(Weather, "weather");
const parsing = { ...options, messages: question, max_tokens: 120, response_format: format };
const parsed = (await client.chat.completions.parse(parsing)).choices[0].message;
assert.deepEqual(parsed.parsed, Weather.parse(JSON.parse(parsed.content)));
const final = await client.chat.completions.stream(parsing).finalChatCompletion();
assert.deepEqual(final.choices[0].message.parsed, parsed.parsed);

// Legacy completions, and responses.
const legacy = { model, prompt: "The capital of France is", temperature: 0, max_tokens: 8 };
const completed = (await client.completions.create(legacy)).choices[0].text;
let written = "";
for await (const chunk of await client.completions.create({ ...legacy, stream: true })) {
  written += chunk.choices[0]?.text ?? "";
}
assert.equal(written, completed);

const respond = { model, input: options.messages, temperature: 0, max_output_tokens: 24, store: false };
const response = await client.responses.create(respond);
assert.equal(response.output_text, text);
let delivered = "";
for await (const event of await client.responses.create({ ...respond, stream: true })) {
  if (event.type === "response.output_text.delta") delivered += event.delta;
}
assert.equal(delivered, text);

// Errors, and how often a request is tried.
const errors = {};
async function refused(name, kind, request) {
  await assert.rejects(request, (error) => {
    assert.ok(error instanceof kind, `${name}: ${error}`);
    errors[name] = [error.status, error.code, error.param];
    return true;
  });
}
await refused("temperature", OpenAI.BadRequestError, client.chat.completions.create({ ...options, temperature: 3 }));
await refused("top_logprobs", OpenAI.BadRequestError, client.chat.completions.create({ ...options, top_logprobs: 2 }));
await refused("unknown", OpenAI.BadRequestError, client.chat.completions.create({ ...options, no_such_parameter: 1 }));
await refused("model", OpenAI.NotFoundError, client.chat.completions.create({ ...options, model: "no-such-model" }));
await refused("key", OpenAI.AuthenticationError, new OpenAI({ apiKey: "wrong", maxRetries: 0 }).models.list());

const attempts = [];
const counting = async (url, init) => {
  const response = await fetch(url, init);
  attempts.push(response.status);
  return response;
};
const patient = new OpenAI({ maxRetries: 1, fetch: counting });
await refused("absent", OpenAI.InternalServerError, patient.chat.completions.create({ ...options, model: "absent" }));
assert.deepEqual(attempts, [503, 503]);
await assert.rejects(client.chat.completions.create(options, { timeout: 1 }), OpenAI.APIConnectionTimeoutError);

assert.deepEqual(errors, {
  temperature: [400, "invalid_value", "temperature"],
  top_logprobs: [400, "invalid_value", "top_logprobs"],
  unknown: [400, "unknown_parameter", "no_such_parameter"],
  model: [404, "model_not_found", "model"],
  key: [401, "invalid_api_key", null],
  absent: [503, "no_worker", "model"],
});
assert.match(text, /Paris/);
