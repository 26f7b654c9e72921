// Uses the openai package, unchanged, against the server at OPENAI_BASE_URL.
// Prints one JSON object with what it saw; any surprise is an exception.

import assert from "node:assert/strict";
import OpenAI from "openai";

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

const several = await client.chat.completions.create({ ...options, n: 2, logprobs: true, top_logprobs: 1 });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1]);
for (const choice of several.choices) {
  assert.equal(choice.message.content, text);
  const tokens = choice.logprobs.content;
  assert.equal(Buffer.concat(tokens.map((token) => Buffer.from(token.bytes ?? []))).toString(), text);
  for (const token of tokens) assert.equal(token.top_logprobs[0].logprob, token.logprob);
}

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

console.log(JSON.stringify({ text, errors }));
