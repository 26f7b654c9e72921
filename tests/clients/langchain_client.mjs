// Chains, calls and structured output by @langchain/openai.

import assert from "node:assert/strict";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { ChatPromptTemplate } from "@langchain/core/prompts";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import { z } from "zod";

// The package for JavaScript reads the base URL from its own options alone.
const configuration = { baseURL: process.env.OPENAI_BASE_URL };
const options = { model: "vllm-primary", temperature: 0, maxRetries: 0, configuration };
const chat = new ChatOpenAI({ ...options, maxTokens: 24 });
const longer = new ChatOpenAI({ ...options, maxTokens: 120 });
const messages = [new SystemMessage("You are a helpful assistant."), new HumanMessage("What is the capital of France?")];
const forecast = "How will the weather in Rome be on the next three days?";
const Weather = z.strictObject({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(9) });

const whole = await chat.invoke(messages);
assert.match(whole.content, /Paris/);
const usage = whole.usage_metadata;
assert.equal(usage.total_tokens, usage.input_tokens + usage.output_tokens);

let gathered;
for await (const chunk of await chat.stream(messages)) gathered = gathered ? gathered.concat(chunk) : chunk;
assert.equal(gathered.content, whole.content);
assert.equal(gathered.usage_metadata.total_tokens, usage.total_tokens);

const prompt = ChatPromptTemplate.fromMessages([["system", "You are a helpful assistant."], ["user", "{question}"]]);
const [first, second] = await prompt.pipe(chat).batch([{ question: messages[1].content }, { question: "What is machine learning?" }]);
assert.equal(first.content, whole.content);
assert.ok(second.content);

const weather = tool(({ city, days }) => `Sunny in ${city} on ${days} days.`, {
  name: "weather",
  description: "Tells the weather in a city.",
  schema: Weather,
});
const calling = longer.bindTools([weather], { tool_choice: "required", parallel_tool_calls: false });
const asked = await calling.invoke(forecast);
assert.equal(asked.tool_calls.length, 1);
Weather.parse(asked.tool_calls[0].args);
let pieces;
for await (const chunk of await calling.stream(forecast)) pieces = pieces ? pieces.concat(chunk) : chunk;
assert.deepEqual(pieces.tool_calls[0].args, asked.tool_calls[0].args);
const result = await weather.invoke(asked.tool_calls[0]);
assert.ok(result instanceof ToolMessage);
assert.ok((await chat.bindTools([weather], { tool_choice: "none" }).invoke([new HumanMessage(forecast), asked, result])).content);

for (const method of ["jsonSchema", "functionCalling"]) {
  Weather.parse(await longer.withStructuredOutput(Weather, { method }).invoke(forecast));
}

const responses = new ChatOpenAI({ ...options, maxTokens: 24, useResponsesApi: true });
const response = await responses.invoke(messages);
assert.equal(response.text, whole.content);
let events = "";
for await (const chunk of await responses.stream(messages)) events += chunk.text;
assert.equal(events, whole.content);

const legacy = new OpenAI({ ...options, maxTokens: 8 });
assert.ok(await legacy.invoke("The capital of France is"));
